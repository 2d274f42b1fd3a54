"""What the figures of the experiments share: the library without a screen, a quiet style, three formats without a date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.errors import MissingExtra

FORMATS = ("svg", "pdf", "png")
INK, GREY = "#222222", "#767676"
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
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        figure.savefig(path, dpi=200, metadata=undated)
    return paths
