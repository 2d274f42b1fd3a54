"""How experiments are put down: tidy tables as JSON lines and CSV, a page for people, the environment; and spans in words."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.atomic import write_file
from holdfast.sweep.frame import require_pandas

ENVIRONMENT = "environment.json"


def write_tables(
    out: Path, name: str, rows: Sequence[Mapping[str, Any]], page: str, environment: Mapping[str, Any]
) -> list[Path]:
    """NAME.jsonl, NAME.csv, NAME.md and environment.json in `out`, which is made."""
    return [
        put(out / f"{name}.jsonl", as_lines(rows)),
        put(out / f"{name}.csv", as_csv(rows)),
        put(out / f"{name}.md", page),
        put(out / ENVIRONMENT, json.dumps(dict(environment), indent=2) + "\n"),
    ]


def put(path: Path, text: str) -> Path:
    """A text file, whole or not at all; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode(), mode=0o644)
    return path


def as_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """JSON lines; what is not finite is refused (ValueError)."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a row, a column for every name that a row has; empty without rows."""
    return str(require_pandas().DataFrame(list(rows)).to_csv(index=False, lineterminator="\n")) if rows else ""


def span(values: Sequence[float], digits: int = 2, *, mean: bool = False) -> str:
    """The median (or mean) with the least and the greatest, where there are several.

    >>> span([0.5]), span([2.0, 1.0, 4.0], 1), span([1, 1], 0), span([0.25, 0.5, 0.75], 3, mean=True)
    ('0.50', '2.0 (1.0 to 4.0)', '1', '0.500 (0.250 to 0.750)')
    """
    middle = f"{statistics.fmean(values) if mean else statistics.median(values):.{digits}f}"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return middle if low == high else f"{middle} ({low} to {high})"


def ends(values: Sequence[float], form: str = "") -> str:
    """The least and the greatest, or the one value that there is.

    >>> ends([0, 0]), ends([1, 4]), ends([1.0, 2.5], ",.2f")
    ('0', '1 to 4', '1.00 to 2.50')
    """
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
