"""A table of results: places (rows) x values (columns), each number the mean of runs that it can name.

    records --> groups of equal places --> for each value: mean, interval, and the runs behind it

Two values compare a run with the clean one, in which nobody lies and nothing breaks, all other settings equal, the seed too:
`weights` is in how many runs the final weights are the clean ones, to the bit; `against_clean` is the ratio of perplexities.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from holdfast.errors import ConfigError, did_you_mean
from holdfast.sweep.cell import Scalar
from holdfast.sweep.frame import SEED, Mean, mean, number
from holdfast.sweep.record import Record

PERPLEXITY, WEIGHTS, RATIO = "validation_perplexity", "weights", "against_clean"
TIME = "virtual_seconds"
PART = "part"
"""The axis of an experiment whose cells are of several kinds, each with a table of its own."""
COUNTS = ("attacked_claims", "detected", "missed", "false_alarms", "claims_replaced", "stages_skipped", "steps_restarted")
MOST_VALUES = 6
HEADINGS = {
    PERPLEXITY: "perplexity",
    "validation_bits_per_byte": "bits per byte",
    "attacked_claims": "forged claims",
    "claims_replaced": "replaced",
    "stages_skipped": "stages skipped",
    "steps_restarted": "steps restarted",
    "seconds": "wall s",
    "tokens_per_second": "tokens/s",
    "extra_s": "seconds lost",
    "step_s": "step, s",
    "ratio": "time × off",
    WEIGHTS: "weights equal clean",
    RATIO: "× clean",
    "train_loss": "training loss",
}


@dataclass(frozen=True)
class Figure:
    """One number of the table, with the runs that it was made of; `equal` counts them where it is about weights."""

    value: str
    mean: Mean
    records: tuple[Record, ...]
    equal: tuple[int, int] | None = None


@dataclass(frozen=True)
class Line:
    """One row: its place, and a figure for each value."""

    place: Mapping[str, Scalar]
    figures: tuple[Figure, ...]
    records: tuple[Record, ...]

    @property
    def failed(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if not record.ok)


@dataclass(frozen=True)
class ResultTable:
    """`by` are the axes of its rows; those of `geometric` are geometric means; `part` says which of several tables it is."""

    name: str
    by: tuple[str, ...]
    values: tuple[str, ...]
    lines: tuple[Line, ...]
    geometric: tuple[str, ...] = ()
    clean: Mapping[str, Record] = field(default_factory=dict)
    part: str = ""

    @property
    def records(self) -> list[Record]:
        return [record for line in self.lines for record in line.records]

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if not record.ok]

    @cached_property
    def seeds(self) -> int:
        """Runs behind the row that has most of them."""
        return max(len(line.records) for line in self.lines)

    @cached_property
    def pooled(self) -> list[str]:
        """Axes, the seed apart, in which runs of one row differ."""
        axes = dict.fromkeys(axis for record in self.records for axis in record.axes if axis not in (SEED, *self.by))
        return [
            axis for axis in axes if any(len({record.axes.get(axis) for record in line.records}) > 1 for line in self.lines)
        ]

    def heading(self, value: str) -> str:
        """The name of a value for people."""
        return heading(value, self.records)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, a row each; what has no number is null."""
        return [
            {
                **line.place,
                "runs": len(line.records),
                "failed": len(line.failed),
                **{figure.value: _told(figure) for figure in line.figures},
            }
            for line in self.lines
        ]


def make_table(
    records: Sequence[Record],
    *,
    by: Sequence[str] | None = None,
    values: Sequence[str] | None = None,
    geometric: bool = False,
    name: str = "results",
) -> ResultTable:
    """The table of `records`. By default a row for each combination of the axes that vary, the seed apart, and the columns that
    say something. `geometric` concerns perplexities. Raises ConfigError for axes and values that no record has.
    """
    if not records:
        raise ConfigError("there is no finished run to report")
    axes = list(dict.fromkeys(axis for record in records for axis in record.axes))
    for axis in by or ():
        if axis not in axes:
            hint = did_you_mean(axis, axes)
            raise ConfigError(f"--by {axis!r}: {hint}the runs have the axes {', '.join(axes) or '(none)'}")
    chosen = tuple(by) if by is not None else _varying(records, axes)
    clean = clean_runs(records)
    shown = _named(values, records) if values is not None else _telling(records, clean)
    groups: dict[tuple[Scalar, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.axes.get(axis) for axis in chosen), []).append(record)
    averaged = tuple(value for value in shown if geometric and "perplexity" in value)
    lines = tuple(
        Line(
            dict(zip(chosen, place, strict=True)),
            tuple(_figure(value, group, clean, geometric=value in averaged) for value in shown),
            tuple(group),
        )
        for place, group in groups.items()
    )
    return ResultTable(name, chosen, shown, lines, averaged, clean)


def make_tables(
    records: Sequence[Record],
    *,
    by: Sequence[str] | None = None,
    values: Sequence[str] | None = None,
    geometric: bool = False,
    name: str = "results",
) -> list[ResultTable]:
    """A table for each part of an experiment (records with the axis `part`, where no rows were asked for); else one."""
    parts: dict[Scalar, list[Record]] = {}
    for record in records:
        parts.setdefault(record.axes.get(PART), []).append(record)
    if by is not None or len(parts) < 2:
        return [make_table(records, by=by, values=values, geometric=geometric, name=name)]
    found = []
    for part, some in parts.items():
        bare = [replace(record, axes={axis: value for axis, value in record.axes.items() if axis != PART}) for record in some]
        found.append(replace(make_table(bare, values=values, geometric=geometric, name=name), part=str(part or "others")))
    return found


def heading(value: str, records: Sequence[Record]) -> str:
    """The name of a value for people; the time of the runs' own clock is called what those of `records` are."""
    if value == TIME:
        return " / ".join(dict.fromkeys(record.clock for record in records)) + " s"
    return HEADINGS.get(value, value.replace("_", " "))


def _figure(value: str, group: Sequence[Record], clean: Mapping[str, Record], *, geometric: bool) -> Figure:
    if value == WEIGHTS:
        known = [record for record in group if record.ok and _surroundings(record) in clean]
        same = sum(_digest(clean[_surroundings(record)]) == _digest(record) for record in known)
        nothing = Mean(math.nan, math.nan, 0, math.nan, math.nan)
        return Figure(value, nothing, tuple(group), (same, len(known)) if known else None)
    numbers = [value_of(record, value, clean) for record in group]
    return Figure(value, mean(numbers, geometric=geometric), tuple(group))


def value_of(record: Record, value: str, clean: Mapping[str, Record]) -> float:
    """One run's own number; NaN where it has none."""
    result = record.result or {}
    if value != RATIO:
        return number(result.get(value), value)
    reference = clean.get(_surroundings(record))
    usual = math.nan if reference is None else value_of(reference, PERPLEXITY, clean)
    return value_of(record, PERPLEXITY, clean) / usual if usual else math.nan


def _told(figure: Figure) -> Any:
    if figure.value == WEIGHTS:
        return None if figure.equal is None else {"equal": figure.equal[0], "of": figure.equal[1]}
    found = {"mean": figure.mean.mean, "std": figure.mean.std, "low": figure.mean.low, "high": figure.mean.high}
    plain = {key: value if math.isfinite(value) else None for key, value in found.items()}
    return {**plain, "n": figure.mean.n, "lost": figure.mean.lost}


def _varying(records: Sequence[Record], axes: Iterable[str]) -> tuple[str, ...]:
    others = [axis for axis in axes if axis != SEED]
    varying = [axis for axis in others if len({_hashable(record.axes.get(axis)) for record in records}) > 1]
    return tuple(varying or others)


def _telling(records: Sequence[Record], clean: Mapping[str, Record]) -> tuple[str, ...]:
    """Perplexity, whatever was counted at all, and the weights where there is something to compare them with."""
    results = [record.result for record in records if record.result is not None]
    if not any(PERPLEXITY in result for result in results):
        numeric = dict.fromkeys(key for result in results for key, value in result.items() if isinstance(value, int | float))
        places = {axis for record in records for axis in record.axes}
        values = [key for key in numeric if key not in places]
        varying = [key for key in values if len({_hashable(result.get(key)) for result in results}) > 1]
        return tuple(varying or values)[:MOST_VALUES] or ("seconds",)
    counted = [key for key in COUNTS if any(result.get(key) for result in results)]
    disturbed = any(_disturbed(record) for record in records)
    return (PERPLEXITY, RATIO, WEIGHTS, *counted) if clean and disturbed else (PERPLEXITY, *counted)


def _named(values: Sequence[str], records: Sequence[Record]) -> tuple[str, ...]:
    """The values by their own names; what the table shows as a column's heading is a name as well."""
    known = dict.fromkeys([key for record in records for key in record.result or {}] + [RATIO, WEIGHTS])
    failed = all(not record.ok for record in records)
    by_heading = {told: value for value, told in HEADINGS.items() if value in known} | {heading(TIME, records): TIME}
    found = []
    for value in values:
        if value not in known and value not in by_heading and not failed:
            hint = did_you_mean(value, [*known, *by_heading])
            raise ConfigError(f"--value {value!r}: {hint}the runs have {', '.join(known)}")
        found.append(value if value in known else by_heading.get(value, value))
    return tuple(found)


def clean_runs(records: Sequence[Record]) -> dict[str, Record]:
    """The run in which nobody lies and nothing breaks, for all else that a run may have; one without a defence goes first."""
    found: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: record.tables.get("defence", {}).get("name") != "none"):
        if _digest(record) is not None and not _disturbed(record):
            found.setdefault(_surroundings(record), record)
    return found


def _digest(record: Record) -> Any:
    return (record.result or {}).get("weights_digest")


def _disturbed(record: Record) -> bool:
    training = record.tables.get("training", {})
    return bool(record.tables.get("attack") or record.tables.get("faults") or training.get("bypass"))


def _surroundings(record: Record) -> str:
    """All settings but those that must not change the weights."""
    tables = {name: table for name, table in record.tables.items() if name not in ("attack", "faults", "defence", "output")}
    tables["training"] = {key: value for key, value in tables.get("training", {}).items() if key != "bypass"}
    tables["cluster"] = {"numerics": tables.get("cluster", {}).get("numerics")}
    return json.dumps(tables, sort_keys=True, default=str)


def _hashable(value: Scalar) -> Scalar:
    return None if isinstance(value, float) and math.isnan(value) else value
