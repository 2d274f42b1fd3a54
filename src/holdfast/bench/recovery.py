"""The experiment on recovery: crashes at every stage and moment, lies under every remedy, a day among spot machines.

part        what is measured
crash       one worker goes: takeover against the last checkpoint; several go at once
lie         one stage lies once: replace, skip, restart, relay, and a spot check that finds it afterwards
trace       a virtual day among machines that come and go
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.bench.described import Size
from holdfast.bench.incidents import (
    CHECKPOINT,
    MOMENTS,
    STAGES,
    TAKEOVER,
    Incident,
    comes,
    crash,
    crash_config,
    lie,
    lie_config,
)
from holdfast.bench.killed import Kill, kill_config, kill_some
from holdfast.bench.spot import Market
from holdfast.bench.trace import DAY_SIZE, FOREVER_S, HOUR_S, Day, Ways, day, day_config, expected_goodput
from holdfast.config import RunConfig
from holdfast.faults import Moment
from holdfast.sweep.cell import Cell
from holdfast.sweep.record import Record, telling_first
from holdfast.sweep.study import Study

PARTS = ("crash", "lie", "trace", "processes")
UNTRUSTED = tuple(range(1, STAGES - 1))
REMEDIES = ("replace", "skip", "restart", "relay")
FOUND_LATER = "spot-check,check_steps=1"
OFF = Ways(CHECKPOINT, 10**6)
"""Defences off, and never a checkpoint."""
CALM_H = FOREVER_S / HOUR_S
TELLING = ("extra_s", "steps_lost", "shadows_s", "slower", "equal", "steps", "rollbacks", "computed", "lost_workers")
"""What a report shows first."""
WAYS = (Ways(TAKEOVER, 16), Ways(CHECKPOINT, 1), Ways(CHECKPOINT, 4), Ways(CHECKPOINT, 16))


@dataclass(frozen=True)
class Plan:
    """What is to be measured. `moments` are those of takeovers, `fallback_moments` those of the way by checkpoint."""

    parts: tuple[str, ...] = PARTS
    network: str = "gigabit"
    size: Size = field(default_factory=Size)
    stages: tuple[int, ...] = UNTRUSTED
    moments: tuple[Moment, ...] = MOMENTS
    fallback_moments: tuple[Moment, ...] = ("begin", "backward", "update")
    together: tuple[tuple[int, ...], ...] = ((1, 3), (2, 4), (1, 2), (1, 2, 3, 4))
    directions: tuple[str, ...] = ("forward", "backward")
    day_size: Size = DAY_SIZE
    ways: tuple[Ways, ...] = WAYS
    lives_h: tuple[float, ...] = (24.0, 8.0, 3.0)
    gone_min: float = 10.0
    restart_s: float = 0.0
    hours: float = 24.0
    seeds: tuple[int, ...] = (0,)
    kills: int = 3


def quick() -> Plan:
    """A subset that takes seconds; the processes are left out, because each takes seconds to start."""
    return Plan(
        parts=PARTS[:3],
        stages=(2,),
        moments=("backward",),
        fallback_moments=("backward",),
        together=((1, 3),),
        directions=("forward",),
        ways=(Ways(TAKEOVER, 5), Ways(CHECKPOINT, 5)),
        lives_h=(1.0,),
        hours=2.0,
    )


@dataclass(frozen=True)
class TraceRow:
    """A day against the calm day of the same way, and against the calm one with defences off. `expected` is by arithmetic."""

    defence: str
    every: int
    life_h: float
    gone_min: float
    hours: float
    seed: int
    lost_workers: int
    takeovers: int
    rollbacks: int
    steps: int
    computed: int
    step_s: float
    checkpoint_s: float
    deployment_s: float
    goodput: float
    of_own: float
    expected: float
    ended: str | None


@dataclass(frozen=True)
class Recovery:
    """The rows of the experiment; `days` have the course of each day of the trace."""

    incidents: list[Incident]
    trace: list[TraceRow]
    days: list[Day]
    kills: list[Kill] = field(default_factory=list)

    def findings(self) -> list[str]:
        """What is not as it was promised: weights under takeover and replace, steps lost by them."""
        found = []
        for row in self.incidents:
            exact = row.way.startswith(TAKEOVER) and "skip" not in row.way
            told = f"{row.what} of stages {row.stages} at {row.moment}, {row.way}"
            if exact and not row.equal:
                found.append(f"{told}: other weights than the run in which nothing happened")
            if exact and row.what == "crash" and len(row.stages) == 1 and row.steps_lost:
                found.append(f"{told}: {row.steps_lost} steps lost")
        found += ["killed processes: other weights than in memory"] if any(not kill.equal for kill in self.kills) else []
        return found


def cells_of(plan: Plan) -> list[Cell]:
    """Every cell of the plan: incidents, days (the calm ones first), kills."""
    found: list[Cell] = []
    place = {"network": plan.network, "size": dataclasses.asdict(plan.size)}
    if "crash" in plan.parts:
        for way, stages, moment in _struck(plan):
            axes = {"way": way, "stages": "+".join(map(str, stages)), "moment": moment}
            found.append(_cell("crash", axes, crash_config(plan.network, plan.size, way, stages, moment), **place))
    if "lie" in plan.parts:
        ways = [*(f"duplicate,on_alert={remedy}" for remedy in REMEDIES), FOUND_LATER]
        for way, stage, direction in itertools.product(ways, plan.stages, plan.directions):
            axes = {"way": way, "stages": str(stage), "moment": direction}
            found.append(_cell("lie", axes, lie_config(plan.network, plan.size, way, stage, direction), **place))
    if "trace" in plan.parts:
        found += [_day_cell(plan, way, market) for way, market in _days(plan)]
    if "processes" in plan.parts:
        seed = plan.seeds[0]
        found.append(_cell("processes", {"kills": plan.kills, "seed": seed}, kill_config(plan.kills)))
    return found


def study_of(plan: Plan) -> Study:
    """The plan as a study. Raises ConfigError for what cannot be measured."""
    return Study("recovery", cells_of(plan), measure_cell, command_of, is_real)


def is_real(cell: Cell) -> bool:
    """Whether its seconds are those of this machine, which nothing else should use then."""
    return cell.axes["part"] == "processes"


def measure_cell(cell: Cell) -> dict[str, Any]:
    """An incident, or a day: its row without the axes. Kills: `rows`, one each."""
    axes: dict[str, Any] = dict(cell.axes)
    part = axes.pop("part")
    if part == "processes":
        return {"rows": [dataclasses.asdict(kill) for kill in kill_some(cell.config, axes["kills"], axes["seed"])]}
    network, size = cell.more["network"], Size(**cell.more["size"])
    row: Incident | Day
    if part == "trace":
        market = Market((axes["life_h"] or CALM_H) * HOUR_S, axes["gone_min"] * 60, axes["seed"])
        way = Ways(axes["defence"], axes["every"] or OFF.every)
        row = day(network, size, way, market, axes["hours"], cell.more["restart_s"])
    else:
        stages, moment = tuple(map(int, axes["stages"].split("+"))), axes["moment"]
        if part == "crash":
            row = crash(network, size, axes["way"], stages, moment)
        else:
            row = lie(network, size, axes["way"], stages[0], moment)
    told = {name: value for name, value in dataclasses.asdict(row).items() if name not in (*axes, "what")}
    return telling_first(told, TELLING)


def command_of(cell: Cell) -> str:
    """The command line that measures the cell again, with as little else as can be."""
    words = ["holdfast", "bench", "recovery", "--part", str(cell.axes["part"])]
    if "network" in cell.more:
        words += ["--network", cell.more["network"]]
    if cell.axes["part"] == "trace" and cell.axes["life_h"] is not None:
        words += ["--life-hours", f"{cell.axes['life_h']:g}", "--gone-minutes", f"{cell.axes['gone_min']:g}"]
        words += ["--hours", f"{cell.axes['hours']:g}", "--restart-seconds", f"{cell.more['restart_s']:g}"]
        words += ["--seeds", str(int(cell.axes["seed"] or 0) + 1)]
    return shlex.join(words)


def gather(plan: Plan, records: Sequence[Record]) -> Recovery:
    """The rows of what was measured."""
    incidents: list[Incident] = []
    days: dict[tuple[Any, ...], Day] = {}
    kills: list[Kill] = []
    for record in records:
        axes: dict[str, Any] = dict(record.axes)
        part, result = axes.pop("part"), record.result
        if result is None:
            continue
        if part == "processes":
            kills += [Kill(**row) for row in result["rows"]]
        elif part == "trace":
            line = [(hour, steps) for hour, steps in result["line"]]
            calm = {"life_h": axes["life_h"] or CALM_H, "every": axes["every"] or OFF.every}
            found = Day(**{**axes, **calm, **result, "line": line})
            days[found.defence, found.every, found.life_h, found.seed] = found
        else:
            stages = tuple(map(int, axes.pop("stages").split("+")))
            incidents.append(Incident(what=str(part), stages=stages, **axes, **result))
    rows = list(_trace_rows(plan, days))
    return Recovery(incidents, rows, list(days.values()), kills)


def _struck(plan: Plan) -> list[tuple[str, tuple[int, ...], Moment]]:
    struck: list[tuple[str, tuple[int, ...], Moment]] = []
    struck += [(TAKEOVER, (stage,), moment) for stage in plan.stages for moment in plan.moments if comes(stage, moment)]
    struck += [(CHECKPOINT, (stage,), moment) for stage in plan.stages for moment in plan.fallback_moments]
    struck += [(way, stages, "begin") for stages in plan.together for way in (TAKEOVER, CHECKPOINT)]
    return struck


def _days(plan: Plan) -> list[tuple[Ways, Market]]:
    """Calm days first, the one with defences off before all: nobody goes in them."""
    calm = Market(FOREVER_S, plan.gone_min * 60)
    lively = itertools.product(plan.seeds, plan.lives_h, plan.ways)
    found = [(Market(life_h * HOUR_S, plan.gone_min * 60, seed), way) for seed, life_h, way in lively]
    return [*((way, calm) for way in (OFF, *plan.ways)), *((way, market) for market, way in found)]


def _day_cell(plan: Plan, way: Ways, market: Market) -> Cell:
    """Its axes have no life where nobody goes, and no interval where no checkpoint is written."""
    life_h = market.life_s / HOUR_S if market.life_s < FOREVER_S else None
    every = way.every if way != OFF else None
    axes = {"defence": way.defence, "every": every, "life_h": life_h, "gone_min": market.gone_s / 60, "hours": plan.hours}
    more = {"network": plan.network, "size": dataclasses.asdict(plan.day_size), "restart_s": plan.restart_s}
    config = day_config(plan.network, plan.day_size, way)
    return _cell("trace", {**axes, "seed": market.seed}, config, **more)


def _cell(part: str, axes: Mapping[str, Any], config: RunConfig, **more: Any) -> Cell:
    told = {**more, "asked": dict(axes)}  # whoever goes when is no setting of a run
    return Cell({"part": part, **axes}, config.model_dump(mode="json", exclude_none=True), f"recovery: {part}", told)


def _trace_rows(plan: Plan, days: Mapping[tuple[Any, ...], Day]) -> Iterator[TraceRow]:
    """Each day against the calm one of its way, and the calm one with defences off; where those were measured."""
    off = days.get((OFF.defence, OFF.every, CALM_H, 0))
    for way, market in _days(plan):
        found = days.get((way.defence, way.every, market.life_s / HOUR_S, market.seed))
        calm = days.get((way.defence, way.every, CALM_H, 0))
        if found is None or calm is None or off is None or market.life_s >= FOREVER_S:
            continue
        yield _row(found, calm, off, expected_goodput(calm, market, off.step_s, plan.restart_s))


def _row(found: Day, calm: Day, off: Day, expected: float) -> TraceRow:
    shared = {f.name: getattr(found, f.name) for f in dataclasses.fields(TraceRow) if hasattr(found, f.name)}
    figures = {"step_s": calm.step_s, "checkpoint_s": calm.checkpoint_s, "deployment_s": calm.deployment_s}
    ratios = {"goodput": found.steps / off.steps, "of_own": found.steps / calm.steps, "expected": expected}
    return TraceRow(**{**shared, **figures, **ratios})
