"""The figure of the overhead: six panels, each there if it has rows; real time of this machine stands apart and says so.

+-----------------+-----------------+-----------------+
| duplicate by M  | K x M           | by network      |   virtual time: step with the defence / step without
+-----------------+-----------------+-----------------+
| one core here   | processes here  | remedies        |   this machine: ratios, and tokens a second beside torch
+-----------------+-----------------+-----------------+
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.described import OFF
from holdfast.bench.overhead import DUPLICATE, HEADLINE, SPOT_CHECK, WANTED_OPERATIONS, WANTED_TIME, Found
from holdfast.bench.overhead_rows import RealRow, VirtualRow
from holdfast.bench.real import TORCH
from holdfast.sweep.style import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    INK,
    PALE,
    PAPER,
    PINK,
    SKY,
    STYLE,
    VERMILION,
    finish,
    lines,
    markers,
    matrix,
    patches,
    require_matplotlib,
    save,
    scale_of,
    tile,
)

COLOURS = {DUPLICATE: BLUE, "duplicate-only": SKY, SPOT_CHECK: GREEN, "spot-check": GREEN, "statistics": AMBER}
NAMES = {SPOT_CHECK: "spot-check, q = 0.1", OFF: "Holdfast, defences off", TORCH: "torch pipelining, gloo"}
LABELS = {"local": "local", "gigabit": "1 Gbit/s", "wan": "200 Mbit/s,\n50 ms", "mixed": "unlike\ndevices"}
COLUMNS, PANEL = 3, (4.7, 3.6)


def draw(found: Found, out: Path, name: str = "overhead") -> list[Path]:
    """Write the figure to `out` in every format; nothing where there is nothing to show."""
    matplotlib = require_matplotlib()
    from matplotlib import pyplot

    panels = [(panel, rows) for panel, rows in _panels(found) if rows]
    if not panels:
        return []
    with matplotlib.rc_context(STYLE):
        deep = -(-len(panels) // COLUMNS)
        columns = min(len(panels), COLUMNS)
        figure, grid = pyplot.subplots(
            deep, columns, figsize=(PANEL[0] * columns, PANEL[1] * deep), squeeze=False, layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        for axes, (panel, rows) in zip(grid.flat, panels, strict=False):
            panel(axes, rows)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        paths = save(figure, out, name)
        pyplot.close(figure)
    return paths


def _panels(found: Found) -> list[tuple[Callable[[Any, Any], None], list[Any]]]:
    honest = [row for row in found.virtual if not row.attack]
    duplicated = [row for row in honest if row.defence == DUPLICATE and row.network == "local"]
    first = [row for row in duplicated if row.schedule == duplicated[0].schedule]
    by_m = sorted((row for row in first if row.stages == HEADLINE[0]), key=lambda row: row.micro_batches)
    company = [row for row in honest if (row.stages, row.micro_batches) == HEADLINE and row.schedule == honest[0].schedule]
    return [
        (_by_micro_batches, by_m if len(by_m) > 1 else []),
        (_grid, first if len({row.stages for row in first}) > 1 else []),
        (_by_network, company if len({row.defence for row in company}) > 1 else []),
        (_one_core, [row for row in found.real if row.engine == "memory" and not row.attack]),
        (_processes, [row for row in found.real if row.engine != "memory"]),
        (_remedies, [row for row in found.virtual if row.attack and row.network == "local"]),
    ]


def _by_micro_batches(axes: Any, rows: Sequence[VirtualRow]) -> None:
    at = [row.micro_batches for row in rows]
    axes.fill_between(at, 1, [row.bound for row in rows], color=PALE, lw=0, zorder=0)
    axes.plot(at, [row.formula for row in rows], color=INK, lw=1.2, ls=(0, (1, 1.5)), zorder=2)
    drawn = [(row.micro_batches, row.on_paper) for row in rows if row.on_paper is not None]
    axes.plot([m for m, _ in drawn], [ratio for _, ratio in drawn], color=GREY, lw=1.1, ls=(0, (5, 2)), zorder=2)
    axes.plot(at, [row.ratio for row in rows], color=BLUE, lw=2, marker="o", ms=5, zorder=3)
    axes.plot([HEADLINE[1]], [WANTED_TIME], marker="_", color=VERMILION, ms=16, mew=2.2, zorder=3)
    axes.annotate(
        "promised\nat most", (HEADLINE[1], WANTED_TIME), (9, 3), textcoords="offset points", color=VERMILION, fontsize=8
    )
    for row in rows:
        _note(axes, f"{row.ratio:.2f}", (row.micro_batches, row.ratio), (4, -11), color=BLUE)
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [str(m) for m in at])
    axes.set(
        xlim=(at[0] / 1.25, at[-1] * 1.45),
        ylim=(0.97, 2.22),
        xlabel="micro-batches M in a step",
        ylabel="time of a step / defences off",
    )
    handles = lines(
        (BLUE, "-", "measured, virtual clock"),
        (GREY, (0, (5, 2)), "on paper, no messages"),
        (INK, (0, (1, 1.5)), "2M/(M+K-1): equal stages, no messages"),
    ) + patches((PALE, "what this cluster's busiest worker computes"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.13, 1.02), frameon=False, fontsize=7.5, handlelength=1.9)
    finish(axes, f"Full duplication, K = {HEADLINE[0]}, local network")


def _grid(axes: Any, rows: Sequence[VirtualRow]) -> None:
    ks = sorted({row.stages for row in rows})
    ms = sorted({row.micro_batches for row in rows})
    colours = scale_of(PAPER, SKY, BLUE)
    for row in rows:
        x, y = ms.index(row.micro_batches), ks.index(row.stages)
        share = min(1.0, max(0.0, (row.ratio - 1) / 1.0))
        ink = "white" if share > 0.62 else INK
        tile(axes, x, y, colours(share))
        axes.text(x + 0.5, y + 0.42, f"{row.ratio:.2f}", ha="center", va="center", color=ink, fontsize=9.5)
        axes.text(x + 0.5, y + 0.74, f"{row.formula:.2f}", ha="center", va="center", color=ink, fontsize=7, alpha=0.8)
    matrix(axes, [str(m) for m in ms], [str(k) for k in ks])
    axes.set(xlabel="micro-batches M", ylabel="stages K")
    axes.set_title("Full duplication, local; small: 2M/(M+K-1)", loc="left", fontweight="bold", fontsize=9.5)


def _by_network(axes: Any, rows: Sequence[VirtualRow]) -> None:
    networks = list(dict.fromkeys(row.network for row in rows))
    defences = list(dict.fromkeys(row.defence for row in rows))
    width = 0.8 / len(defences)
    for row in rows:
        x = networks.index(row.network) + (defences.index(row.defence) - (len(defences) - 1) / 2) * width
        axes.bar(x, row.ratio, width=0.9 * width, color=COLOURS.get(row.defence, GREY), zorder=2)
        axes.plot([x - 0.45 * width, x + 0.45 * width], [row.bound, row.bound], color=INK, lw=1.3, zorder=3)
        axes.text(x, row.ratio + 0.05, f"{row.ratio:.2f}", ha="center", va="bottom", fontsize=6.8, rotation=90)
    axes.axhline(1, color=GREY, lw=0.8, ls=(0, (2, 2)), zorder=1)
    axes.set_xticks(range(len(networks)), [LABELS.get(name, name) for name in networks])
    axes.set(ylim=(0, 1.22 * max(row.ratio for row in rows)), ylabel="time of a step / defences off")
    axes.tick_params(axis="x", length=0)
    handles = patches(*((COLOURS.get(name, GREY), NAMES.get(name, name)) for name in defences)) + lines(
        (INK, "-", "bound: busiest worker or link")
    )
    axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=7.5, handlelength=1.2)
    finish(axes, f"Every defence, K = {HEADLINE[0]}, M = {HEADLINE[1]}, virtual time")


def _one_core(axes: Any, rows: Sequence[RealRow]) -> None:
    shown = [row for row in rows if row.way != OFF]
    for y, row in enumerate(shown):
        colour = COLOURS.get(row.way, GREY)
        if row.cpu_ratio is not None:
            axes.plot([1, row.cpu_ratio], [y, y], color=PALE, lw=5, solid_capstyle="butt", zorder=1)
            axes.plot([row.cpu_ratio], [y], marker="o", ms=7, color=colour, mfc="white", mew=1.6, zorder=3)
            _note(axes, f"{row.cpu_ratio:.2f}", (row.cpu_ratio, y), (0, -14), ha="center")
        if row.operations_ratio is not None:
            axes.plot([row.operations_ratio], [y], marker="D", ms=6, color=colour, zorder=4)
            _note(axes, f"{row.operations_ratio:.2f}", (row.operations_ratio, y), (-3, 8), ha="center")
    where = [y for y, row in enumerate(shown) if row.way == SPOT_CHECK]
    for y in where:
        axes.plot([WANTED_OPERATIONS] * 2, [y - 0.3, y + 0.3], color=VERMILION, lw=2, zorder=2)
    axes.axvline(1, color=GREY, lw=0.8, ls=(0, (2, 2)), zorder=0)
    axes.set_yticks(range(len(shown)), [NAMES.get(row.way, row.way) for row in shown])
    most = max([1.2, *(row.cpu_ratio or 1 for row in shown), *(row.operations_ratio or 1 for row in shown)])
    axes.set(ylim=(len(shown) + 0.35, -0.6), xlim=(0.95, 1 + 1.12 * (most - 1)), xlabel="defences off = 1")
    axes.tick_params(axis="y", length=0)
    handles = markers(("D", INK, "operations"), ("o", "white", "processor time")) + lines((VERMILION, "-", "promised at most"))
    axes.legend(handles=handles, loc="lower right", frameon=False, fontsize=7.5, handlelength=1.2)
    finish(axes, "Real: one core computes all members")


def _processes(axes: Any, rows: Sequence[RealRow]) -> None:
    """Processor time, because the clock on the wall of a shared machine tells more of its other work than of ours."""
    schedules = list(dict.fromkeys(row.schedule for row in rows))
    ticks, labels, y = [], [], 0.0
    most = max(row.cpu_s or 0.0 for row in rows)
    for schedule in schedules:
        for row in (row for row in rows if row.schedule == schedule):
            spent, speed = row.cpu_s or 0.0, row.tokens_per_second or 0.0
            colour = {TORCH: GREY, OFF: INK}.get(row.way, COLOURS.get(row.way, GREY))
            base = "" if row.way == row.of else f"{row.cpu_ratio:.2f}x of {'torch' if row.of == TORCH else 'off'}  "
            axes.barh(y, spent, height=0.74, color=colour, zorder=2)
            axes.text(spent + 0.015 * most, y, f"{base}({speed:,.0f} tokens/s)", va="center", fontsize=7.5)
            ticks.append(y)
            labels.append(f"{NAMES.get(row.way, row.way)}")
            y += 1
        name, first = {"gpipe": "GPipe", "1f1b": "1F1B"}[schedule], len([row for row in rows if row.schedule == schedule])
        axes.text(1.66 * most, ticks[-first], name, ha="right", va="center", fontsize=9, color=GREY)
        y += 0.5
    axes.set_yticks(ticks, labels)
    axes.set(
        ylim=(y - 0.6, -0.7), xlim=(0, 1.66 * most), xlabel="processor seconds a step, all processes; in brackets by the wall"
    )
    axes.tick_params(axis="y", length=0)
    finish(axes, "Real: a process a worker, shared cores")


def _remedies(axes: Any, rows: Sequence[VirtualRow]) -> None:
    colours = (BLUE, SKY, AMBER, PINK)
    for y, (row, colour) in enumerate(zip(rows, colours, strict=False)):
        axes.barh(y, row.ratio, height=0.66, color=colour, zorder=2)
        what = "stages skipped in" if row.defence.endswith("skip") else "begun again:"
        lost = f"{what} {row.waste} of {row.steps} steps" if row.waste else "no step lost, nothing skipped"
        axes.text(0.05, y, lost, va="center", fontsize=7.5, color="white" if colour == BLUE else INK, zorder=3)
        axes.text(row.ratio + 0.03, y, f"{row.ratio:.2f}", va="center", fontsize=8)
    axes.axvline(1, color=GREY, lw=0.8, ls=(0, (2, 2)), zorder=1)
    axes.set_yticks(range(len(rows)), [row.defence.rpartition("=")[2] for row in rows])
    axes.set(
        ylim=(len(rows) - 0.5, -0.5),
        xlim=(0, 1.18 * max(row.ratio for row in rows)),
        xlabel="time of a step / defences off, nobody lying",
    )
    axes.tick_params(axis="y", length=0)
    finish(axes, "A lie in every step, local, virtual time")


def _note(axes: Any, text: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    axes.annotate(text, at, offset, textcoords="offset points", **{"fontsize": 7.5, **style})
