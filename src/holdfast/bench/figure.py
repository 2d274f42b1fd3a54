"""The figure: what is caught, as a matrix of attack x defence with its numbers, beside what each defence costs.

    +-----------------+   +---------------+
    | attack x defence|   | time          |   colour and number: caught claims, of those that somebody had to rule on
    |   100 %   ( )   |   | bytes         |   disc: final weights are those of the clean run in all runs; ring: not in all
    |     0 %   (*)   |   | memory        |   bars: ratio to no defence, of honest runs; tick: median under attack
    +-----------------+   +---------------+

Colours are of Okabe and Ito (2008), told apart by every common kind of colour vision; the numbers say the same without them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.cell import HONEST
from holdfast.bench.rows import Row
from holdfast.bench.table import frame
from holdfast.errors import MissingExtra

FORMATS = ("svg", "pdf", "png")
MISSED, HALF, CAUGHT, EMPTY = "#E69F00", "#F4F1EA", "#0072B2", "#FFFFFF"
INK, QUIET = "#222222", "#7A7A7A"
COSTS = {
    "virtual_ratio": "virtual time",
    "bytes_ratio": "bytes sent",
    "memory_ratio": "memory of a worker",
    "wall_ratio": "wall time here",
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "holdfast",
}


def require_matplotlib() -> Any:
    """The library, drawing without a screen; raises MissingExtra where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise MissingExtra("matplotlib", extra="bench", purpose="`holdfast bench`") from None
    matplotlib.use("Agg")
    return matplotlib


def draw(rows: Sequence[Row], out: Path, name: str = "detection") -> list[Path]:
    """Write the figure of the rows to `out` in every format; stages and rates of one attack and direction are pooled."""
    matplotlib = require_matplotlib()
    from matplotlib import pyplot

    table = frame([row for row in rows if row.runs])
    if table.empty:
        return []
    defences = list(dict.fromkeys(table["defence"]))
    caught = table[table["attack"] != HONEST].copy()
    caught["label"] = [
        row.attack if "direction=" in row.attack else f"{row.attack}  {row.direction}" for row in caught.itertuples()
    ]
    labels = list(dict.fromkeys(caught["label"]))
    height = 1.9 + 0.34 * max(len(labels), 2 + 0.9 * len(defences))
    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(figsize=(5.2 + 1.25 * len(defences), height), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[2.0 + 1.05 * len(defences), 2.6], wspace=0.02)
        _matrix(left, caught, labels, defences)
        _costs(right, table, defences)
        paths = [out / f"{name}.{form}" for form in FORMATS]
        for path in paths:
            undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:])
            figure.savefig(path, dpi=200, metadata=undated)
        pyplot.close(figure)
    return paths


def _matrix(panel: Any, caught: Any, labels: Sequence[str], defences: Sequence[str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    colours = LinearSegmentedColormap.from_list("caught", [MISSED, HALF, CAUGHT])
    axes = panel.subplots()
    axes.set(xlim=(0, len(defences)), ylim=(max(1, len(labels)), 0))
    pooled = caught.groupby(["label", "defence"])[["detected", "ruled", "runs_clean", "runs"]].sum()
    for y, label in enumerate(labels):
        for x, defence in enumerate(defences):
            if (label, defence) not in pooled.index:
                continue
            detected, ruled, clean, runs = (int(value) for value in pooled.loc[(label, defence)])
            share = detected / ruled if ruled else None
            face = EMPTY if share is None else colours(share)
            axes.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, facecolor=face, edgecolor="none"))
            ink = "white" if share is not None and share > 0.75 else INK
            told = "no lie told" if share is None else f"{_percent(share)} %"
            axes.text(x + 0.3, y + 0.52, told, ha="center", va="center", color=QUIET if share is None else ink)
            if share is not None:
                axes.text(x + 0.74, y + 0.53, f"{ruled}", ha="right", va="center", fontsize=6.5, color=ink)
            axes.plot(
                x + 0.86,
                y + 0.5,
                "o",
                ms=6,
                mec=QUIET if share is None else ink,
                mew=1.1,
                mfc=(QUIET if share is None else ink) if clean == runs else "none",
            )
    axes.set_xticks([x + 0.5 for x in range(len(defences))], [_wrapped(name) for name in defences])
    axes.set_yticks([y + 0.5 for y in range(len(labels))], labels)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(
        "Share of forged claims caught; small: how many somebody had to rule on.\n"
        "Disc: final weights equal the clean run's in every run. Ring: not in every run.",
        fontsize=7.5,
        color=QUIET,
        loc="left",
    )
    panel.suptitle("What is caught", x=0.02, ha="left", fontweight="bold")


def _costs(panel: Any, table: Any, defences: Sequence[str]) -> None:
    honest = table[table["attack"] == HONEST].groupby("defence").median(numeric_only=True)
    attacked = table[table["attack"] != HONEST].groupby("defence").median(numeric_only=True)
    every = panel.subplots(len(COSTS), 1, sharex=False)
    for axes, (column, title) in zip(every, COSTS.items(), strict=True):
        for y, defence in enumerate(defences):
            ratio = honest[column].get(defence)
            if ratio is not None:
                axes.barh(y, ratio, height=0.62, color="#B8C9D6")
                axes.text(0.03, y, f"{ratio:.2f}x  {defence}", va="center", fontsize=7.5)
            if (under := attacked[column].get(defence)) is not None:
                axes.plot([under, under], [y - 0.36, y + 0.36], color=INK, lw=1.4)
        axes.axvline(1, color=QUIET, lw=0.8, ls=(0, (2, 2)))
        axes.set(ylim=(len(defences) - 0.4, -0.6), xlim=(0, None), yticks=[])
        axes.set_title(title, loc="left", fontsize=8.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=7)
    every[-1].set_xlabel(
        "Bar: honest runs. Tick: median under attack.\n1 = no defence, no attack.", fontsize=7.5, color=QUIET, loc="left"
    )
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
