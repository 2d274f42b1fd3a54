"""Tables in Markdown: whatever stands in a cell, it stays in its cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row")

NOTHING = "–"


def pipes(headings: Sequence[str], rows: Iterable[Sequence[object]], *, left: int | None = None) -> str:
    """A table; the columns after the first `left` are set to the right (None: all to the left).

    >>> print(pipes(["a", "b"], [["x|y", 1]], left=1), end="")
    | a | b |
    | --- | ---: |
    | x\\|y | 1 |
    """
    kept = len(headings) if left is None else left
    lines = [_line(map(cell, headings)), "|" + " --- |" * kept + " ---: |" * (len(headings) - kept)]
    return "\n".join([*lines, *(_line(map(cell, row)) for row in rows)]) + "\n"


def told_pipes(rows: Iterable[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """A table of what each column tells of each row, without those that tell nothing of any; empty without rows."""
    rows = list(rows)
    cells = {name: [tell(row) for row in rows] for name, tell in columns.items()}
    shown = {name: column for name, column in cells.items() if any(text != NOTHING for text in column)}
    return pipes(list(shown), list(zip(*shown.values(), strict=True))) if rows else ""


def cell(value: Any) -> str:
    """A value on one line, without what would end its cell or open a tag."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
