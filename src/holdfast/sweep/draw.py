"""The figure of a table: one row a place, a faint dot for each run, a strong one for the mean, a line for its interval.

none                 o|-@-|o
sign-flip 0.3              o-|-@-|-o          logarithmic where the values differ by more than a factor of 20
------------------------------------------> perplexity
"""

from __future__ import annotations

import math
from typing import Any

from holdfast.errors import ConfigError
from holdfast.sweep.cell import shown
from holdfast.sweep.style import BLUE, GREY, STYLE, drawn, require_matplotlib
from holdfast.sweep.table import WEIGHTS, Line, ResultTable, value_of

FAINT = "#9CC3DD"
LOG_ABOVE = 20.0
ROW_INCHES, FRAME_INCHES, PANEL_INCHES, TITLE_INCHES = 0.27, 0.9, 3.4, 0.35


def figure(*tables: ResultTable, form: str) -> bytes:
    """A panel for each of the first two values that vary, tables one below the other, as `pdf`, `svg` or `png`; equal tables
    give equal bytes. Raises ConfigError where nothing is a number.
    """
    matplotlib = require_matplotlib()
    from matplotlib import pyplot

    shown = [table for table in tables if drawn_values(table)]
    if not shown:
        raise ConfigError("there is nothing to draw: no value of the table is a number; choose others with --value")
    heights = [FRAME_INCHES + ROW_INCHES * len(table.lines) + (TITLE_INCHES if table.part else 0.0) for table in shown]
    widths = [
        0.075 * max(len(label_of(line)) for line in table.lines) + PANEL_INCHES * len(drawn_values(table)) for table in shown
    ]
    with matplotlib.rc_context(STYLE):
        picture = pyplot.figure(figsize=(max(widths), sum(heights)), layout="constrained")
        rows = picture.subfigures(len(shown), 1, height_ratios=heights, squeeze=False)
        for row, table in zip(rows[:, 0], shown, strict=True):
            _draw(row, table)
        content = drawn(picture, form)
        pyplot.close(picture)
    return content


def _draw(row: Any, table: ResultTable) -> None:
    values, labels = drawn_values(table), [label_of(line) for line in table.lines]
    panels = row.subplots(1, len(values), sharey=True, squeeze=False)
    for axes, value in zip(panels[0], values, strict=True):
        _panel(axes, table, value)
    panels[0][0].set_yticks(range(len(labels)), labels)
    panels[0][0].set_ylim(len(labels) - 0.5, -0.5)
    if table.part:
        row.suptitle(table.part, x=0.01, ha="left", fontsize=10, fontweight="bold")


def drawn_values(table: ResultTable) -> list[str]:
    """What a figure shows: up to two values that are numbers, those first that differ between rows."""
    numeric = [
        value for value in table.values if value != WEIGHTS and any(_numbers(table, line, value) for line in table.lines)
    ]
    varying = [value for value in numeric if len({x for line in table.lines for x in _numbers(table, line, value)}) > 1]
    return (varying or numeric)[:2]


def label_of(line: Line) -> str:
    """The place of a row, in a line."""
    return ", ".join(shown(value) for value in line.place.values() if value not in (None, "")) or "all"


def is_log(values: list[float]) -> bool:
    """Whether values are so far apart that only their logarithms can be seen beside one another."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > LOG_ABOVE


def _panel(axes: Any, table: ResultTable, value: str) -> None:
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator

    index = table.values.index(value)
    every: list[float] = []
    for y, line in enumerate(table.lines):
        found, mean = _numbers(table, line, value), line.figures[index].mean
        every += found
        axes.plot(found, [y] * len(found), "o", ms=4, mew=0, color=FAINT, zorder=2)
        if mean.n:
            if math.isfinite(mean.low):
                axes.plot([mean.low, mean.high], [y, y], "-", lw=1.4, color=BLUE, solid_capstyle="butt", zorder=3)
            axes.plot([mean.mean], [y], "o", ms=5, mew=0, color=BLUE, zorder=4)
        else:
            axes.text(0.01, y, "no number", transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=GREY)
    if is_log(every):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    else:
        whole = all(value == int(value) for value in every)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole))
    axes.set_xlabel(table.heading(value))
    axes.grid(axis="y", color="#ECECEC", lw=0.6, zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _numbers(table: ResultTable, line: Line, value: str) -> list[float]:
    found = [value_of(record, value, table.clean) for record in line.records if record.ok]
    return [number for number in found if math.isfinite(number)]
