"""The figure: detection rate against the size of a forgery, for each dtype, beside how far apart honest results are.

fp32, everything moved      | bf16, everything moved       lines: forward, backward, update (solid), weights alone (dotted)
----------------------------+-----------------------       bars under them: the largest honest distances, of all pairs
fp32, one row moved         | bf16, one row moved          ticks: alarms; from 3 times the last on, a line must be at 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.roc import Honest, Roc, Tampered
from holdfast.sweep.style import BLUE, GREEN, GREY, STYLE, VERMILION, require_matplotlib, save

BAND = "#C9C9C9"
COLOURS = {"forward": BLUE, "backward": VERMILION, "update": GREEN}
NAMES = {"float32": "fp32", "bfloat16": "bf16"}


def draw(roc: Roc, out: Path, name: str = "roc") -> list[Path]:
    """Write the figure to `out` in every format."""
    matplotlib = require_matplotlib()
    from matplotlib import pyplot

    dtypes = list(dict.fromkeys(row.dtype for row in roc.tampered))
    with matplotlib.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            2, len(dtypes), figsize=(4.2 * len(dtypes), 5.8), sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        for column, dtype in enumerate(dtypes):
            _panel(grid[0][column], roc, dtype, ("spread", "weights"), lambda row: (row.overall, row.alarm_overall))
            _panel(grid[1][column], roc, dtype, ("row",), lambda row: (row.worst_row, row.alarm_row))
            grid[0][column].set_title(
                f"{NAMES.get(dtype, dtype)}: everything moved", loc="left", fontweight="bold", fontsize=9.5
            )
            grid[1][column].set_title(f"{NAMES.get(dtype, dtype)}: one row moved", loc="left", fontweight="bold", fontsize=9.5)
            grid[1][column].set_xlabel("size of the forgery, relative to what is moved")
        for axes in grid[:, 0]:
            axes.set_ylabel("share detected")
        _legend(figure, roc)
        paths = save(figure, out, name)
        pyplot.close(figure)
    return paths


def _panel(axes: Any, roc: Roc, dtype: str, kinds: Sequence[str], measures: Callable[[Honest], tuple[float, float]]) -> None:
    for place, (direction, colour) in enumerate(COLOURS.items()):
        tested = [measures(row) for row in roc.honest if (row.dtype, row.direction) == (dtype, direction)]
        _strip(axes, -0.1 - 0.085 * place, colour, tested)
        for kind in kinds:
            line = [row for row in roc.tampered if (row.dtype, row.direction, row.kind) == (dtype, direction, kind)]
            _line(axes, sorted(line, key=lambda row: row.size), colour, dotted=kind == "weights")
    axes.axhline(0, color="#CCCCCC", lw=0.6, zorder=0)
    axes.axhline(1, color="#CCCCCC", lw=0.6, zorder=0)
    axes.set(xscale="log", xlim=(1e-8, 1.0), ylim=(-0.34, 1.06))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.set_xticks([10.0**exponent for exponent in range(-8, 1, 2)])
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="minor", length=0)


def _strip(axes: Any, y: float, colour: str, tested: Sequence[tuple[float, float]]) -> None:
    """Honest distances and alarms of one direction; a pair with equal bytes has no place on a logarithmic axis."""
    spread = [found for found, _ in tested if found > 0]
    if spread:
        axes.plot([min(spread), max(spread)], [y, y], color=colour, alpha=0.35, lw=4.5, solid_capstyle="butt", zorder=2)
    for _, alarm in tested:
        axes.plot([alarm, alarm], [y - 0.034, y + 0.034], color=colour, lw=0.9, solid_capstyle="butt", zorder=3)


def _line(axes: Any, rows: Sequence[Tampered], colour: str, *, dotted: bool) -> None:
    style: Any = (0, (1, 1.4)) if dotted else "-"
    rates = [row.detected / row.forgeries for row in rows]
    width = 3.2 if colour == COLOURS["forward"] else 1.5  # the first line shows from under the others
    axes.plot([row.size for row in rows], rates, color=colour, ls=style, lw=width, zorder=3)


def _legend(figure: Any, roc: Roc) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], color=colour, lw=1.7, label=direction) for direction, colour in COLOURS.items()]
    handles.append(Line2D([], [], color=COLOURS["update"], lw=1.7, ls=(0, (1, 1.4)), label="update, weights alone"))
    handles.append(Patch(facecolor=BAND, label="honest results, furthest apart"))
    handles.append(Line2D([], [], color=GREY, lw=0, marker="|", ms=7, mew=1.0, label="alarm"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8, handlelength=1.6)
    alarms = "no false alarm" if roc.false_alarms == 0 else f"{roc.false_alarms:,} false alarms"
    figure.suptitle(
        f"Forgeries across unlike arithmetic: {alarms} in {roc.checks:,} honest checks", x=0.01, ha="left", fontsize=10.5
    )
