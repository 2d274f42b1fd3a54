"""A tally is what is known of a run so far: events go in, the numbers of one line of progress come out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from holdfast.event import (
    VIRTUAL,
    Alert,
    Banned,
    CheckpointFailed,
    CheckpointWritten,
    Evaluated,
    Event,
    Joined,
    JournalSetAside,
    Paced,
    Paused,
    Placed,
    Reseated,
    Reshadowed,
    Resumed,
    Reunited,
    RolledBack,
    Ruling,
    RunFinished,
    RunStarted,
    SpotChecked,
    StagesSkipped,
    StepRestarted,
    StepSealed,
    TakenOver,
    WorkerLost,
)
from holdfast.evidence.story import printable

Clock = Callable[[], float]


@dataclass(slots=True)
class Tally:
    """Observer that counts; `clock` gives wall seconds and can be replaced in a test. `wall_seconds` are those of steps.

    `time` is what the run's own clock is called, whose seconds events come with.
    """

    label: str
    steps: int
    clock: Clock = monotonic
    step: int = 0
    loss: float = math.nan
    gradient_norm: float = math.nan
    perplexity: float = math.nan
    virtual_seconds: float = 0.0
    tokens: int = 0
    alerts: int = 0
    skipped: int = 0
    restarted: int = 0
    caught: Counter[str] = field(default_factory=Counter)
    finished: bool = False
    timed_tokens: int = 0
    wall_seconds: float = 0.0
    since: float | None = None
    time: str = VIRTUAL

    def __call__(self, event: Event, seconds: float) -> None:
        self.virtual_seconds = seconds
        match event:
            case StepSealed():
                self.step, self.loss, self.gradient_norm = event.step + 1, event.loss, event.gradient_norm
                self.tokens += event.tokens
                self._time(event.tokens)
            case Placed():  # the run has been deployed, and the next step begins
                self.since = self.clock() if self.since is None else self.since
            case RolledBack() | Paused():
                self.since = None
            case Alert():
                self.alerts += 1
            case Ruling():
                self.caught.update(event.culprits)
            case StagesSkipped():
                self.skipped += len(event.bypassed)
            case StepRestarted():
                self.restarted += 1
            case Evaluated():
                self.perplexity = event.perplexity
            case RunFinished():
                self.finished = True
            case _:
                pass

    def _time(self, tokens: int) -> None:
        """A step is sealed: it counts for the speed if its beginning is known."""
        now = self.clock()
        if self.since is not None:
            self.timed_tokens += tokens
            self.wall_seconds += now - self.since
        self.since = now

    @property
    def tokens_per_second(self) -> float:
        """By the clock on the wall, without the time in which machines were waited for."""
        return self.timed_tokens / self.wall_seconds if self.wall_seconds > 0 else math.nan

    @property
    def names_of_caught(self) -> str:
        """Worker names with the number of lies proven, worst first: `w2 ×13, w4 ×9`."""
        return ", ".join(f"{worker} ×{lies}" for worker, lies in self.caught.most_common())


def tell(event: Event) -> str | None:
    """One line of prose for an event that a watcher wants to know at once; None for the rest.

    Reasons are partly what other machines say: nothing that a terminal obeys is left in them.
    """
    told = _told(event)
    return None if told is None else printable(told)


def _told(event: Event) -> str | None:
    match event:
        case RunStarted():
            return f"run {event.run}: {event.parameters:,} parameters in {len(event.stages)} stages"
        case Resumed():
            return f"goes on after {event.version} steps"
        case Reunited():
            who = " and ".join(event.workers)
            return f"{who} still hold the last commit: nothing before step {event.version} is computed again"
        case JournalSetAside():
            return f"not from the last commit, but from the checkpoint after {event.version} steps: {event.reason}"
        case Alert():
            return f"alert: {event.key}: {event.reason}; suspects {', '.join(event.suspects) or 'unknown'}"
        case Ruling():
            who = " and ".join(event.culprits)
            return f"ruling: {event.key}: " + (f"{who} lied ({event.reason})" if who else f"inconclusive ({event.reason})")
        case StepRestarted():
            return f"step {event.step} starts again, attempt {event.attempt}: {event.reason}"
        case StagesSkipped():
            return f"step {event.step} leaves out stages {_numbers(event.bypassed)}; frozen: {_numbers(event.frozen)}"
        case WorkerLost():
            return f"step {event.step}: {event.worker} is lost: {event.reason}"
        case Joined():
            return f"step {event.step}: {event.worker} is there"
        case CheckpointWritten():
            return f"checkpoint after {event.step} steps: {event.path}"
        case CheckpointFailed():
            last = f"the last good one is {event.last}" if event.last else "there is none yet"
            return f"no checkpoint after {event.step} steps: {event.reason}; the run goes on, {last}"
        case TakenOver():
            return f"step {event.step}: {event.heir} takes stage {event.stage} over from {event.lost}"
        case Reshadowed():
            return f"{event.worker} now shadows stage {event.stage}"
        case Banned():
            return f"step {event.step}: {event.worker} is banned after {event.lies} proven lies"
        case RolledBack():
            return f"step {event.step}: back to version {event.version}: {event.reason}"
        case SpotChecked():
            found = f"{event.lies} not as accepted" if event.lies else "all as accepted"
            return f"step {event.step}: stage {event.stage} checked again: {event.claims} claims, {found}"
        case Placed():
            return f"step {event.step}: {_seats(event)}; predicted {event.step_s:.3g} s a step; {event.cause}"
        case Paced():
            return f"step {event.step}: a step takes {event.measured_s:.3g} s; predicted were {event.predicted_s:.3g} s"
        case Paused():
            return f"step {event.step}: paused: {event.reason}"
        case Reseated():
            return f"step {event.step}: other seats: {', '.join(event.primaries)}"
        case Evaluated():
            return f"step {event.step}: validation perplexity {event.perplexity:,.1f}, {event.bits_per_byte:.3f} bits per byte"
        case _:
            return None


def _seats(event: Placed) -> str:
    carried: dict[str, list[str]] = {}
    for (lo, hi), name in zip(event.layers, event.primaries, strict=True):
        carried.setdefault(name, []).append(f"{lo}-{hi - 1}" if hi - lo > 1 else f"{lo}")
    return "layers: " + ", ".join(f"{name} {' and '.join(ranges)}" for name, ranges in carried.items())


def _numbers(stages: tuple[int, ...]) -> str:
    return ", ".join(map(str, stages)) or "none"
