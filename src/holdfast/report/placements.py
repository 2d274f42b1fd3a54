"""Where the stages sat in a run, and how long a step was predicted to take and took, as one table of the page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from html import escape
from typing import Any

from holdfast.report.record import RunRecord, number
from holdfast.report.tables import figure


def placement_table(run: RunRecord) -> str:
    """One row for each placement of the run; empty where the record holds none (an older one)."""
    rows = []
    placed = run.of("Placed")
    for record, following in itertools.zip_longest(placed, placed[1:]):
        until = float("inf") if following is None else following["step"]
        real = [pace for pace in run.of("Paced") if record["step"] < pace["step"] <= until]
        took = figure(number(real[-1]["measured_s"]), 3) if real else "–"
        cells = (record["step"], _seats(record), figure(number(record["step_s"]), 3), took, record["cause"])
        kinds = ("num", "", "num", "num", "")
        columns = (f"<td class={kind or 'text'}>{escape(str(cell))}</td>" for kind, cell in zip(kinds, cells, strict=True))
        rows.append(f"<tr>{''.join(columns)}</tr>")
    if not rows:
        return ""
    heads = "<th class=num>from step</th><th>layers</th><th class=num>predicted s</th><th class=num>real s</th><th>why</th>"
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _seats(record: Mapping[str, Any]) -> str:
    pairs = zip(record["primaries"], record["layers"], strict=False)
    return ", ".join(f"{name} {lo}–{hi - 1}" if hi - lo > 1 else f"{name} {lo}" for name, (lo, hi) in pairs)
