"""Where the stages sat in a run, and how long a step was predicted to take and took, as one table of the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from holdfast.evidence.story import printable
from holdfast.report.changes import took_over
from holdfast.report.record import RunRecord, number
from holdfast.report.tables import figure


@dataclass(frozen=True, slots=True)
class Seating:
    """From `step` on the stages sat so. `predicted_s` is NaN where nobody foretold it, as right after a takeover."""

    step: int
    layers: Sequence[Sequence[int]]
    primaries: tuple[str, ...]
    predicted_s: float
    why: str


def placement_table(run: RunRecord) -> str:
    """One row for each seating of the run; empty where the record holds none (an older one)."""
    rows = []
    found = seatings(run)
    for seating, following in itertools.zip_longest(found, found[1:]):
        until = float("inf") if following is None else following.step
        paces = [pace for pace in run.of("Paced") if seating.step < pace["step"] <= until]
        took = figure(number(paces[-1]["measured_s"]), 3) if paces else "–"
        predicted = seating.predicted_s
        if math.isnan(predicted) and paces:  # a takeover is not foretold, but the steps after it are
            predicted = number(paces[-1]["predicted_s"])
        cells = (seating.step, _seats(seating), figure(predicted, 3), took, seating.why)
        kinds = ("num", "", "num", "num", "")
        columns = (f"<td class={kind or 'text'}>{escape(printable(str(c)))}</td>" for kind, c in zip(kinds, cells, strict=True))
        rows.append(f"<tr>{''.join(columns)}</tr>")
    if not rows:
        return ""
    heads = "<th class=num>from step</th><th>layers</th><th class=num>predicted s</th><th class=num>measured s</th><th>why</th>"
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def seatings(run: RunRecord) -> list[Seating]:
    """Who sat where, oldest first: as placed, after each takeover, and after other changes of seats."""
    found: list[Seating] = []
    takeovers: list[Mapping[str, Any]] = []
    for record in run.of("Placed", "TakenOver", "Reseated"):
        if record["event"] == "Placed":
            primaries = tuple(record["primaries"])
            now = Seating(record["step"], record["layers"], primaries, number(record["step_s"]), record["cause"])
        elif not found:
            continue
        elif record["event"] == "TakenOver":
            same = bool(takeovers) and takeovers[-1]["lost"] == record["lost"] and takeovers[-1]["step"] == record["step"]
            takeovers = [*takeovers, record] if same else [record]
            primaries = tuple(record["heir"] if i == record["stage"] else name for i, name in enumerate(found[-1].primaries))
            why = f"{record['lost']} was out: {', '.join(took_over(takeovers))}"
            now = Seating(record["step"], found[-1].layers, primaries, math.nan, why)
            found = found[:-1] if same else found
        else:
            moved = [(i, who) for i, who in enumerate(record["primaries"]) if who != found[-1].primaries[i]]
            why = ", ".join(f"{who} goes to stage {i}" for i, who in moved) or "other seats"
            now = Seating(record["step"], found[-1].layers, tuple(record["primaries"]), math.nan, why)
        if found and record["event"] == "Placed" and _is_told_again(found[-1], now):
            found.pop()
        found.append(now)
    return found


def _is_told_again(old: Seating, new: Seating) -> bool:
    """Whether a placement is that of a change of seats just before it, now with its prediction and its cause."""
    return old.step == new.step and old.primaries == new.primaries


def _seats(seating: Seating) -> str:
    pairs = zip(seating.primaries, seating.layers, strict=False)
    return ", ".join(f"{name} {lo}–{hi - 1}" if hi - lo > 1 else f"{name} {lo}" for name, (lo, hi) in pairs)
