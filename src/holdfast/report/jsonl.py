"""`report.jsonl` holds one line an event, whole as soon as it happened, so that a killed run leaves all but its last line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from holdfast.errors import DataError
from holdfast.event import SCHEMA, Event, Resumed, is_record, to_record
from holdfast.plain import from_own_json


class JsonlReport:
    """Observer that appends each event to the file at `path`; a resumed run goes on in the same file, where its checkpoint
    was: what is there of steps that are going to be taken again is cut off.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def __call__(self, event: Event, seconds: float) -> None:
        if isinstance(event, Resumed):
            os.truncate(self._path, _end_of(self._path, event.version))
        self._file.write(json.dumps(finite(to_record(event, seconds)), allow_nan=False) + "\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_report(path: Path) -> tuple[dict[str, Any], ...]:
    """The records of a report, oldest first; a torn last line is left out, any other broken line is a DataError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"no report at {path} ({error.strerror}); give the directory that a run wrote with --out") from None
    except ValueError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); the report was altered or torn") from None
    lines = text.split("\n")
    records = [_parse(line, number, path) for number, line in enumerate(lines[:-1], start=1) if line.strip()]
    return tuple(records)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: a loss that left the numbers is written as the string `nan`, `inf` or `-inf`.

    >>> finite({"loss": float("nan"), "step": 3})
    {'loss': 'nan', 'step': 3}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _parse(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        record = from_own_json(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number} is not JSON ({error}); the report was altered or torn") from None
    if not isinstance(record, dict) or "event" not in record:
        raise DataError(f"{path}, line {number} is not an event: it needs the keys 'schema', 'event' and 'seconds'")
    if record.get("schema") != SCHEMA:
        raise DataError(f"{path}, line {number} has schema {record.get('schema')!r}; this version of Holdfast reads {SCHEMA}")
    if not is_record(record):
        what = str(record["event"])[:40]
        raise DataError(f"{path}, line {number} is no event {what!r} as this version writes it; the report was altered or torn")
    return record


def _end_of(path: Path, version: int) -> int:
    """Where the story of `version` sealed steps ends: behind the line that its checkpoint was taken, or about its last step
    where the run was killed between the two; the end of the file, where it tells nothing of that version.
    """
    end = sealed = taken = written = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            record = _parse(line.decode(errors="replace"), number, path)
            about = (record["event"], record.get("step"))
            evaluated = about == ("Evaluated", version) and sealed == end > 0
            at_once = about == ("CheckpointWritten", version) and taken == end > 0
            end += len(line)
            if about == ("CheckpointTaken", version) or at_once:
                taken = end
            elif about == ("CheckpointWritten", version):  # as earlier versions told it, before the steps went on
                written = end
            elif about == ("StepSealed", version - 1) or evaluated:
                sealed = end
    return taken or written or sealed or (end if version else 0)


def _drop_torn_line(path: Path) -> None:
    """A killed run may have left half a line; the next event must not be glued to it."""
    if not path.exists():
        return
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end != len(whole):
        with path.open("r+b") as file:
            file.truncate(end)
