"""The comparison of runs as rows: one list of columns serves the terminal, Markdown, CSV and the HTML page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.report.comparison import clean_run, other_settings, unlike_words
from holdfast.report.pipes import pipes
from holdfast.report.record import RunRecord, number


@dataclass(frozen=True, slots=True)
class Row:
    """One run of a comparison, ready to print; `weights` is `equal` or `differ` against the clean run, or `reference`.

    A run of other settings has no ratio, and `weights` names them (`other steps`), unless its weights are equal anyway.
    `dropped` are forged claims that were thrown away with their step before anybody had to rule on them.
    """

    label: str
    defence: str
    perplexity: str
    ratio: str
    weights: str
    digest: str
    attacked: str
    detected: str
    missed: str
    dropped: str
    false_alarms: str
    remedy: str
    seconds: str
    clock: str
    clock_seconds: str


HEADINGS = {
    "label": "run",
    "defence": "defence",
    "perplexity": "perplexity",
    "ratio": "against clean",
    "weights": "weights",
    "attacked": "forged claims",
    "detected": "detected",
    "missed": "missed",
    "dropped": "dropped",
    "false_alarms": "false alarms",
    "remedy": "remedy",
    "seconds": "wall s",
}
"""The columns that every comparison has. Behind them stands one for each clock that a run had: see `columns`."""


def rows(runs: Sequence[RunRecord]) -> list[Row]:
    """One row a run, in the order given."""
    reference = clean_run(runs)
    return [_row(run, reference) for run in runs]


def render_markdown(runs: Sequence[RunRecord]) -> str:
    """The comparison as a Markdown table with a line of column names."""
    shown = columns(runs)
    return pipes(list(shown.values()), [[content(row, name) for name in shown] for row in rows(runs)])


def columns(runs: Sequence[RunRecord]) -> dict[str, str]:
    """The headings by column: HEADINGS, and a time for each clock; virtual seconds and real ones cannot be compared."""
    return {**HEADINGS, **{run.clock: f"{run.clock} s" for run in runs}}


def content(row: Row, column: str) -> str:
    """What a row has in a column of `columns`."""
    if column in HEADINGS:
        return str(getattr(row, column))
    return row.clock_seconds if column == row.clock else "–"


def render_csv(runs: Sequence[RunRecord]) -> str:
    """Every number of `train --json` as one line a run, unrounded, and the name of its clock; nested counts are in run.json."""
    keys: dict[str, None] = {}
    told = [{"clock": run.clock, **run.result} for run in runs]
    for result in told:
        keys |= dict.fromkeys(key for key, value in result.items() if not isinstance(value, (dict, list)))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["label", "defence", *keys])
    writer.writerows(
        [run.label, run.defence, *(result.get(key, "") for key in keys)] for run, result in zip(runs, told, strict=True)
    )
    return buffer.getvalue()


def figure(value: float, digits: int = 1) -> str:
    """A number for people: thousands apart, a dash where there is none.

    >>> figure(1234.56), figure(float("nan"))
    ('1,234.6', '–')
    """
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"


def against_clean(run: RunRecord, reference: RunRecord | None) -> float:
    """Perplexity over that of the clean run; NaN where there is none, or none of the same settings."""
    comparable = reference is not None and not other_settings(run, reference)
    return run.perplexity / reference.perplexity if reference is not None and comparable else math.nan


def _row(run: RunRecord, reference: RunRecord | None) -> Row:
    counts = {key: str(run.result.get(key, "–")) for key in ("attacked_claims", "detected", "missed", "false_alarms")}
    ratio = against_clean(run, reference)
    return Row(
        label=run.label,
        defence=run.defence,
        perplexity=figure(run.perplexity),
        ratio="–" if math.isnan(ratio) else f"× {ratio:.2f}",
        weights=_weights(run, reference),
        digest=str(run.result.get("weights_digest", ""))[:12],
        attacked=counts["attacked_claims"],
        detected=counts["detected"],
        missed=counts["missed"],
        dropped=_dropped(run),
        false_alarms=counts["false_alarms"],
        remedy=_remedy(run),
        seconds=figure(number(run.result.get("seconds"))),
        clock=run.clock,
        clock_seconds=figure(number(run.result.get("virtual_seconds"))),
    )


def _weights(run: RunRecord, reference: RunRecord | None) -> str:
    if reference is None:
        return "–"
    if run is reference:
        return "reference"
    if run.result.get("weights_digest") == reference.result.get("weights_digest"):
        return "equal"
    return unlike_words(run, reference) or "differ"


def _dropped(run: RunRecord) -> str:
    forged, *ruled = (run.result.get(key) for key in ("attacked_claims", "detected", "missed"))
    return "–" if forged is None else str(forged - sum(count or 0 for count in ruled))


def _remedy(run: RunRecord) -> str:
    parts = [
        (run.result.get("claims_replaced", 0), "replaced"),
        (run.result.get("stages_skipped", 0), "skipped"),
        (run.result.get("steps_restarted", 0), "restarted"),
    ]
    return ", ".join(f"{count} {what}" for count, what in parts if count) or "–"
