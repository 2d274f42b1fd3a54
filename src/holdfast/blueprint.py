"""The blueprint of a cluster: all that a worker must know to play its part, and nothing more; and the workers built from it.

In it: the model's config, the cut, the order of work, the optimizer, who computes in which numerics class. Not in it: data, the
run's seed, the seed of the checks, paths, keys. It is data: it names no code, and a machine that is sent one checks it all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from holdfast import seeds
from holdfast.claim import Header
from holdfast.config import OptimizerConfig, PipelineConfig, Section
from holdfast.errors import ConfigError, HoldfastError, ProtocolError
from holdfast.execution import StageExecution, StepShape
from holdfast.inbox import Boundary
from holdfast.job import DTYPES, Job
from holdfast.likeness import Extent, Likeness, likeness_from, refuse_packing
from holdfast.numerics import resolve_arithmetic
from holdfast.optimizer import AdamW
from holdfast.partition import Lora, Plan, StageModule, plan_from, prepare_config
from holdfast.partition.source import config_from_keys
from holdfast.quantise import Packing, packing_of
from holdfast.schedule import SCHEDULES, Action, in_flight_limit
from holdfast.stage import Batch, Terms, unsigned
from holdfast.verify.calibration import from_toml
from holdfast.worker import Hardware, Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
MAX_BYTES = 1 << 20
"""No config of a model and no cut of one comes near this."""

Sign = Callable[[Header], Header]


class LoraShape(Section):
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    targets: tuple[str, ...]


class Bounds(Section):
    """Across numerics classes: the class of each member, the calibration as its file, and what limits drift."""

    classes: dict[str, str]
    calibration: str
    drift_factor: float = Field(ge=1)


class Blueprint(Section):
    """See the module. `model` are the keys of a config.json; `run` is what headers call the deployment."""

    version: Literal[1] = 1
    run: str = Field(min_length=1, max_length=200)
    model: dict[str, Any]
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["sdpa", "eager"]
    dropout: float = Field(ge=0, lt=1)
    dropout_seed: int | None
    layers: tuple[tuple[int, int], ...]
    costs: tuple[float, ...]
    lora: LoraShape | None
    pipeline: PipelineConfig
    optimizer: OptimizerConfig
    steps: int = Field(ge=1)
    sequence_length: int = Field(ge=1)
    checked: bool
    shadowed: bool
    watched: bool
    window: int = Field(ge=0)
    arithmetics: dict[str, str]
    bounds: Bounds | None

    def encode(self) -> bytes:
        """As JSON; ProtocolError where it would not be taken."""
        data = self.model_dump_json().encode()
        if len(data) > MAX_BYTES:
            raise ProtocolError(f"a blueprint of {len(data)} bytes; the limit is {MAX_BYTES}")
        return data

    @classmethod
    def decode(cls, data: bytes) -> Blueprint:
        """The inverse of `encode`, strict; raises ProtocolError."""
        if len(data) > MAX_BYTES:
            raise ProtocolError(f"a blueprint of {len(data)} bytes; the limit is {MAX_BYTES}")
        try:
            found = cls.model_validate_json(data)
        except (ValidationError, RecursionError) as error:
            raise ProtocolError(f"a blueprint that is none: {str(error)[:500]}") from None
        if len(found.layers) != found.pipeline.stages:
            raise ProtocolError(
                f"a blueprint with {len(found.layers)} stages in the cut and {found.pipeline.stages} in the pipeline"
            )
        return found


def blueprint_of(job: Job, run: str, arithmetics: Mapping[str, str], likeness: Likeness | None) -> Blueprint:
    """What the workers of `job` are told in the deployment `run`."""
    config, plan = job.config, job.plan
    lora = None if plan.lora is None else LoraShape(rank=plan.lora.rank, alpha=plan.lora.alpha, targets=plan.lora.targets)
    bounds = None
    if likeness is not None:
        bounds = Bounds(
            classes=dict(likeness.classes), calibration=likeness.calibration, drift_factor=config.defence.drift_factor
        )
    return Blueprint(
        run=run,
        model=_keys(job.source.config),
        dtype=config.model.dtype,
        attention=config.model.attention,
        dropout=config.model.dropout,
        dropout_seed=seeds.derive(config.training.seed, "dropout") if config.model.dropout else None,
        layers=plan.layers,
        costs=plan.costs,
        lora=lora,
        pipeline=config.pipeline,
        optimizer=config.optimizer,
        steps=config.training.steps,
        sequence_length=config.data.sequence_length,
        checked=config.defence_name != "none",
        shadowed=config.shadowed,
        watched=config.defence_name == "statistics",
        window=config.window,
        arithmetics=dict(arithmetics),
        bounds=bounds,
    )


def _keys(config: Any) -> dict[str, Any]:
    """The model's config as plain JSON, without notes of where it came from."""
    keys: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return {key: value for key, value in keys.items() if key not in ("_name_or_path", "transformers_version")}


@dataclass(frozen=True)
class Builder:
    """Builds executions and workers of one deployment; `config` is the model's prepared config, `device` a torch device."""

    blueprint: Blueprint
    config: Any
    plan: Plan
    device: str
    likeness: Likeness | None = None

    @classmethod
    def of(cls, job: Job, blueprint: Blueprint, likeness: Likeness | None) -> Builder:
        """For who has the whole job."""
        return cls(blueprint, job.source.config, job.plan, job.config.model.device, likeness)

    @classmethod
    def unfold(cls, blueprint: Blueprint, device: str) -> Builder:
        """For who has nothing but the blueprint. Raises ProtocolError where no model follows from it."""
        try:
            raw = config_from_keys(blueprint.model, "the blueprint")
            config = prepare_config(raw, blueprint.attention, blueprint.dropout)
            given = blueprint.lora
            lora = None if given is None else Lora(rank=given.rank, alpha=given.alpha, targets=given.targets)
            plan = plan_from(config, blueprint.layers, blueprint.costs, lora)
            return cls(blueprint, config, plan, device, _likeness(blueprint))
        except HoldfastError as error:
            raise ProtocolError(f"a blueprint that cannot be built: {error}") from error

    def worker(self, name: str, sign: Sign = unsigned, *, devices: int = 1, batch: Batch | None = None) -> Worker:
        """The worker `name`; its seats and states come as messages."""
        hardware = Hardware(self.plan.costs, devices=devices)
        return Worker(name, partial(self.execution, name), self._terms(sign), self._boundary(), hardware, batch)

    def execution(self, worker: str, stage: int) -> StageExecution:
        """The module of `stage` with undefined weights, as `worker` computes it."""
        told = self.blueprint
        module = StageModule(self.config, self.plan, stage, dtype=DTYPES[told.dtype], device=self.device)
        module.train(told.dropout > 0)
        shape = StepShape(told.pipeline.micro_batches, told.dropout_seed, compared=told.shadowed or not told.checked)
        arithmetic = resolve_arithmetic(told.arithmetics.get(worker, "native"))
        return StageExecution(module, AdamW(told.optimizer), shape, arithmetic, self._packing)

    def _terms(self, sign: Sign) -> Terms:
        told = self.blueprint
        pipeline = told.pipeline
        return Terms(
            told.run,
            told.checked,
            partial(actions, pipeline),
            lambda i: in_flight_limit(pipeline.schedule, pipeline.stages, i, pipeline.micro_batches, told.shadowed),
            backward_waits=pipeline.schedule == "gpipe",
            sign=sign if told.checked else unsigned,
            window=told.window,
            watched=told.watched,
            likeness=self.likeness,
        )

    def _boundary(self) -> Boundary:
        told = self.blueprint
        shape = told.pipeline.micro_batch_size, told.sequence_length, self.plan.width
        waiting = 4 * told.pipeline.stages * told.pipeline.micro_batches
        return Boundary(self._packing.shape(shape), self._packing.wire, waiting)

    @property
    def _packing(self) -> Packing:
        return packing_of(DTYPES[self.blueprint.dtype], self.blueprint.pipeline.wire_dtype)


def actions(pipeline: PipelineConfig, stage: int) -> list[Action]:
    """The order of work at `stage`, the last stage's included for the shadow of the one before it."""
    at = min(stage, pipeline.stages - 1)
    return list(SCHEDULES[pipeline.schedule](pipeline.stages, at, pipeline.micro_batches))


def _likeness(blueprint: Blueprint) -> Likeness | None:
    given = blueprint.bounds
    if given is None:
        return None
    refuse_packing(packing_of(DTYPES[blueprint.dtype], blueprint.pipeline.wire_dtype))
    extent = Extent(DTYPES[blueprint.dtype], blueprint.steps, given.drift_factor)
    try:
        return likeness_from(from_toml(given.calibration), given.classes, blueprint.optimizer, extent)
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"its calibration is not readable: {error}") from None
