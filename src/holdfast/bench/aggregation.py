"""`holdfast bench aggregation`: do the defences of federated learning carry over to a pipeline?

    start --> honest run, watched --> tests on values: found lies, false alarms       (carryover, outliers)
      |                           --> how traffic varies with the data                (spread)
      |                           --> replicas of one stage, aggregated               (replicas)
      |------> undefended runs, lies in earnest: who is accused                       (carryover)
      `------> honest training, micro-batches aggregated                              (aggregated)
    small runs under `duplicate` and `duplicate-only`: what the jump is worth         (workshop, rows)

The start is a model that knows the text already, as in the paper: pre-trained here, or given. Here is what is asked and what
is found; how it is measured stands in `aggregation_cells`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast import seeds
from holdfast.bench.aggregated import TREATMENTS, WEIGHT_GRADIENT, Trained
from holdfast.bench.carryover import CascadeRow, ScoreRow
from holdfast.bench.replicas import ReplicaRow
from holdfast.bench.rows import Row
from holdfast.bench.spread import Spread, SpreadRow
from holdfast.bench.traffic import forger
from holdfast.config import RunConfig, resolve
from holdfast.errors import ConfigError
from holdfast.toml import assign

PARTS = ("tests", "cascade", "training", "jump")
"""`tests` also measures the spread and the replicas: one run serves all three."""
PAPER = ("sign-flip", "gaussian")
ATTACKS = (
    *PAPER,
    "moment-noise,per=feature",
    "scale,factor=1.2",
    "other-input",
    "replay",
    "one-row",
    "perturb,epsilon=0.1",
    "drift,epsilon=0.1",
    "perturb,epsilon=0.01",
)
"""The paper's two, then what one says who knows the tests."""
IN_EARNEST = ("sign-flip,direction=forward", "gaussian,direction=backward")
JUMP_ATTACKS = (
    "sign-flip",
    "gaussian",
    "moment-noise",
    "other-input",
    "other-input,direction=backward",
    "wrong-parent",
    "lie-on-direct",
    "lie-on-jump",
)
JUMP_DEFENCES = ("duplicate", "duplicate-only")
RATE = 1e-3
"""Constant learning rate of all that follows the pre-training."""


@dataclass(frozen=True)
class Scale:
    """How much of everything. `steps` of a watched run, `treated` of a training with aggregates; `jump` is (seeds, steps)."""

    model: str = "gpt2:layers=6,width=64,heads=4"
    stages: int = 6
    pretraining: int = 150
    steps: int = 40
    treated: int = 25
    sequence_length: int = 64
    validation_tokens: int = 4096
    batch: tuple[int, int] = (8, 2)
    treatments: tuple[tuple[str, str], ...] = TREATMENTS
    jump: tuple[int, int] = (3, 4)


SCALES: Mapping[str, Scale] = {
    "tiny": Scale(),
    "smoke": Scale(
        "gpt2:layers=4,width=16,heads=2",
        4,
        2,
        8,
        2,
        16,
        160,
        (5, 1),
        (*TREATMENTS[:2], (WEIGHT_GRADIENT, "median")),
        (1, 2),
    ),
}
"""`tiny` is measured; `smoke` shows in seconds that the command works here, and its figures mean nothing."""


@dataclass(frozen=True)
class Question:
    """What is asked. `model` is a directory to start from (None: one is made as `scale` says, for each seed)."""

    scale: Scale
    seeds: range = range(3)
    model: str | None = None
    data: str = "embedded"
    stages: int | None = None
    attacks: tuple[str, ...] = ATTACKS
    parts: tuple[str, ...] = PARTS
    assignments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"--part {part!r}: known are {', '.join(PARTS)}")
        if self.model is not None and not Path(self.model).is_dir():
            raise ConfigError(f"no model directory {self.model!r}; give one that holds config.json and safetensors, or none")
        if self.cut < 4:
            raise ConfigError(f"{self.cut} stages have fewer than two untrusted ones in a row; use --stages 4 or more")
        for spec in self.attacks:
            forger(spec)
        self.config("", 0)

    @property
    def cut(self) -> int:
        return self.scale.stages if self.stages is None else self.stages

    @property
    def middle(self) -> int:
        """The stage after which activations are aggregated, and before which input gradients are."""
        return self.cut // 2

    def config(self, model: str, seed: int, steps: int | None = None, *, attack: str | None = None) -> RunConfig:
        """A run without a defence that starts from `model` (empty: as the scale says, from scratch)."""
        scale = self.scale
        micro_batches, size = scale.batch
        optimizer = {"learning_rate": RATE, "schedule": "constant", "warmup_steps": 5} if model else {"learning_rate": 3e-3}
        tables: dict[str, Any] = {
            "model": {"name": model or self.model or scale.model},
            "data": {
                "name": self.data,
                "sequence_length": scale.sequence_length,
                "validation_tokens": scale.validation_tokens,
            },
            "pipeline": {"stages": self.cut, "micro_batches": micro_batches, "micro_batch_size": size},
            "optimizer": optimizer,
            "training": {
                "steps": steps or scale.steps,
                "seed": seeds.derive(seed, "fine-tuning" if model else "pre-training") % 1_000_000,
            },
            "defence": {"name": "none"},
            "attack": [] if attack is None else [{"spec": attack, "rate": 0.5}],
        }
        return resolve(assign(tables, self.assignments))


@dataclass
class Findings:
    """All tables of the experiment, in plain rows. `reference` are perplexities by name and seed."""

    question: Question
    tests: list[ScoreRow] = field(default_factory=list)
    spread: list[SpreadRow] = field(default_factory=list)
    spread_steps: list[Spread] = field(default_factory=list)
    cascade: list[CascadeRow] = field(default_factory=list)
    training: list[Trained] = field(default_factory=list)
    replicas: list[ReplicaRow] = field(default_factory=list)
    jump: list[Row] = field(default_factory=list)
    unigram: dict[int, float] = field(default_factory=dict)
    repeated: int = 0
    repeated_equal: int = 0
    failed: list[str] = field(default_factory=list)
