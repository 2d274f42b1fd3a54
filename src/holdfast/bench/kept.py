"""What has been measured is kept, one JSON line a cell, so that an experiment that was killed goes on where it was.

    key = sha256 of everything that the cell's figures depend on ──> cells.jsonl {"key", "cell", "result", "seconds"}

A line that was torn by a kill is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError

FILE = "cells.jsonl"


class Kept:
    """The cells of the directory `out` (None: kept in memory alone). Raises ConfigError where something else lies there."""

    def __init__(self, out: Path | None) -> None:
        self._path = None if out is None else out / FILE
        self._results: dict[str, Any] = {}
        self.measured = 0
        if self._path is None or out is None or not out.exists():
            return
        if not out.is_dir() or (any(out.iterdir()) and not self._path.is_file()):
            raise ConfigError(f"{out} exists and holds no {FILE} to go on with; choose another --out")
        if self._path.is_file():
            self._read(self._path)

    def get(self, cell: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """The result of the cell, from before or measured now; plain values only, as JSON has them."""
        key = content_hash(cell)
        if key not in self._results:
            began = time.perf_counter()
            result = json.loads(json.dumps(measure(), allow_nan=False))
            self._append({"key": key, "cell": dict(cell), "result": result, "seconds": round(time.perf_counter() - began, 3)})
            self._results[key] = result
            self.measured += 1
        return self._results[key]

    def __contains__(self, cell: Mapping[str, Any]) -> bool:
        return content_hash(cell) in self._results

    def _read(self, path: Path) -> None:
        whole = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                self._results[record["key"]] = record["result"]
                whole.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        if len(whole) != len(path.read_text(encoding="utf-8").splitlines()):
            path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def content_hash(cell: Mapping[str, Any]) -> str:
    """
    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(cell, sort_keys=True, allow_nan=False).encode()).hexdigest()
