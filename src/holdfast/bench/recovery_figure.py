"""The figure of recovery: what a crash costs at each stage and moment, what a lie costs, and a day among spot machines.

+------------------+------------------+------------------+
| takeover:        | seconds lost:    | one lie:         |   number and colour: seconds by which the step ended later
| stage x moment   | the two ways     | every remedy     |
+------------------+------------------+------------------+
| the day, steps over hours           | goodput          |   dots: by formula
+-------------------------------------+------------------+
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.incidents import CHECKPOINT, MOMENTS, TAKEOVER, Incident
from holdfast.bench.recovery import Recovery, TraceRow
from holdfast.bench.trace import FOREVER_S, HOUR_S, Day
from holdfast.sweep.style import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    INK,
    PAPER,
    PINK,
    SKY,
    STYLE,
    VERMILION,
    finish,
    matrix,
    patches,
    require_matplotlib,
    save,
    scale_of,
    tile,
)

SHADES = (AMBER, VERMILION, "#7A3300", PINK, GREEN)
"""Of the ways by checkpoint, in the order of their intervals."""


def draw(found: Recovery, out: Path, name: str = "recovery") -> list[Path]:
    """Write the figure to `out` in every format; nothing where there is nothing to show."""
    matplotlib = require_matplotlib()
    from matplotlib import pyplot

    single = [row for row in found.incidents if row.what == "crash" and len(row.stages) == 1]
    lies = [row for row in found.incidents if row.what == "lie"]
    above, below = [name for name, rows in (("crash", single), ("lie", lies)) if rows], bool(found.trace)
    if not above and not below:
        return []
    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(figsize=(13.2, 3.7 * (bool(above) + below)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.12)
        grid = figure.add_gridspec(bool(above) + below, 6)
        if single:
            _matrix(figure.add_subplot(grid[0, :2]), [row for row in single if row.way == TAKEOVER])
            _both(figure.add_subplot(grid[0, 2:4]), single)
        if lies:
            _lies(figure.add_subplot(grid[0, 4:]), lies)
        if below:
            _course(figure.add_subplot(grid[-1, :3]), found)
            _goodput(figure.add_subplot(grid[-1, 3:]), found.trace)
        paths = save(figure, out, name)
        pyplot.close(figure)
    return paths


def _matrix(axes: Any, rows: Sequence[Incident]) -> None:
    stages = sorted({row.stages[0] for row in rows})
    moments = [str(moment) for moment in MOMENTS if any(row.moment == moment for row in rows)]
    most = max((row.extra_s + row.shadows_s for row in rows), default=1.0)
    colours = scale_of(PAPER, SKY, BLUE)
    for row in rows:
        x, y = stages.index(row.stages[0]), moments.index(row.moment)
        seconds = row.extra_s + row.shadows_s
        share = max(0.0, seconds) / most if most > 0 else 0.0
        tile(axes, x, y, colours(share))
        ink = "white" if share > 0.7 else INK
        axes.text(x + 0.5, y + 0.5, f"{seconds:.1f}", ha="center", va="center", fontsize=8.5, color=ink)
    matrix(axes, [str(stage) for stage in stages], moments)
    axes.set(xlabel="stage whose worker goes")
    lost = sum(row.steps_lost for row in rows)
    axes.set_title(f"Takeover, new shadows: seconds lost; {lost or 'no'} steps", loc="left", fontweight="bold", fontsize=9.5)


def _both(axes: Any, rows: Sequence[Incident]) -> None:
    """Where the time goes: in the step itself, and for new shadows after it."""
    ways = [way for way in (TAKEOVER, CHECKPOINT) if any(row.way == way for row in rows)]
    for x, way in enumerate(ways):
        mine = [row for row in rows if row.way == way]
        colour = BLUE if way == TAKEOVER else AMBER
        mean = sum(row.extra_s for row in mine) / len(mine)
        shadows = sum(row.shadows_s for row in mine) / len(mine)
        axes.bar(x, mean, width=0.55, color=colour, zorder=2)
        axes.bar(x, shadows, bottom=mean, width=0.55, color=SKY, zorder=2)
        for place, row in enumerate(mine):
            offset = 0.36 + 0.1 * place / max(1, len(mine) - 1)
            axes.plot([x + offset], [row.extra_s + row.shadows_s], "o", ms=2.6, color=INK, alpha=0.55, zorder=3)
        lost = sum(row.steps_lost for row in mine) / len(mine)
        axes.text(x, mean + shadows, f"{mean + shadows:.1f} s\n{lost:g} steps lost", ha="center", va="bottom", fontsize=8)
    tallest = max(row.extra_s + row.shadows_s for row in rows)
    axes.set_xticks(range(len(ways)), ["takeover" if way == TAKEOVER else "back to the checkpoint" for way in ways])
    axes.set(xlim=(-0.5, len(ways) - 0.3), ylim=(0, 1.25 * tallest), ylabel="virtual seconds lost, mean")
    axes.tick_params(axis="x", length=0)
    axes.legend(handles=patches((SKY, "seating new shadows")), loc="upper left", frameon=False, fontsize=7.5)
    finish(axes, "One worker goes")


def _lies(axes: Any, rows: Sequence[Incident]) -> None:
    ways = list(dict.fromkeys(row.way for row in rows))
    directions = list(dict.fromkeys(row.moment for row in rows))
    height = 0.76 / len(directions)
    for y, way in enumerate(ways):
        for place, direction in enumerate(directions):
            mine = [row for row in rows if (row.way, row.moment) == (way, direction)]
            mean = sum(row.extra_s for row in mine) / len(mine)
            where = y + (place - (len(directions) - 1) / 2) * height
            axes.barh(where, mean, height=0.9 * height, color=BLUE if direction == "forward" else SKY, zorder=2)
            note = "" if all(row.equal for row in mine) else ", other weights"
            axes.annotate(f"{mean:.1f}{note}", (mean, where), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    most = max(row.extra_s for row in rows)
    axes.set_yticks(range(len(ways)), [_remedy(way) for way in ways])
    axes.set(ylim=(len(ways) - 0.4, -0.6), xlim=(0, 1.3 * most), xlabel="virtual seconds lost, mean over stages")
    axes.tick_params(axis="y", length=0)
    handles = patches(*((BLUE if name == "forward" else SKY, name) for name in directions))
    axes.legend(handles=handles, loc="best", frameon=False, fontsize=7.5)
    finish(axes, "One stage lies once")


def _remedy(way: str) -> str:
    return way.rpartition("=")[2] if "on_alert" in way else "found by a\nspot check"


def _course(axes: Any, found: Recovery) -> None:
    """The day in which machines stay least, and the calm one with defences off."""
    least = min(row.life_h for row in found.trace)
    seed = min(row.seed for row in found.trace)
    calm = [day for day in found.days if day.life_h >= FOREVER_S / HOUR_S and day.defence == CHECKPOINT]
    off = max(calm, key=lambda day: day.every)
    axes.plot(*zip(*off.line, strict=True), color=GREY, lw=1.2, ls=(0, (4, 2)), zorder=1)
    ends = [(off, "defences off, nobody goes", GREY)]
    shown = [day for day in found.days if (day.life_h, day.seed) == (least, seed)]
    for day in shown:
        colour = _colour(day, found.trace)
        axes.step(*zip(*day.line, strict=True), where="post", color=colour, lw=1.7, zorder=3)
        ends.append((day, _name(day), colour))
    most = max(steps for _, steps in off.line)
    axes.set(xlim=(0, 1.34 * off.hours), ylim=(0, 1.06 * most), xlabel="virtual hours", ylabel="steps that stand")
    axes.set_xticks(range(0, int(off.hours) + 1, 6 if off.hours > 6 else 1))
    _name_ends(axes, ends, 0.055 * most)
    gone = max(day.lost_workers for day in shown)
    finish(axes, f"A day in which a machine stays {least:g} h on average ({gone} go)")


def _name_ends(axes: Any, ends: Sequence[tuple[Day, str, str]], apart: float) -> None:
    """A name at the end of each line, moved up where it would lie on the one below."""
    lowest = float("-inf")
    for day, label, colour in sorted(ends, key=lambda end: end[0].steps):
        lowest = max(lowest + apart, day.steps)
        axes.text(1.015 * day.hours, lowest, f"{label}: {day.steps}", va="center", fontsize=7.5, color=colour)


def _goodput(axes: Any, rows: Sequence[TraceRow]) -> None:
    lives = sorted({row.life_h for row in rows}, reverse=True)
    ways = list(dict.fromkeys((row.defence, row.every) for row in rows))
    width = 0.8 / len(ways)
    for place, way in enumerate(ways):
        for x, life in enumerate(lives):
            mine = [row for row in rows if (row.defence, row.every) == way and row.life_h == life]
            if not mine:
                continue
            at = x + (place - (len(ways) - 1) / 2) * width
            mean = sum(row.goodput for row in mine) / len(mine)
            axes.bar(at, mean, width=0.9 * width, color=_colour(mine[0], rows), zorder=2)
            if len(mine) > 1:
                low, high = min(row.goodput for row in mine), max(row.goodput for row in mine)
                axes.plot([at, at], [low, high], color=INK, lw=1.1, zorder=3)
            axes.plot([at], [mine[0].expected], "o", ms=4, mfc="white", mec=INK, mew=1.0, zorder=3)
            axes.text(at, 0.015, f"{mean:.2f}", ha="center", va="bottom", fontsize=7, color="white", zorder=3)
    axes.axhline(1, color=GREY, lw=0.8, ls=(0, (2, 2)), zorder=1)
    axes.set_xticks(range(len(lives)), [f"{life:g} h" for life in lives])
    axes.set(ylim=(0, 1.3), xlabel="mean time a machine stays", ylabel="steps of the day / of a calm one, defences off")
    axes.tick_params(axis="x", length=0)
    from matplotlib.lines import Line2D

    first = {way: next(row for row in rows if (row.defence, row.every) == way) for way in ways}
    handles = patches(*((_colour(first[way], rows), _name(first[way])) for way in ways))
    handles.append(Line2D([], [], color=INK, lw=0, marker="o", mfc="white", ms=4, label="by formula"))
    axes.legend(handles=handles, loc="upper center", ncols=3, frameon=False, fontsize=7.5, handlelength=1.2)
    finish(axes, "Goodput")


def _colour(day: Day | TraceRow, rows: Sequence[TraceRow]) -> str:
    if day.defence != CHECKPOINT:
        return BLUE
    intervals = sorted({row.every for row in rows if row.defence == CHECKPOINT})
    return SHADES[intervals.index(day.every) % len(SHADES)]


def _name(day: Day | TraceRow) -> str:
    return "takeover" if day.defence == TAKEOVER else f"checkpoint every {day.every}"
