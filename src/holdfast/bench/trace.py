"""A virtual day among machines that come and go: how much work is done, with takeover and with checkpoints.

    goodput = steps that stand at the end of the day / steps of the same day with defences off and nobody going

The run is the protocol's own, step by step, on small tensors that count for large ones; the market draws who goes when
(`bench.spot`), the same for every way. A restart costs the steps since the checkpoint and the new deployment on the described
links; that new processes take time to start is an option (`restart_s`), and not counted without it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from holdfast.bench.described import Size
from holdfast.bench.incidents import STAGES, incident_config
from holdfast.bench.spot import Market, SpotEngine
from holdfast.config import RunConfig
from holdfast.errors import FaultWindowExceeded
from holdfast.event import Event, StepSealed
from holdfast.sweep.jobs import job_of
from holdfast.trainer import Trainer

HOUR_S = 3600.0
DAY_SIZE = Size(seconds_per_forward=8.0, tensor_bytes=640 * 1024**2)
"""160 sequences of 1,024 tokens a micro-batch: a step of some four minutes, as runs with large batches have."""
FOREVER_S = 1e12


@dataclass(frozen=True, slots=True)
class Ways:
    """A way through the day: the defence, and the steps between checkpoints."""

    defence: str
    every: int

    def __str__(self) -> str:
        return f"{self.defence}, checkpoint every {self.every}"


@dataclass(frozen=True)
class Day:
    """One way through one day. `steps` stand at its end, `computed` were sealed in all; `line` is (hour, steps that stand).

    `checkpoint_s` is what a checkpoint adds to a step and `deployment_s` what a deployment takes, both read off a calm run.
    `ended` says why the run could not go on, if it could not.
    """

    defence: str
    every: int
    life_h: float
    gone_min: float
    hours: float
    seed: int
    steps: int
    computed: int
    lost_workers: int
    rollbacks: int
    takeovers: int
    step_s: float
    checkpoint_s: float
    deployment_s: float
    line: list[tuple[float, int]] = field(default_factory=list)
    ended: str | None = None


def day(network: str, size: Size, way: Ways, market: Market, hours: float, restart_s: float = 0.0) -> Day:
    """Run until the virtual day is over; after a rollback nothing happens for `restart_s`."""
    until_s = hours * HOUR_S
    config = day_config(network, size, way)
    engine = SpotEngine(config, market, until_s, restart_s)
    counts: Counter[str] = Counter()
    line: list[tuple[float, int]] = [(0.0, 0)]
    moments: list[tuple[int, float]] = []

    def observe(event: Event, seconds: float) -> None:
        counts[type(event).__name__] += 1
        if isinstance(event, StepSealed):
            moments.append((event.step, seconds))
            if seconds <= until_s:
                line.append((seconds / HOUR_S, event.step + 1))
        if seconds >= until_s:
            trainer.stop()

    trainer = Trainer(config, observers=(observe,), job=job_of(config), open_engine=lambda: engine)
    ended = None
    try:
        trainer.run()
    except FaultWindowExceeded as error:
        ended = str(error)
    step_s, checkpoint_s, deployment_s = _calm_figures(moments, way.every)
    return Day(
        way.defence,
        way.every,
        market.life_s / HOUR_S,
        market.gone_s / 60,
        hours,
        market.seed,
        line[-1][1],
        len(line) - 1,
        engine.gone,
        counts["RolledBack"],
        counts["TakenOver"],
        step_s,
        checkpoint_s,
        deployment_s,
        line,
        ended,
    )


def day_config(network: str, size: Size, way: Ways) -> RunConfig:
    """More steps than a day has."""
    return incident_config(network, size, way.defence, steps=100_000, checkpoint_every=way.every)


def _calm_figures(moments: list[tuple[int, float]], every: int) -> tuple[float, float, float]:
    """A step, what a checkpoint adds to the one after it, and the first deployment: the least there were, so of calm times."""
    plain, kept = math.inf, math.inf
    for (before, began), (step, ended) in pairwise(moments):
        if step == before + 1:
            if step % every == 0:
                kept = min(kept, ended - began)
            else:
                plain = min(plain, ended - began)
    first = moments[0][1] if moments else 0.0
    if plain == math.inf:  # a checkpoint after every step is a part of each
        plain = kept if kept < math.inf else first
    checkpoint_s = max(0.0, kept - plain) if kept < math.inf else 0.0
    return plain, checkpoint_s, max(0.0, first - plain)


def expected_goodput(calm: Day, market: Market, clean_step_s: float, restart_s: float = 0.0) -> float:
    """The share of a calm day's steps by arithmetic, from `calm`, the same way without failures.

    f is how often any of the STAGES-2 machines goes. An interval of T seconds of work and a checkpoint of C then takes
    (1/f + R)(exp(f(T+C)) - 1) seconds, where R is a new deployment (Daly 2006, equation 13). With takeover a loss costs one
    step and nothing is rolled back. That fewer machines are slower is left out.
    """
    work_s = calm.every * calm.step_s
    rate = (STAGES - 2) / (market.life_s + market.gone_s)
    whole_s = work_s + calm.checkpoint_s
    if calm.defence == "none":
        exponent = min(rate * whole_s, 700.0)
        spent_s = (1 / rate + calm.deployment_s + restart_s) * math.expm1(exponent)
    else:
        spent_s = whole_s * (1 + rate * calm.step_s)
    return clean_step_s / calm.step_s * work_s / spent_s
