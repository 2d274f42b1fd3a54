"""The figures: which tests find which lies, their ROC curves, and how traffic varies.

aggregation  one forged | all forged, activations over input gradients: tests by attacks, percent found
roc          an attack each, the whole tensor, all forged: share found against false alarms
variation    cosine between micro-batches by stage | perplexity of honest training with aggregates
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.aggregated import NOTHING as UNTREATED
from holdfast.bench.aggregation import Findings
from holdfast.bench.carryover import GRID, HOW, ScoreRow, of_tests
from holdfast.bench.outliers import TESTS, VIEWS
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
    YELLOW,
    matrix,
    require_matplotlib,
    save,
    scale_of,
    tile,
)

COLOURS = {"forward": BLUE, "backward": VERMILION, "weight gradient": GREEN}
LABELS = {"forward": "activations", "backward": "input gradients", "weight gradient": "weight gradients"}
LINES = ("#000000", AMBER, SKY, GREEN, YELLOW, BLUE, VERMILION, PINK)
DIRECTIONS = ("forward", "backward")


def draw(findings: Findings, out: Path) -> list[Path]:
    """Write every figure that there is something for to `out`, in every format."""
    matplotlib = require_matplotlib()
    paths = []
    with matplotlib.rc_context(STYLE):
        if findings.tests:
            paths += save(_matrices(findings.tests), out, "aggregation") + save(_curves(findings.tests), out, "roc")
        if findings.spread or findings.training:
            paths += save(_variation(findings), out, "variation")
        _closed()
    return paths


def _closed() -> None:
    from matplotlib import pyplot

    pyplot.close("all")


def _matrices(rows: Sequence[ScoreRow]) -> Any:
    from matplotlib import pyplot

    attacks = list(dict.fromkeys(row.attack for row in rows))
    lines = [(name, test) for name in VIEWS for test in TESTS]
    size = (4.4 + 2 * 0.62 * (len(attacks) + 1), 3.2 + 2 * 0.27 * len(lines))
    figure, grid = pyplot.subplots(2, 2, figsize=size, sharex=True, sharey=True, layout="constrained")
    for y, direction in enumerate(DIRECTIONS):
        for x, how in enumerate(HOW):
            told = [row for row in rows if (row.direction, row.how) == (direction, how)]
            _matrix(grid[y][x], told, attacks, lines)
            many = "one micro-batch of a step forged" if how == "one" else "all of them forged, as in the paper"
            grid[y][x].set_title(f"{LABELS[direction]}: {many}", loc="left", fontweight="bold", fontsize=9.5)
    note = (
        "Percent of forged claims found at a threshold meant to give 1 % false alarms; first column: the false alarms it gave. "
        "Colour: found, less false alarms."
    )
    figure.supxlabel(note, fontsize=8, color=GREY)
    return figure


def _matrix(axes: Any, rows: Sequence[ScoreRow], attacks: Sequence[str], lines: Sequence[tuple[str, str]]) -> None:
    colours = scale_of(AMBER, PAPER, BLUE)
    cells = {(row.view, row.test, row.attack): row for row in rows}
    for y, line in enumerate(lines):
        alarms = next(row.fpr for row in rows if (row.view, row.test) == line)
        axes.text(0.5, y + 0.5, f"{100 * alarms:.1f}", ha="center", va="center", fontsize=8, color=GREY)
        for x, attack in enumerate(attacks, 1):
            share = cells[(*line, attack)].tpr
            worth = max(0.0, share - alarms)
            tile(axes, x, y, colours(worth))
            ink = "white" if worth > 0.75 else INK
            axes.text(x + 0.5, y + 0.52, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=ink)
    matrix(axes, ["false alarms", *attacks], [f"{test}, {name}" for name, test in lines])
    axes.tick_params(axis="x", labelrotation=40)
    for label in axes.get_xticklabels():
        label.set_ha("right")
    axes.axhline(len(TESTS), color=GREY, lw=0.6)


def _curves(rows: Sequence[ScoreRow]) -> Any:
    from matplotlib import pyplot

    attacks = list(dict.fromkeys(row.attack for row in rows))
    size = (1.2 + 1.55 * len(attacks), 4.4)
    figure, grid = pyplot.subplots(2, len(attacks), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    tests = [test for test in TESTS if test != "voting"]
    for y, direction in enumerate(DIRECTIONS):
        for x, attack in enumerate(attacks):
            axes = grid[y][x]
            for row in of_tests(rows, direction=direction, attack=attack, how="all", view=VIEWS[0]):
                if row.test in tests:
                    axes.plot(GRID, row.roc, color=LINES[tests.index(row.test)], lw=1.4, label=row.test)
            axes.plot(GRID, GRID, color=GREY, lw=0.7, ls=(0, (2, 2)))
            axes.set(xscale="log", xlim=(GRID[0], 1), ylim=(-0.02, 1.02))
            axes.spines[["top", "right"]].set_visible(False)
            if y == 0:
                axes.set_title(attack.replace(",", ",\n"), fontsize=8)
        grid[y][0].set_ylabel(f"{LABELS[direction]}:\nshare found")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    grid[-1][len(attacks) // 2].set_xlabel("false alarms (dashes: chance)")
    return figure


def _variation(findings: Findings) -> Any:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained", width_ratios=[1, 1.25])
    rows = [row for row in findings.spread if row.stage != "all"]
    for kind, colour in COLOURS.items():
        for name in VIEWS:
            line = [row for row in rows if (row.kind, row.view) == (kind, name)]
            if line:
                stages, middle = [int(row.stage) for row in line], [row.cosine for row in line]
                errors = [
                    [row.cosine - row.cosine_low for row in line],
                    [row.cosine_high - row.cosine for row in line],
                ]
                style = "-" if name == VIEWS[0] else (0, (2, 1.5))
                label = f"{LABELS[kind]}, {name}"
                left.errorbar(
                    stages, middle, errors, color=colour, ls=style, lw=1.5, marker="o", ms=3.5, capsize=2, label=label
                )
    left.set(xlabel="stage", ylabel="cosine between micro-batches of a step", ylim=(min(left.get_ylim()[0], -0.02), 1.02))
    left.set_xticks(sorted({int(row.stage) for row in rows}))
    left.axhline(0, color=GREY, lw=0.6)
    left.legend(frameon=False, fontsize=7.5)
    left.set_title("What micro-batches have in common", loc="left", fontweight="bold", fontsize=9.5)
    _bars(right, findings)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bars(axes: Any, findings: Findings) -> None:
    groups: dict[tuple[str, str], list[float]] = {}
    honest = {row.seed: row.perplexity for row in findings.training if row.replaced == UNTREATED}
    for row in findings.training:
        groups.setdefault((row.replaced, row.aggregator), []).append(row.perplexity / honest[row.seed])
    places = {"activation": "forward", "input gradient": "backward", "weight gradient": "weight gradient"}
    for y, ((replaced, _), values) in enumerate(groups.items()):
        middle = statistics.median(values)
        axes.barh(y, middle, color=COLOURS[places[replaced]] if replaced in places else GREY, height=0.7)
        axes.plot([min(values), max(values)], [y, y], color=INK, lw=1.2)
        axes.text(max(values) * 1.02, y, f" {middle:.2f}", va="center", fontsize=8)
    names = [replaced if replaced == UNTREATED else f"{replaced} by {name}" for replaced, name in groups]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel="perplexity, relative to honest training (bar: median; line: seeds)")
    axes.axvline(1, color=GREY, lw=0.8, ls=(0, (2, 2)))
    axes.tick_params(axis="y", length=0)
    axes.set_title("Replaced by an aggregate of the micro-batches", loc="left", fontweight="bold", fontsize=9.5)
