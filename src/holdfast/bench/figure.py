"""The figure: what is caught, as a matrix of attack x defence with its numbers, beside what each defence costs.

+-------------------+   +---------------+
| attack x defence  |   | virtual time  |   colour and number: caught claims, of those that somebody had to rule on
|   100 %   6  ( )  |   | bytes sent    |   disc: final weights are those of the clean run in all runs; ring: not in all
|     0 %   6  (*)  |   | memory        |   last line: honest claims with an alert, of those that were checked
| false alarms  0/9 |   | wall time     |   bars: ratio to no defence, of honest runs; tick: median under attack
+-------------------+   +---------------+
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.cell import HONEST
from holdfast.bench.rows import Row
from holdfast.bench.table import frame
from holdfast.sweep.style import AMBER, BLUE, GREY, INK, PAPER, STYLE, VERMILION, require_matplotlib, save, scale_of, tile

BAR, ALARM = "#B8C9D6", VERMILION
COSTS = {
    "virtual_ratio": "virtual time",
    "bytes_ratio": "bytes sent",
    "memory_ratio": "memory of a worker",
    "wall_ratio": "wall time, this machine",
}
ROW_INCHES, BAR_INCHES, PANEL_INCHES, FRAME_INCHES = 0.3, 0.24, 0.62, 1.5
FALSE_ALARMS = "false alarms"


def draw(rows: Sequence[Row], out: Path, name: str = "detection") -> list[Path]:
    """Write the figure of the rows to `out` in every format; stages and rates of one attack and direction are pooled."""
    matplotlib = require_matplotlib()
    from matplotlib import pyplot

    table = frame([row for row in rows if row.runs + row.stopped])
    if table.empty:
        return []
    table["label"] = [
        attack if "direction=" in attack else f"{attack}, {to}" for attack, to in table[["attack", "direction"]].values
    ]
    defences = list(dict.fromkeys(table["defence"]))
    labels = list(dict.fromkeys(table.loc[table["attack"] != HONEST, "label"]))
    lines = len(labels) + 1.4
    height = FRAME_INCHES + max(ROW_INCHES * lines, len(COSTS) * (PANEL_INCHES + BAR_INCHES * len(defences)))
    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(figsize=(6.0 + 1.2 * len(defences), height), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[2.2 + 1.2 * len(defences), 3.8], wspace=0.03)
        _matrix(left, table, labels, defences, max(lines, (height - FRAME_INCHES) / (1.6 * ROW_INCHES)))
        _costs(right, table, defences)
        paths = save(figure, out, name)
        pyplot.close(figure)
    return paths


def _matrix(panel: Any, table: Any, labels: Sequence[str], defences: Sequence[str], lines: float) -> None:
    axes = panel.subplots()
    axes.set(xlim=(0, len(defences)), ylim=(lines, 0))
    counted = ["detected", "ruled", "runs_clean", "runs", "stopped", "false_alarms", "honest_checks"]
    pooled = table[table["attack"] != HONEST].groupby(["label", "defence"])[counted].sum()
    for y, label in enumerate(labels):
        for x, defence in enumerate(defences):
            if (label, defence) in pooled.index:
                _square(axes, x, y, pooled.loc[(label, defence)])
    last = len(labels) + 0.4
    alarms = table.groupby("defence")[["false_alarms", "honest_checks"]].sum()
    for x, defence in enumerate(defences):
        told, checks = (int(value) for value in alarms.loc[defence])
        text = f"{told:,} of {checks:,}" if checks else "no checks"
        axes.text(x + 0.5, last + 0.5, text, ha="center", va="center", color=ALARM if told else GREY, fontsize=8)
    axes.axhline(last - 0.2, color=GREY, lw=0.6)
    axes.set_xticks([x + 0.5 for x in range(len(defences))], [_wrapped(name) for name in defences])
    axes.set_yticks([*(y + 0.5 for y in range(len(labels))), last + 0.5], [*labels, FALSE_ALARMS])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    note = (
        "Share of forged claims caught; small: how many somebody had to rule on.  Disc: final weights\n"
        "equal the clean run's in every run; ring: not in every run.  Last line: honest claims with an alert."
    )
    panel.text(0.02, 0.012, note, fontsize=7.5, color=GREY, va="bottom")
    axes.set_xlabel("\n\n", fontsize=7.5)
    panel.suptitle("What is caught", x=0.02, ha="left", fontweight="bold")


def _square(axes: Any, x: int, y: int, pooled: Any) -> None:
    share = pooled["detected"] / pooled["ruled"] if pooled["ruled"] else None
    told, ink = ("stopped" if pooled["stopped"] else "no lie told"), GREY
    if share is not None:
        tile(axes, x, y, scale_of(AMBER, PAPER, BLUE)(share))
        told, ink = f"{_percent(share)} %", "white" if share > 0.75 else INK
        axes.text(x + 0.73, y + 0.53, f"{int(pooled['ruled']):,}", ha="right", va="center", fontsize=6.5, color=ink)
    axes.text(x + 0.08, y + 0.52, told, ha="left", va="center", color=ink, fontsize=9 if share is not None else 8)
    clean = pooled["runs_clean"] == pooled["runs"] + pooled["stopped"]
    axes.plot(x + 0.86, y + 0.5, "o", ms=5.5, mec=ink, mew=1.1, mfc=ink if clean else "none")


def _costs(panel: Any, table: Any, defences: Sequence[str]) -> None:
    honest = table[table["attack"] == HONEST].groupby("defence")[list(COSTS)].median()
    attacked = table[table["attack"] != HONEST].groupby("defence")[list(COSTS)].median()
    every = panel.subplots(len(COSTS), 1)
    for axes, (column, title) in zip(every, COSTS.items(), strict=True):
        widest = max([*honest[column], *attacked[column], 1.0])
        names = [f"{name}  {honest[column][name]:.2f}x" if name in honest.index else name for name in defences]
        for y, defence in enumerate(defences):
            if defence in honest.index:
                ratio = float(honest.loc[defence, column])
                axes.barh(y, ratio, height=0.68, color=BAR)
            if defence in attacked.index:
                under = float(attacked.loc[defence, column])
                axes.plot([under, under], [y - 0.38, y + 0.38], color=INK, lw=1.6, solid_capstyle="butt")
        axes.axvline(1, color=GREY, lw=0.8, ls=(0, (2, 2)))
        axes.set(ylim=(len(defences) - 0.4, -0.6), xlim=(0, 1.04 * widest))
        axes.set_yticks(range(len(defences)), names, fontsize=7.5)
        axes.set_title(title, loc="left", fontsize=8.5, pad=3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=7)
    note = "1 = no defence, no attack.\nBar: honest runs; tick: median under attack."
    panel.text(0.02, 0.012, note, fontsize=7.5, color=GREY, va="bottom")
    every[-1].set_xlabel("\n\n", fontsize=7.5)
    panel.suptitle("What it costs", x=0.02, ha="left", fontweight="bold")


def _percent(share: float) -> str:
    """Rounded, but never to all or nothing where it is not.

    >>> _percent(1.0), _percent(0.9999), _percent(0.5), _percent(0.0001)
    ('100', '99.9', '50', '0.1')
    """
    if 0 < share < 1:
        share = min(max(share, 0.001), 0.999)
    return f"{100 * share:.3g}"


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name.replace(",", ", "), 16))
