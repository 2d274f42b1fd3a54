"""The tidy table on paper: every column as JSON lines and CSV, the ones that people read as Markdown, with what stands out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.bench.cell import UNCHECKED, Cell, Setup
from holdfast.bench.rows import Row
from holdfast.bench.workshop import Outcome
from holdfast.bench.writing import write_tables
from holdfast.report.pipes import NOTHING, told_pipes
from holdfast.sweep.frame import require_pandas

COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "attack": lambda row: row.attack,
    "direction": lambda row: row.direction,
    "stage": lambda row: row.stage,
    "rate": lambda row: f"{row.rate:g}",
    "defence": lambda row: row.defence,
    "runs": lambda row: _runs(row),
    "caught claims": lambda row: _counted(row.detected, row.ruled, row.tpr, row.tpr_low, row.tpr_high),
    "false alarms": lambda row: _counted(row.false_alarms, row.honest_checks, row.fpr, row.fpr_low, row.fpr_high),
    "caught runs": lambda row: _counted(row.runs_detected, row.runs_lied, row.caught, row.caught_low, row.caught_high),
    "expected": lambda row: _percent(row.caught_expected),
    "steps to alert": lambda row: _figure(row.steps_to_alert),
    "suspects": lambda row: _figure(row.suspects),
    "liars named": lambda row: _of(row.lies_named, row.lies_alerted),
    "innocent named": lambda row: _of(row.runs_innocent_named, row.runs),
    "named rightly": lambda row: _of(row.runs_named_rightly, row.runs_detected),
    "clean weights": lambda row: _of(row.runs_clean, row.runs + row.stopped),
    "undone in window": lambda row: _of(row.runs_inside_window_clean, row.runs_inside_window),
    "steps lost": lambda row: _figure(row.steps_lost),
    "rollbacks": lambda row: f"{row.rollbacks}",
    "time": lambda row: _ratio(row.virtual_ratio),
    "wall here": lambda row: _ratio(row.wall_ratio),
    "bytes": lambda row: _ratio(row.bytes_ratio),
    "memory": lambda row: _ratio(row.memory_ratio),
    "referee passes": lambda row: _figure(row.referee_passes),
}

EXPLAINED = """\
Caught claims: forged claims with an alert, of those that somebody had to rule on. False alarms: honest claims with an alert, of
those that were checked. Brackets: 95 % interval (Clopper and Pearson). Counted in runs: *caught runs*, *innocent named*, *named
rightly* (of the runs with a caught claim), *clean weights*. Time (virtual), wall (of this machine), bytes and memory are ratios
to the run without attack and without defence.
"""


def frame(rows: Sequence[Row]) -> Any:
    """The rows as a pandas DataFrame, one column a field."""
    columns = [field.name for field in dataclasses.fields(Row)]
    return require_pandas().DataFrame([dataclasses.asdict(row) for row in rows], columns=columns)


def findings(outcomes: Sequence[Outcome], setup: Setup) -> list[str]:
    """What went otherwise than one would hope, with defences on: in how many runs, and the command that repeats the first."""
    digests = {outcome.cell: outcome.measurement.digest for outcome in outcomes if outcome.measurement is not None}
    runs: dict[Cell, list[Outcome]] = {}
    for outcome in outcomes:
        runs.setdefault(replace(outcome.cell, seed=0), []).append(outcome)
    found = []
    for group in runs.values():
        struck: dict[str, list[Outcome]] = {}
        for outcome in group:
            for what in _wrong(outcome, digests.get(outcome.cell.clean())):
                struck.setdefault(what, []).append(outcome)
        if struck:
            first = next(iter(struck.values()))[0].cell
            told = "; ".join(f"{what} in {len(where)} of {len(group)} runs" for what, where in struck.items())
            found.append(f"{first.place}: {told}; the first: `{first.command(setup)}`")
    return found


def _wrong(outcome: Outcome, clean: str | None) -> Iterator[str]:
    run = outcome.measurement
    if run is None:
        yield f"{'stopped' if outcome.stopped else 'failed'} ({outcome.error})"
    elif outcome.cell.defence.partition(",")[0] != UNCHECKED:
        if run.missed:
            yield "lies missed"
        if run.false_alarms:
            yield "false alarms"
        if run.innocents_named:
            yield f"innocent but named: {', '.join(run.innocents_named)}"
        if run.digest != clean:
            yield "other weights than the clean run's"


def write(out: Path, rows: Sequence[Row], outcomes: Sequence[Outcome], setup: Setup, environment: Mapping[str, Any]) -> None:
    """detection.jsonl, .csv and .md for the rows; environment.json."""
    found = findings(outcomes, setup)
    told = (
        "".join(f"- {line}\n" for line in found) or "None: nothing missed, no false alarm, no innocent named, equal weights.\n"
    )
    table = told_pipes(rows, COLUMNS)
    parts = ["# Detection\n", table, EXPLAINED, "## What stands out\n", told, json.dumps(environment) + "\n"]
    write_tables(out, "detection", [dataclasses.asdict(row) for row in rows], "\n".join(parts), environment)


def _runs(row: Row) -> str:
    """The runs that came to their end, and the others."""
    others = [f"{count} {what}" for count, what in ((row.stopped, "stopped"), (row.failed, "failed")) if count]
    return f"{row.runs}" + (f" ({', '.join(others)})" if others else "")


def _counted(part: int, whole: int, share: float | None, low: float | None, high: float | None) -> str:
    if share is None or low is None or high is None:
        return NOTHING
    return f"{part}/{whole} = {_percent(share)} [{100 * low:.1f}, {100 * high:.1f}]"


def _of(part: int, whole: int) -> str:
    return f"{part}/{whole}" if whole else NOTHING


def _percent(share: float | None) -> str:
    """
    >>> _percent(1.0), _percent(0.9996), _percent(None)
    ('100 %', '99.96 %', '–')
    """
    return NOTHING if share is None else f"{100 * share:.4g} %"


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}x"
