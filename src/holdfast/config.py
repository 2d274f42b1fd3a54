"""A run as data: every setting has one place, one default and one check, and the resolved whole is written beside the result.

    [model] [data] [pipeline] [optimizer] [training] [defence] [[attack]] [cluster] [output]   faults = [...]

A TOML file holds the same tables; `--set section.key=value` on the command line and keyword arguments in Python
end up here too. Unknown keys are errors.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from holdfast.errors import ConfigError

Schedule = Literal["gpipe", "1f1b"]
Engine = Literal["memory", "processes", "ray"]
WireDtype = Literal["float32", "bfloat16", "int8"]
Defence = Literal["none", "duplicate", "duplicate-only", "spot-check", "statistics"]
Share = Annotated[float, Field(ge=0, le=1)]
Placement = Literal["listed", "measured"]
BanPolicy = Literal["never", "quarantine", "ban"]


LONGEST_NAME = 80
"""Signs of a name that nobody knows which are worth showing."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """`name` is a description of a small model made from scratch (`gpt2:layers=6,width=64`), a directory, or a hub name."""

    name: str = "gpt2:layers=6,width=64,heads=4"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    attention: Literal["sdpa", "eager"] = "sdpa"
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    lora_rank: int = Field(0, ge=0)
    lora_alpha: float = Field(16.0, gt=0)
    lora_targets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _adapters_have_a_rank(self) -> Self:
        if self.lora_targets and not self.lora_rank:
            raise ValueError(
                f"--lora-target {', '.join(self.lora_targets)} names what to adapt, and without --lora-rank there are no "
                "adapters; give --lora-rank N"
            )
        return self


class DataConfig(Section):
    """`tokenizer` is a directory; without one: the model's own, or a byte-level BPE of `vocabulary` tokens trained here.

    `train_part` keeps training documents for another purpose: a model pre-trained on one part is fine-tuned on another.
    """

    name: str = "embedded"
    sequence_length: int = Field(64, ge=2)
    tokenizer: str | None = None
    vocabulary: int = Field(512, ge=258)
    validation_tokens: int = Field(16_384, ge=1)
    train_part: tuple[Share, Share] = Field((0.0, 1.0), description="which training documents: shares of their number")
    train_tokens: int | None = Field(None, ge=1, description="stop after the document with which there are so many; None: all")

    @model_validator(mode="after")
    def _part_is_one(self) -> Self:
        begin, end = self.train_part
        if begin >= end:
            raise ValueError(f"data.train_part goes from one share to a greater one, got {begin:g} to {end:g}")
        return self


class PipelineConfig(Section):
    stages: int = Field(6, ge=2)
    micro_batches: int = Field(4, ge=1)
    micro_batch_size: int = Field(4, ge=1)
    schedule: Schedule = "1f1b"
    costs: Literal["estimated", "measured"] = Field("estimated", description="how the stages are cut; a measured cut may vary")
    engine: Engine = "memory"
    wire_dtype: WireDtype | None = Field(None, description="what tensors between stages are packed to; None: the model's dtype")


class OptimizerConfig(Section):
    """AdamW (decoupled weight decay on matrices only), warm-up, then `schedule` down to `final_ratio` of the peak."""

    learning_rate: float = Field(3e-3, gt=0)
    warmup_steps: int = Field(10, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    clip_norm: float = Field(1.0, ge=0, description="0: no clipping")


class TrainingConfig(Section):
    """`bypass` are (step, stage) pairs: the step leaves out what the remedy `skip` would after an alert about that stage,
    though nobody has raised one. It is stochastic depth whose draws are written down.
    """

    steps: int = Field(150, ge=1)
    seed: int = Field(0, ge=0)
    evaluate_every: int = Field(0, ge=0, description="0: only at the end")
    bypass: tuple[tuple[int, int], ...] = ()


class DefenceConfig(Section):
    """`name=None` is duplicate, or none where K = 2 leaves nothing to defend.

    `on_alert` is restart, relay, skip, replace, the name of a plug-in, or `file.py:Class` (see holdfast.recover.registry).
    `check_claims` and `check_steps` are the probabilities p and q of `holdfast.verify.spotcheck`; their draws follow from the
    run's seed, or from `check_seed`, which nobody else may know.
    """

    name: Defence | None = None
    on_alert: str = Field("replace", min_length=1)
    retries: int = Field(2, ge=0, description="restarts of one step before `restart` and `relay` escalate to `replace`")
    ban_policy: BanPolicy = "never"
    ban_after: int = Field(3, ge=1)
    deadline_s: float = Field(30.0, gt=0, description="virtual seconds without progress before who owes counts as dead")
    check_claims: float = Field(0.0, ge=0, le=1, description="probability that a sealed claim is computed again")
    check_steps: float | None = Field(
        None, ge=0, le=1, description="that all of a stage's step is; None: 0.1, or 0 with shadows"
    )
    check_seed: int | None = Field(None, ge=0)
    window: int = Field(8, ge=1, description="sealed steps that workers keep, so that they can be checked and gone back to")
    flag_budget: float = Field(
        0.2, ge=0, description="extra checks a step that the flags of one receiver may cause, on average"
    )
    redraw_every: int = Field(0, ge=0, description="steps after which other workers sit on the stages (0: never)")
    calibration: str | None = Field(None, description="file of bounds between numerics classes; None: measured at the start")
    drift_factor: float = Field(2.0, ge=1, le=1e6, description="times the honest sum of drifts that a shadow may take over")


class AttackConfig(Section):
    """`spec` is `NAME`, `file.py:Class`, or either followed by `,param=value...`; the rest is the campaign."""

    spec: str
    rate: float = Field(1.0, ge=0, le=1)
    stages: tuple[int, ...] | None = None
    seed: int | None = None
    first_step: int = Field(0, ge=0)
    persistent: bool = False
    micro_batches: tuple[int, ...] | None = None
    worker: str | None = None


class ClusterConfig(Section):
    """The described cluster of the virtual clock. Delay and reordering are seeded and never change a bit of the result."""

    latency_s: float = Field(1e-3, ge=0)
    bandwidth_bytes_per_s: float = Field(125e6, gt=0)
    jitter_s: float = Field(0.0, ge=0)
    loss: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    seconds_per_forward: float = Field(0.05, gt=0, description="one micro-batch through a stage of average cost")
    speeds: tuple[float, ...] | None = Field(None, description="relative speed of each worker's device, one a stage")
    numerics: tuple[str, ...] | None = Field(None, description="how each stage's worker computes, by name (holdfast.numerics)")
    detection_s: float = Field(0.1, ge=0, description="time until a dead process is noticed")
    wire_check: bool = False
    tensor_bytes: int | None = Field(None, gt=0, description="what a tensor between stages counts for; None: its own bytes")
    state_bytes: int | None = Field(None, gt=0, description="what a stage's state counts for on a link; None: its own bytes")
    memory_bytes: int | None = Field(None, gt=0, description="memory of an untrusted worker; None: what this machine has free")
    memories: tuple[int, ...] | None = Field(None, description="bytes of each worker, one a stage; limits that always hold")
    placement: Placement = Field("listed", description="listed: worker i has stage i; measured: as a step is shortest")
    move_every: int = Field(10, ge=1, description="steps between two changes of a measured placement, at least")
    move_gain: float = Field(0.15, gt=0, description="share of a step's time that a change must save, as predicted")


class MachinesConfig(Section):
    """Workers that live in other processes, on this machine or others; times are those of the clock on the wall."""

    silence_s: float = Field(6.0, gt=2.0, description="without a word from a machine, until it counts as lost")
    metrics: str | None = Field(None, description="ip:port of /metrics and /healthz; None: not served")
    expose_metrics: bool = Field(False, description="whether other machines may reach them; they need no password")
    memory_bytes: int | None = Field(None, gt=0, description="of this machine, for the initiator; None: no limit is kept")
    restart_workers: bool = Field(True, description="whether a worker's process that ended is started again")
    ray_address: str | None = Field(
        None, description="of a Ray cluster, or auto; None: RAY_ADDRESS, else a Ray of this machine"
    )
    ray_gpus: float = Field(1.0, gt=0, description="what a worker takes of a GPU in a Ray cluster, where the device is cuda")
    expose_wire: bool = Field(False, description="whether workers in a Ray cluster may be reached beyond their own node")
    journal: bool = Field(True, description="whether a host writes each commit down, to go on from there if it is killed")
    return_s: float = Field(
        60.0, ge=0, description="how long a host that was started again waits for who holds its last commit"
    )


class OutputConfig(Section):
    """`key` is the file of the key that signs the evidence log, made if missing; without one it follows from the seed."""

    dir: str | None = None
    key: str | None = None
    checkpoint_every: int = Field(0, ge=0, description="steps; 0: only at the end")
    keep: int = Field(3, ge=1)
    report_to: tuple[Literal["tensorboard"], ...] = ()
    log_format: Literal["text", "json"] = Field("text", description="of the lines in holdfast.log; json: on stderr too")


class RunConfig(Section):
    """Everything that decides a run's result. Equal configs on one machine give equal weights, to the bit."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    pipeline: PipelineConfig = PipelineConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    defence: DefenceConfig = DefenceConfig()
    attack: tuple[AttackConfig, ...] = ()
    cluster: ClusterConfig = ClusterConfig()
    machines: MachinesConfig = MachinesConfig()
    output: OutputConfig = OutputConfig()
    faults: tuple[str, ...] = ()

    @property
    def defence_name(self) -> Defence:
        return self.defence.name or ("none" if self.pipeline.stages == 2 else "duplicate")

    @property
    def shadowed(self) -> bool:
        """Whether every untrusted stage has a shadow that computes all that its primary does."""
        return self.defence_name in ("duplicate", "duplicate-only")

    @property
    def check_steps(self) -> float:
        """The probability q in force."""
        given = self.defence.check_steps
        return given if given is not None else 0.0 if self.shadowed or self.defence_name == "none" else 0.1

    @property
    def spot_checked(self) -> bool:
        return self.check_steps > 0 or self.defence.check_claims > 0

    @property
    def window(self) -> int:
        """The sealed steps that workers really keep: none where nothing is spot-checked."""
        return self.defence.window if self.spot_checked else 0

    @model_validator(mode="after")
    def _checks_make_sense(self) -> Self:
        if self.defence_name == "none" and (self.spot_checked or self.defence.redraw_every):
            raise ValueError(
                "spot checks and redrawn seats need a defence: claims are signed only there; use --defence spot-check"
            )
        if self.defence_name != "none" and not self.shadowed and not self.spot_checked:
            raise ValueError(
                f"defence {self.defence_name!r} with check_steps 0 and check_claims 0 would check nothing; raise one"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stages = self.pipeline.stages
        if stages == 2 and self.defence.name not in (None, "none"):
            raise ValueError(
                f"defence {self.defence.name!r} with 2 stages: both belong to the trusted initiator, so there is no "
                "untrusted stage and nothing to defend; use --stages 3 or more, or --defence none"
            )
        for attack in self.attack:
            for stage in attack.stages or ():
                if not 1 <= stage <= stages - 2:
                    raise ValueError(
                        f"attack {attack.spec!r} names stage {stage}, but with {stages} stages the attackable ones are "
                        + (f"1 to {stages - 2}" if stages > 2 else "none (both stages are the initiator's)")
                    )
            if stages == 2:
                raise ValueError(f"attack {attack.spec!r} with 2 stages: there is no untrusted stage; use --stages 3 or more")
        for step, stage in self.training.bypass:
            if step < 0 or not 1 <= stage <= stages - 2:
                possible = f"1 to {stages - 2}" if stages > 2 else "none"
                raise ValueError(
                    f"training.bypass names step {step}, stage {stage}; steps count from 0, and with {stages} stages those "
                    f"that can be left out are {possible}"
                )
        if self.cluster.speeds is not None and len(self.cluster.speeds) != stages:
            raise ValueError(f"cluster.speeds has {len(self.cluster.speeds)} entries; it needs one for each of {stages} stages")
        memories = self.cluster.memories
        if memories is not None and (len(memories) != stages or min(memories) <= 0):
            raise ValueError(
                f"cluster.memories has {len(memories)} entries; it needs a positive one for each of {stages} stages"
            )
        if memories is not None and memories[0] != memories[-1]:
            raise ValueError(
                f"cluster.memories gives the first stage {memories[0]} bytes and the last {memories[-1]}; both are on the "
                "initiator's machine, so give them the same: what that machine has"
            )
        if self.cluster.placement == "measured" and self.defence.redraw_every:
            raise ValueError(
                "placement 'measured' and redraw_every: one seats workers where they are fast, the other where chance puts "
                "them, so that nobody chooses his neighbour; give one of them"
            )
        numerics = self.cluster.numerics
        if numerics is not None and len(numerics) != stages:
            raise ValueError(f"cluster.numerics has {len(numerics)} entries; it needs one for each of {stages} stages")
        if numerics is not None and numerics[0] != numerics[-1]:
            raise ValueError(
                f"cluster.numerics gives the first stage {numerics[0]!r} and the last {numerics[-1]!r}; "
                "both are on the initiator's machine, so give them the same"
            )
        return self


def resolve(tables: Mapping[str, Any]) -> RunConfig:
    """Check a nested mapping of settings; raises ConfigError naming each wrong key or value."""
    try:
        return RunConfig.model_validate(dict(tables))
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(detail) for detail in error.errors())) from None


def _explain(detail: Any) -> str:
    where = _brief(".".join(str(part) for part in detail["loc"]))
    if detail["type"] == "extra_forbidden":
        *parents, _key = detail["loc"]
        section: Any = RunConfig
        for part in parents:
            field = getattr(section, "model_fields", {}).get(part)
            section = AttackConfig if part == "attack" else (field.annotation if field is not None else section)
        known = ", ".join(getattr(section, "model_fields", RunConfig.model_fields))
        return f"unknown setting {where!r}; here stand: {known}"
    message = detail["msg"].removeprefix("Value error, ")
    return message if detail["type"] == "value_error" else f"{where}: {message}, got {_shown(detail['input'])}"


def _brief(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


def _shown(value: Any) -> str:
    """A value that was given, in a few words: it may be as deep and as long as it likes."""
    few = reprlib.Repr()
    few.maxlevel, few.maxstring, few.maxother = 3, 80, 80
    try:
        return few.repr(value)
    except ValueError:  # a whole number of thousands of digits, which Python does not print
        return f"a {type(value).__name__} beyond all bounds"
