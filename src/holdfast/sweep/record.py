"""A record is what a cell came to, with all that its numbers depend on; as text it guards itself against tearing and altering.

    {"schema": 1, "sha256": ..., "key": ..., "axes": {...}, "tables": {...}, "result": {...} or null, "error": ...}

A file of lines, one record each, is what an experiment leaves for others: `cells.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from holdfast.atomic import write_file
from holdfast.errors import DataError
from holdfast.plain import from_own_json
from holdfast.report.jsonl import finite
from holdfast.report.record import clock_of
from holdfast.sweep.cell import TRAINING, Scalar, in_words

SCHEMA = 1
LINES = "cells.jsonl"
NO_PLACE = ("digest",)
"""Words of a row that say what it came to, and not where it stands."""


@dataclass(frozen=True)
class Record:
    """What a cell came to: `result` (for a run the keys of `train --json`; what is not finite is null or a word) or `error`.

    `seconds` is the time of the whole cell on the wall, `started` and `ended` are UTC in ISO form, `command` repeats the cell
    alone, `environment` is that of `holdfast.sweep.environment`.
    """

    key: str
    axes: Mapping[str, Scalar]
    tables: Mapping[str, Any]
    result: Mapping[str, Any] | None = None
    error: str | None = None
    seconds: float = 0.0
    started: str = ""
    ended: str = ""
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    kind: str = TRAINING
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.result is not None

    @property
    def clock(self) -> str:
        """What the run's own clock is called."""
        return clock_of(self.result or {}, self.tables)

    @property
    def name(self) -> str:
        return in_words(self.axes)


def packed(record: Record) -> dict[str, Any]:
    """Plain values with a checksum; what is not finite is a word."""
    content = finite(asdict(record))
    return {"schema": SCHEMA, "sha256": _checksum(content), **content}


def unpacked(content: Any) -> Record:
    """The record of plain values; raises ValueError, in words, for what is torn, altered or of another version."""
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    if content.get("schema") != SCHEMA:
        raise ValueError(f"it has schema {content.get('schema')!r}, this version of Holdfast reads {SCHEMA}")
    content = {name: value for name, value in content.items() if name != "schema"}
    if content.pop("sha256", None) != _checksum(content):
        raise ValueError("its content is not what was written")
    if {field.name for field in fields(Record)} != set(content):
        raise ValueError("it lacks what a record has")
    return Record(**content)


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """All records in one file, a line each, whole or not at all."""
    lines = "".join(json.dumps(packed(record), allow_nan=False) + "\n" for record in records)
    write_file(path, lines.encode(), mode=0o644)


def read_lines(path: Path) -> list[Record]:
    """The records of such a file. Raises DataError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(unpacked(from_own_json(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number} is no record of a cell ({error})") from None
    if not found:
        raise DataError(f"{path} holds no record")
    return found


def expanded(records: Iterable[Record]) -> list[Record]:
    """Records one number each: where a cell measured several things in turns (`rows`), one for each, its words as axes."""
    found = []
    for record in records:
        rows = (record.result or {}).get("rows")
        if not isinstance(rows, list):
            found.append(record)
            continue
        for row in rows:
            words = {name: value for name, value in row.items() if isinstance(value, str) and name not in NO_PLACE}
            numbers = {name: value for name, value in row.items() if name not in words}
            found.append(replace(record, axes={**record.axes, **words}, result=numbers))
    return found


def telling_first(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The same values, those of `names` first and in their order: a report shows the first few."""
    return {**{name: result[name] for name in names if name in result}, **result}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
