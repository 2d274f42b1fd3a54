"""`holdfast bench aggregation`: do the defences of federated learning carry over to a pipeline?

    start --> honest run, watched --> tests on values: found lies, false alarms       (carryover, outliers)
      |                           --> how traffic varies with the data                (spread)
      |                           --> replicas of one stage, aggregated               (replicas)
      |------> undefended runs, lies in earnest: who is accused                       (carryover)
      `------> honest training, micro-batches aggregated                              (aggregated)
    small runs under `duplicate` and `duplicate-only`: what the jump is worth         (workshop, rows)

The start is a model that knows the text already, as in the paper: pre-trained here, or given.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from holdfast import seeds
from holdfast.bench.aggregated import TREATMENTS, WEIGHT_GRADIENT, Trained, train
from holdfast.bench.carryover import Cascade, CascadeRow, Scoreboard, ScoreRow, cascade_rows, score_rows
from holdfast.bench.cell import Setup
from holdfast.bench.replicas import Committee, ReplicaRow, replica_rows
from holdfast.bench.rows import Row, rows_of
from holdfast.bench.spread import Spread, SpreadRow, spread_rows, spreads
from holdfast.bench.suites import Grid, plan
from holdfast.bench.traffic import Window, forger, watch
from holdfast.bench.workshop import Outcome, run_cells
from holdfast.config import RunConfig, assign, resolve
from holdfast.errors import ConfigError
from holdfast.experiment import Experiment
from holdfast.job import Job
from holdfast.trainer import prepare_tested

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

Tell = Callable[[str], None]


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


def run(question: Question, tell: Tell = lambda text: None) -> Findings:
    """The whole experiment; `tell` hears one line for each piece of work."""
    findings = Findings(question)
    boards: list[Scoreboard] = []
    committees: list[Committee] = []
    cascades: list[Cascade] = []
    in_pipeline = [part for part in question.parts if part != "jump"]
    for seed in question.seeds if in_pipeline else ():
        with tempfile.TemporaryDirectory() as directory:
            start = question.model or _pretrained(question, seed, Path(directory), tell)
            job = prepare_tested(question.config(start, seed))
            if "tests" in in_pipeline or "cascade" in in_pipeline:
                board, committee = _watched(question, start, seed, job, findings, tell)
                boards.append(board)
                committees.append(committee)
            if "cascade" in in_pipeline:
                cascades += [_in_earnest(question, start, seed, job, attack, board, tell) for attack in IN_EARNEST]
            if "training" in in_pipeline:
                findings.unigram[seed] = unigram_perplexity(job)
                findings.training += _trained(question, start, seed, job, tell)
    findings.tests = score_rows(boards)
    findings.spread = spread_rows(findings.spread_steps)
    findings.cascade = cascade_rows(cascades)
    findings.replicas = replica_rows(committees)
    findings.repeated = sum(committee.repeated for committee in committees)
    findings.repeated_equal = sum(committee.equal for committee in committees)
    if "jump" in question.parts:
        findings.jump, findings.failed = _jump(question, tell)
    return findings


def unigram_perplexity(job: Job) -> float:
    """The perplexity of one who knows how often each token is and nothing else, with one added to each count."""
    size = len(job.tokenizer)
    counts = torch.bincount(job.batches.tokens.flatten(), minlength=size).double() + 1
    nats = -(counts / counts.sum()).log()[job.validation.ids[:, 1:].flatten()]
    return math.exp(float(nats.mean()))


def _pretrained(question: Question, seed: int, directory: Path, tell: Tell) -> str:
    steps = question.scale.pretraining
    tell(f"seed {seed}: pre-training, {steps} steps")
    out = directory / "start"
    config = question.config("", seed, steps)
    Experiment(config, output={"dir": str(out)}).run()
    return str(out / "model")


def _watched(
    question: Question, start: str, seed: int, job: Job, findings: Findings, tell: Tell
) -> tuple[Scoreboard, Committee]:
    steps = question.scale.steps
    tell(f"seed {seed}: an honest run of {steps} steps, watched")
    board, committee = Scoreboard(steps), Committee()

    def sink(window: Window) -> None:
        board.add(window)
        committee.add(window)
        findings.spread_steps += spreads(window, seed)

    watch(question.config(start, seed), job, question.attacks, sink)
    committee.unlike(job)
    return board, committee


def _in_earnest(question: Question, start: str, seed: int, job: Job, attack: str, board: Scoreboard, tell: Tell) -> Cascade:
    tell(f"seed {seed}: {attack} in earnest, undefended")
    windows: list[Window] = []
    _, ledger = watch(question.config(start, seed, attack=attack), job, (), windows.append, weights=False)
    cascade = Cascade(attack, board)
    cascade.count(windows, ledger)
    return cascade


def _trained(question: Question, start: str, seed: int, job: Job, tell: Tell) -> Iterable[Trained]:
    steps = question.scale.treated
    job = replace(job, config=question.config(start, seed, steps))
    for replaced, aggregator in question.scale.treatments:
        trained = replace(train(job, replaced, aggregator, question.middle), seed=seed)
        tell(f"seed {seed}: {replaced} by {aggregator}: loss {trained.loss:.3f}, perplexity {trained.perplexity:.1f}")
        yield trained


def _jump(question: Question, tell: Tell) -> tuple[list[Row], list[str]]:
    count, steps = question.scale.jump
    grid = Grid(JUMP_ATTACKS, JUMP_DEFENCES, rates=(1.0,), seeds=range(question.seeds[0], question.seeds[0] + count))
    setup = Setup("tiny", steps)
    planned = plan(grid, setup)
    tell(f"the jump: {len(planned.cells)} small runs")
    outcomes: Sequence[Outcome] = run_cells(planned.cells, setup)
    failed = [f"{outcome.cell}: {outcome.error}" for outcome in outcomes if outcome.measurement is None and not outcome.stopped]
    shown = [cell for cell in planned.cells if cell.defence in JUMP_DEFENCES]
    return rows_of(outcomes, setup, shown), failed
