"""Do tests on values find lies in a pipeline? Scores of honest and of forged traffic, thresholds from honest steps, rates.

    steps of a run    | learning | calibration |        test        |
                      0         T/4           T/2                   T
    one      one of the M micro-batches of a step is forged: the honest majority that federated defences assume
    all      all of them are: the paper's campaign, because one worker computes them all

A score counts in units of its stage's median in the calibration steps; the threshold is their 99 % quantile over all stages.
What it gives in the test steps is measured there. `best` is the rate at the threshold that would have given 1 % false alarms in
the test steps themselves, which nobody knows beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

from holdfast.attacks import Ledger
from holdfast.bench.intervals import proportion
from holdfast.bench.outliers import ABSOLUTE, TESTS, TINY, VIEWS, Past, scores, view
from holdfast.bench.traffic import WEIGHTS, Window
from holdfast.claim import ClaimKey, Direction

LEVEL = 0.01
"""False alarms that the threshold is meant to give."""
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""False positive rates at which the curve is told."""
HOW = ("one", "all")

Slot = tuple[str, str, str]
"""Direction, view and test."""
Sample = tuple[int, int, Tensor]
"""Step, stage and scores."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One test against one attack, pooled over seeds and stages; counts are of claims in the test steps."""

    direction: str
    view: str
    test: str
    attack: str
    how: str
    seeds: int
    lies: int
    detected: int
    tpr: float
    tpr_low: float
    tpr_high: float
    honest: int
    alarms: int
    fpr: float
    fpr_low: float
    fpr_high: float
    best: float
    auc: float
    auc_low: float
    auc_high: float
    roc: tuple[float, ...] = ()


@dataclass
class Scoreboard:
    """The scores of one seed's run of `steps` steps."""

    steps: int
    honest: dict[Slot, list[Sample]] = field(default_factory=dict)
    lied: dict[tuple[Slot, str, str], list[Sample]] = field(default_factory=dict)
    _past: dict[tuple[int, str, str], Past] = field(default_factory=dict)

    def add(self, window: Window) -> None:
        """Score a window of activations or their gradients; others are passed over."""
        if window.kind == WEIGHTS:
            return
        struck = window.step % len(window.honest)
        for name in VIEWS:
            past = self._past.setdefault((window.stage, window.kind, name), Past())
            honest = view(window.honest, window.shape, name)
            for test, found in scores(honest, past).items():
                self.honest.setdefault((window.kind, name, test), []).append((window.step, window.stage, found))
            for attack, told in window.forged.items() if window.step >= self.steps // 2 else ():
                forged = view(told, window.shape, name)
                mixed = honest.clone()
                mixed[struck] = forged[struck]
                for how, stack, lies in (("one", mixed, slice(struck, struck + 1)), ("all", forged, slice(None))):
                    for test, found in scores(stack, past).items():
                        slot = ((window.kind, name, test), attack, how)
                        self.lied.setdefault(slot, []).append((window.step, window.stage, found[lies]))
            past.learn(honest)

    def gauge(self, slot: Slot) -> Gauge:
        """Units and threshold of a test, from the calibration steps."""
        test = slot[2]
        if test in ABSOLUTE:
            return Gauge({}, ABSOLUTE[test])
        window = range(self.steps // 4, self.steps // 2)
        known = [sample for sample in self.honest[slot] if sample[0] in window]
        units = {
            stage: max(float(torch.cat([found for _, at, found in known if at == stage]).median()), TINY)
            for stage in {stage for _, stage, _ in known}
        }
        gauge = Gauge(units, 0.0)
        return Gauge(units, float(numpy.quantile(gauge.read(known), 1 - LEVEL)))


@dataclass(frozen=True, slots=True)
class Gauge:
    """How the scores of a test are read: divided by its stage's unit, and odd above the threshold."""

    units: Mapping[int, float]
    threshold: float

    def read(self, samples: Sequence[Sample]) -> Any:
        """All scores as one array."""
        return numpy.concatenate([found.double().numpy() / self.units.get(stage, 1.0) for _, stage, found in samples])


@dataclass(frozen=True, slots=True)
class SeedScore:
    """What one seed's run says of one test against one attack: plain values, pooled by `score_rows`."""

    direction: str
    view: str
    test: str
    attack: str
    how: str
    lies: int
    detected: int
    honest: int
    alarms: int
    auc: float
    roc: tuple[float, ...]


def seed_scores(board: Scoreboard) -> list[SeedScore]:
    """Of every test and attack."""
    gauges = {slot: board.gauge(slot) for slot in board.honest}
    found = []
    for key in board.lied:
        slot, attack, how = key
        gauge = gauges[slot]
        quiet = gauge.read([sample for sample in board.honest[slot] if sample[0] >= board.steps // 2])
        loud = gauge.read(board.lied[key])
        caught, false = int((loud > gauge.threshold).sum()), int((quiet > gauge.threshold).sum())
        roc = tuple(curve(quiet, loud))
        found.append(SeedScore(*slot, attack, how, len(loud), caught, len(quiet), false, area(quiet, loud), roc))
    return found


def score_rows(seeds: Sequence[Sequence[SeedScore]]) -> list[ScoreRow]:
    """The table over all seeds."""
    groups: dict[tuple[str, ...], list[SeedScore]] = {}
    for score in (score for one in seeds for score in one):
        groups.setdefault((score.direction, score.view, score.test, score.attack, score.how), []).append(score)
    return [_row(key, group) for key, group in groups.items()]


def _row(key: tuple[str, ...], group: Sequence[SeedScore]) -> ScoreRow:
    roc = tuple(float(value) for value in numpy.mean([score.roc for score in group], axis=0))
    lies = _share(sum(score.detected for score in group), sum(score.lies for score in group))
    honest = _share(sum(score.alarms for score in group), sum(score.honest for score in group))
    areas = [score.auc for score in group]
    of_areas = float(numpy.mean(areas)), min(areas), max(areas)
    direction, name, test, attack, how = key
    return ScoreRow(direction, name, test, attack, how, len(group), *lies, *honest, roc[GRID.index(LEVEL)], *of_areas, roc)


def area(quiet: Any, loud: Any) -> float:
    """The area under the ROC curve: the probability that a lie scores higher than an honest value, ties half.

    >>> area(numpy.array([1.0, 2.0]), numpy.array([2.0, 3.0]))
    0.875
    """
    ordered = numpy.sort(quiet)
    below = numpy.searchsorted(ordered, loud, "left")
    upto = numpy.searchsorted(ordered, loud, "right")
    return float(((below + upto) / 2).mean() / len(ordered))


def curve(quiet: Any, loud: Any) -> list[float]:
    """The share of lies above the threshold that at most each rate of GRID of the honest values is above.

    >>> curve(numpy.arange(100.0), numpy.array([98.5, 200.0]))[2:4]
    [0.5, 1.0]
    """
    ordered = numpy.sort(quiet)[::-1]
    found = []
    for rate in GRID:
        allowed = int(rate * len(ordered) + 1e-9)
        found.append(1.0 if allowed >= len(ordered) else float((loud > ordered[allowed]).mean()))
    return found


FORGED, DOWNSTREAM, OTHERS = "forged", "honest, from a forged input", "honest, others"


@dataclass(frozen=True, slots=True)
class CascadeCount:
    """What a test says in one seed's run in which lies are used: alarms about claims of one kind; honest ones are false
    accusations.
    """

    attack: str
    direction: str
    view: str
    test: str
    claims: str
    count: int
    alarms: int


@dataclass(frozen=True, slots=True)
class CascadeRow(CascadeCount):
    """The same over all seeds, with the share and its interval."""

    share: float
    low: float
    high: float


@dataclass
class Cascade:
    """Counts alarms in an undefended run of `attack`, by the gauges of the honest run of the same seed."""

    attack: str
    board: Scoreboard
    alarms: dict[tuple[str, str, str, str], list[bool]] = field(default_factory=dict)

    def count(self, windows: Sequence[Window], ledger: Ledger) -> None:
        gauges = {slot: self.board.gauge(slot) for slot in self.board.honest}
        struck = {(key.step, key.stage, str(key.direction)) for key in ledger.keys}
        past: dict[tuple[int, str, str], Past] = {}
        for window in windows:
            kind = _kind(window, ledger)
            for name in VIEWS:
                known = past.setdefault((window.stage, window.kind, name), Past())
                stack = view(window.honest, window.shape, name)
                if window.step >= self.board.steps // 2:
                    for test, found in scores(stack, known).items():
                        gauge = gauges[window.kind, name, test]
                        odd = gauge.read([(window.step, window.stage, found)]) > gauge.threshold
                        self.alarms.setdefault((window.kind, name, test, kind), []).extend(bool(one) for one in odd)
                if not any(step == window.step for step, _, _ in struck):
                    known.learn(stack)


def cascade_counts(cascade: Cascade) -> list[CascadeCount]:
    """Plain values, pooled by `cascade_rows`."""
    return [CascadeCount(cascade.attack, *key, len(alarms), sum(alarms)) for key, alarms in cascade.alarms.items()]


def cascade_rows(counts: Iterable[CascadeCount]) -> list[CascadeRow]:
    """Pooled over the seeds."""
    pooled: dict[tuple[str, str, str, str, str], list[CascadeCount]] = {}
    for one in counts:
        pooled.setdefault((one.attack, one.direction, one.view, one.test, one.claims), []).append(one)
    return [
        CascadeRow(*key, *_share(sum(one.alarms for one in group), sum(one.count for one in group)))
        for key, group in pooled.items()
    ]


def _kind(window: Window, ledger: Ledger) -> str:
    """A campaign strikes all micro-batches of a step, so that a window is of one kind."""
    lies = [key for key in ledger.keys if key.step == window.step]
    if any((key.stage, str(key.direction)) == (window.stage, window.kind) for key in lies):
        return FORGED
    return DOWNSTREAM if any(_feeds(key, window) for key in lies) else OTHERS


def _feeds(lie: ClaimKey, window: Window) -> bool:
    """Whether what the window's stage worked from in this step came of the lie."""
    if lie.direction is Direction.FORWARD:
        return window.kind == Direction.BACKWARD or window.stage > lie.stage
    return window.kind == Direction.BACKWARD and window.stage < lie.stage


def _share(part: int, whole: int) -> tuple[int, int, float, float, float]:
    """The whole, the part, its share and the interval of that."""
    interval = proportion(part, whole)
    assert interval is not None, "nothing was counted"
    return whole, part, part / whole, *interval


def of_tests(rows: Sequence[ScoreRow], **wanted: str) -> Iterator[ScoreRow]:
    """The rows that agree with all that is `wanted`, in the order of the tests."""
    order = list(TESTS)
    found = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    yield from sorted(found, key=lambda row: order.index(row.test))
