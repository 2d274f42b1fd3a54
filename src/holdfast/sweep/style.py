"""What all figures share: the library without a screen, a quiet style and its colours, formats without a date.

Colours are those of Okabe and Ito (2008), told apart by every common kind of colour vision; numbers say the same without them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.atomic import write_file
from holdfast.errors import MissingExtra

FORMATS = ("svg", "pdf", "png")
INK, GREY, PALE = "#222222", "#767676", "#ECE9E1"
BLUE, VERMILION, GREEN, AMBER, SKY, PINK, YELLOW = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442"
PAPER = "#F6F4EE"
"""Where a scale of colours begins."""
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


def save(figure: Any, out: Path, name: str) -> list[Path]:
    """Write a figure to `out` in every format; equal figures are equal files."""
    paths = [out / f"{name}.{form}" for form in FORMATS]
    for path in paths:
        write_file(path, drawn(figure, path.suffix.removeprefix(".")), mode=0o644)
    return paths


def drawn(figure: Any, form: str) -> bytes:
    """A figure as `svg`, `pdf` or `png`."""
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=200, metadata=undated)
    return buffer.getvalue()


def finish(axes: Any, title: str) -> None:
    """A panel without a box, under its title."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="minor", length=0)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=9.5)


def scale_of(*colours: str) -> Any:
    """From the colour of 0 to that of 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("scale", list(colours))


def tile(axes: Any, x: float, y: float, colour: Any) -> None:
    """The cell of a matrix whose upper left corner is at x, y."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, facecolor=colour, edgecolor="none"))


def matrix(axes: Any, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Axes for tiles, with a name to each column and row."""
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def lines(*kinds: tuple[str, Any, str]) -> list[Any]:
    """For a legend: colour, style and label of each line."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=colour, ls=style, lw=1.8, label=label) for colour, style, label in kinds]


def markers(*kinds: tuple[str, str, str]) -> list[Any]:
    """For a legend: marker, face and label."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=INK, lw=0, marker=marker, mfc=face, ms=6, label=label) for marker, face, label in kinds]


def patches(*kinds: tuple[str, str]) -> list[Any]:
    """For a legend: colour and label."""
    from matplotlib.patches import Patch

    return [Patch(facecolor=colour, label=label) for colour, label in kinds]
