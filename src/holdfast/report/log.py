"""The log of a run for those who operate it: one line for each event that matters, in plain words, as text or as JSON.

    2026-11-24T10:15:02.481Z warning step 12: w2 is lost: its process ended by SIGKILL
    {"time": "2026-11-24T10:15:02.481Z", "level": "warning", "event": "WorkerLost", "message": "step 12: ...", "worker": ...}

What the wire and the door tell Python's own logging goes there too. No line holds a key, an invite or the command line.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from holdfast.event import (
    Alert,
    Banned,
    CheckpointFailed,
    Event,
    JournalSetAside,
    Paused,
    RolledBack,
    Ruling,
    RunFinished,
    StagesSkipped,
    StepRestarted,
    TakenOver,
    WorkerLost,
)
from holdfast.evidence.story import printable
from holdfast.report.jsonl import finite
from holdfast.report.tally import tell

FILE = "holdfast.log"
LOGGER = "holdfast"
Form = Literal["text", "json"]

WARNINGS = (
    Alert,
    Banned,
    CheckpointFailed,
    JournalSetAside,
    Paused,
    RolledBack,
    StagesSkipped,
    StepRestarted,
    TakenOver,
    WorkerLost,
)
SHOWN = (
    "step",
    "attempt",
    "worker",
    "stage",
    "lost",
    "last",
    "heir",
    "version",
    "path",
    "reason",
    "lies",
    "culprits",
    "suspects",
    "key",
)
"""Fields of events that a line of JSON repeats; none of them can hold a secret."""


class Log:
    """Observer that writes to `stream`; `clock` gives Unix seconds. May be written to from several threads."""

    def __init__(self, stream: TextIO, form: Form = "text", *, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._form = form
        self._clock = clock
        self._lock = threading.Lock()

    def __call__(self, event: Event, seconds: float) -> None:
        message = tell(event)
        if isinstance(event, RunFinished):
            message = f"the run is over; its weights have the digest {event.weights_digest[:12]}"
        if message is not None:
            fields = {name: getattr(event, name) for name in SHOWN if hasattr(event, name)}
            if "key" in fields:
                fields["key"] = str(fields["key"])
            name = type(event).__name__
            self.write(_level(event), message, {"event": name, "run_seconds": round(seconds, 3), **fields})

    def write(self, level: str, message: str, fields: dict[str, Any] | None = None) -> None:
        """One line, whole at once. A stream that takes no more is left alone: a full disk must not end a run by its log."""
        now = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._form == "json":
            record = {"time": now, "level": level, "message": message, **(fields or {})}
            line = json.dumps(finite(record), allow_nan=False)
        else:
            line = printable(f"{now} {level} {message}")
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return


class LogFile:
    """The log in a run's directory, with what this process tells `logging` under the name `holdfast` while it is open."""

    def __init__(self, directory: Path, form: Form = "text") -> None:
        """Raises OSError where the file cannot be opened."""
        self._file = (directory / FILE).open("a", encoding="utf-8", errors="backslashreplace")
        self._log = Log(self._file, form)
        self._handler = _Handler(self._log)
        logger = logging.getLogger(LOGGER)
        self._level_before = logger.level
        logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)

    def __call__(self, event: Event, seconds: float) -> None:
        self._log(event, seconds)

    def close(self) -> None:
        logger = logging.getLogger(LOGGER)
        logger.removeHandler(self._handler)
        logger.setLevel(self._level_before)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Handler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        part = record.name.removeprefix(LOGGER).lstrip(".")
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a wrong format is a defect of who wrote it, and no reason to end the run
            message = str(record.msg)
        self._log.write(record.levelname.lower(), f"{part}: {message}" if part else message, {"event": "log", "part": part})


def _level(event: Event) -> str:
    proven = isinstance(event, Ruling) and bool(event.culprits)
    return "warning" if proven or isinstance(event, WARNINGS) else "info"


__all__ = ["FILE", "Form", "Log", "LogFile"]
