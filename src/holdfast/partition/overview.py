"""What `holdfast models` shows: for one model its cut, sizes, memory and self-test; for none the families that can be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.partition.families import ROWS, TESTED, Family, family_of
from holdfast.partition.memory import Batch, WorkerMemory, memory_per_worker
from holdfast.partition.plan import Plan, make_plan
from holdfast.partition.selftest import SelfTestReport, self_test
from holdfast.partition.source import ModelSource


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of a plan: layers [lo, hi), parameters it owns, its share of a forward pass, its worker's memory in bytes."""

    stage: int
    layers: tuple[int, int]
    parameters: int
    trainable_tensors: int
    cost_share: float
    memory: WorkerMemory


@dataclass(frozen=True, slots=True)
class ModelOverview:
    """One model cut into stages, and what the self-test said."""

    name: str
    model_type: str
    parameters: int
    tied: bool
    rows: tuple[StageRow, ...]
    self_test: SelfTestReport


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """One family that can be cut, and where: modules before the layers, the layers, modules after them."""

    model_type: str
    before: tuple[str, ...]
    layers: str
    after: tuple[str, ...]


def stage_rows(plan: Plan, needs: Sequence[WorkerMemory]) -> tuple[StageRow, ...]:
    total = sum(plan.costs)
    return tuple(
        StageRow(stage, plan.layers[stage], plan.parameter_counts[stage], len(plan.trainable_of(stage)), cost / total, need)
        for stage, (cost, need) in enumerate(zip(plan.costs, needs, strict=True))
    )


def model_overview(source: ModelSource, stages: int, batch: Batch, *, measure: bool = False) -> ModelOverview:
    """Cut the model, size it up and run the self-test; raises PartitionError or SelfTestFailed."""
    plan = make_plan(source.config, stages, sequence_length=batch.sequence_length, measure=measure)
    return ModelOverview(
        name=source.name,
        model_type=source.model_type,
        parameters=plan.parameters,
        tied=plan.tied is not None,
        rows=stage_rows(plan, memory_per_worker(plan, batch)),
        self_test=self_test(source, stages=min(stages, 3)),
    )


def supported_families() -> tuple[FamilyRow, ...]:
    """The families that the project's tests prove bit-equal; others are tried by the self-test when they are loaded."""
    return tuple(_row(_family(model_type)) for model_type in TESTED)


def _family(model_type: str) -> Family:
    from transformers import CONFIG_MAPPING

    return ROWS[model_type] if model_type in ROWS else family_of(CONFIG_MAPPING[model_type])


def _row(family: Family) -> FamilyRow:
    return FamilyRow(family.model_type, family.before, family.layers, family.after)
