"""The chronicle of a run: every event is told with its time, and what was counted and measured becomes the result.

members, engine --event, seconds--> Chronicle --event, time of the run--> observers
                                        |
                     counts, standing, meter  -->  Progress (in a checkpoint), RunResult (at the end)
"""

from __future__ import annotations

import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from holdfast.checkpoint import version_of
from holdfast.cluster import Cluster
from holdfast.config import RunConfig
from holdfast.evaluate import Evaluation
from holdfast.event import VIRTUAL, Event
from holdfast.job import Job
from holdfast.keeper import Keeper
from holdfast.progress import Progress
from holdfast.result import Counts, GroundTruth, Meter, RunFacts, RunResult, summarise
from holdfast.standing import Standing

Observer = Callable[[Event, float], None]
Usage = tuple[float, int, Mapping[str, float]]
"""The time of an engine's clock, bytes sent, seconds by kind of work."""

NOT_SCORED = Evaluation(math.nan, math.nan, math.nan, 0, 0)


class Chronicle:
    """`truth` knows what was really forged (None: nobody does). `before` is what came before the run was resumed."""

    def __init__(self, config: RunConfig, observers: Sequence[Observer], truth: GroundTruth | None) -> None:
        self.run_id = uuid.uuid4().hex[:12]
        self.before = Progress()
        self.clock = VIRTUAL
        self.counts = Counts()
        self.standing = Standing(config.defence, lambda: Counter(self.before.lies) + self.counts.blamed_workers)
        self.observers: tuple[Observer, ...] = (self.counts, *observers)
        self._out = config.output.dir
        self._truth = truth
        self._meter = Meter()
        self._began = time.perf_counter()
        self._training_s = 0.0
        self._steps_since: float | None = None

    def tell(self, event: Event, seconds: float = 0.0) -> None:
        """Pass an event on, in seconds since the start of the run (a rollback or a resume starts the engine's clock anew)."""
        self.standing.hear(event)
        self._meter.latest_s = max(self._meter.latest_s, seconds)
        at = self.before.virtual_s + self._meter.virtual_s + self._meter.latest_s
        for observer in self.observers:
            observer(event, at)

    # -- what it takes -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._began = time.perf_counter()

    def start_clock(self) -> None:
        """Steps are made from here on."""
        self._steps_since = time.perf_counter()

    def halt_clock(self) -> None:
        """No step is made from here on: machines may have to be waited for, or the run is over."""
        self._training_s, self._steps_since = self._time_in_steps(), None

    def _time_in_steps(self) -> float:
        running = 0.0 if self._steps_since is None else time.perf_counter() - self._steps_since
        return self._training_s + running

    def measure(self, cluster: Cluster) -> None:
        """Add what a cluster has used, at its end."""
        self._meter.add(*usage_of(cluster))

    # -- what it comes to --------------------------------------------------------------------------------------------

    @property
    def rollbacks(self) -> int:
        """Of the whole run, what came before it was resumed included."""
        return int(self.before.sums.get("rollbacks", 0)) + self.counts.rollbacks

    def so_far(self, job: Job, keeper: Keeper, version: int, usage: Usage) -> Progress:
        """What the run has counted up to `version`, with what this deployment has used until now."""
        meter = replace(self._meter, seconds=Counter(self._meter.seconds))
        meter.add(*usage)
        here = self._result(job, keeper, version, NOT_SCORED, meter)
        return Progress.of(self.before.plus(here), frozenset(self.standing.lost))

    def result(self, job: Job, keeper: Keeper, steps: int, score: Evaluation, *, interrupted: bool) -> RunResult:
        """What this process has come to; what came before it was resumed is not in it."""
        return self._result(job, keeper, steps, score, self._meter, interrupted=interrupted)

    def _result(
        self, job: Job, keeper: Keeper, steps: int, score: Evaluation, meter: Meter, *, interrupted: bool = False
    ) -> RunResult:
        run = RunFacts(
            self.run_id,
            steps,
            job.batches.tokens_per_step * len(self.counts.sealed),
            time.perf_counter() - self._began,
            self._time_in_steps(),
            "",
            keeper.certified,
            interrupted,
            self._out,
            None if keeper.newest is None else version_of(keeper.newest),
            self.clock,
        )
        return summarise(run, score, self.counts, meter, self._truth)


def usage_of(cluster: Cluster) -> Usage:
    """Up to now, everything that was asked of its engine done."""
    launcher = cluster.launcher
    return launcher.now, launcher.bytes_sent, launcher.seconds_by_kind


def glance_at(cluster: Cluster) -> Usage:
    """The same as it is known here and now, without asking anybody."""
    glance = cluster.launcher.glance()
    return cluster.launcher.now, glance.bytes_sent, glance.seconds
