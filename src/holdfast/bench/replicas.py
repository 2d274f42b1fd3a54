"""Aggregation where it belongs: R workers compute the same micro-batch, f of them lie together; does the truth come out?

    alike     all compute with the same bytes, so R-f inputs are equal (measured: a second computation gives the same bytes)
    unlike    three honest ones on unlike arithmetic: nobody lies, and nobody has the same bytes

It costs R times the computing of the stage, all the time, where a duplicated block costs 2 times and asks a referee when two
differ.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from holdfast.bench.aggregators import AGGREGATORS
from holdfast.bench.intervals import proportion
from holdfast.bench.traffic import WEIGHTS, Window
from holdfast.job import Job
from holdfast.numerics import pinned, resolve_arithmetic
from holdfast.rehearsal import Rehearsal

COMMITTEES = ((2, 1), (3, 1), (5, 1), (5, 2), (3, 2))
"""Replicas and liars among them; in the last the liars are the majority."""
EVERY = 8
"""Steps between those that are looked at."""
ARITHMETICS = ("native", "split-sums", "math-attention")
ALIKE, UNLIKE = "alike", "unlike"


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """`exact` outcomes are the honest bytes; `undefined` are those where the aggregator has no answer. `error` is the relative
    distance from the honest tensor, of those with an answer.
    """

    aggregator: str
    machines: str
    replicas: int
    liars: int
    outcomes: int
    exact: int
    exact_share: float
    exact_low: float
    exact_high: float
    undefined: int
    error: float | None
    worst: float | None


@dataclass(frozen=True, slots=True)
class Ballot:
    """The outcomes of one seed; an error of None is no answer."""

    aggregator: str
    machines: str
    replicas: int
    liars: int
    exact: int
    errors: tuple[float | None, ...]


@dataclass
class Committee:
    """Collects outcomes by aggregator, kind of machines, replicas and liars; None: no answer."""

    errors: dict[tuple[str, str, int, int], list[float | None]] = field(default_factory=dict)
    exact: dict[tuple[str, str, int, int], int] = field(default_factory=dict)
    repeated: int = 0
    equal: int = 0

    def add(self, window: Window) -> None:
        """Every attack on one micro-batch of a step, against every committee."""
        self.repeated += window.replicas
        self.equal += window.equal
        if window.kind == WEIGHTS or window.step % EVERY:
            return
        honest = window.honest[0]
        for told in window.forged.values():
            for replicas, liars in COMMITTEES:
                self._vote(ALIKE, torch.stack([honest] * (replicas - liars) + [told[0]] * liars), liars, honest)

    def unlike(self, job: Job) -> None:
        """One honest step of the job on three arithmetics; the truth is what the first one says."""
        with pinned(job.config.model.device):
            rehearsal = Rehearsal(job, [resolve_arithmetic(name) for name in ARITHMETICS])
            for accounts in rehearsal.step(0, job.config.optimizer.learning_rate):
                tensors = [result for result in accounts.results.values() if isinstance(result, Tensor)]
                if tensors:
                    stack = torch.stack([job.packing.unpack(tensor).float().flatten() for tensor in tensors])
                    self._vote(UNLIKE, stack, 0, stack[0])

    def _vote(self, machines: str, stack: Tensor, liars: int, honest: Tensor) -> None:
        for name, aggregate in AGGREGATORS.items():
            key = (name, machines, len(stack), liars)
            found = self.errors.setdefault(key, [])
            self.exact.setdefault(key, 0)
            try:
                answer = aggregate(stack, liars)
            except ValueError:
                found.append(None)
                continue
            self.exact[key] += torch.equal(answer, honest)
            found.append(float(torch.linalg.vector_norm(answer - honest) / torch.linalg.vector_norm(honest)))

    def ballots(self) -> list[Ballot]:
        """Plain values, pooled by `replica_rows`."""
        return [Ballot(*key, self.exact[key], tuple(errors)) for key, errors in self.errors.items()]


def replica_rows(ballots: Iterable[Ballot]) -> list[ReplicaRow]:
    """Pooled over attacks, stages, directions and seeds."""
    groups: dict[tuple[str, str, int, int], list[Ballot]] = {}
    for one in ballots:
        groups.setdefault((one.aggregator, one.machines, one.replicas, one.liars), []).append(one)
    return [_row(key, group) for key, group in groups.items()]


def _row(key: tuple[str, str, int, int], group: Sequence[Ballot]) -> ReplicaRow:
    outcomes = [error for one in group for error in one.errors]
    exact = sum(one.exact for one in group)
    answers = [error for error in outcomes if error is not None]
    interval = proportion(exact, len(outcomes))
    assert interval is not None, "a committee has met"
    middle, worst = (statistics.median(answers), max(answers)) if answers else (None, None)
    return ReplicaRow(*key, len(outcomes), exact, exact / len(outcomes), *interval, len(outcomes) - len(answers), middle, worst)
