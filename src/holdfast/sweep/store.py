"""A store keeps what cells came to, one file each, so that whatever was finished is never computed again.

    DIR/cells/KEY.json     a record: written whole or not at all
    DIR/sweep.json         which cells the grid has, in its order
    DIR/lock               held by the process that fills the store; a killed one holds nothing

A record says by itself where its numbers come from: key, command, commit, environment, seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.atomic import clear_leftovers, write_file
from holdfast.errors import ConfigError, DataError
from holdfast.plain import from_own_json
from holdfast.sweep.cell import Cell
from holdfast.sweep.record import SCHEMA, Record, packed, unpacked

CELLS, GRID, LOCK = "cells", "sweep.json", "lock"
ADVICE = "remove that file, or run the sweep again, which redoes the cell"


class Store:
    """The records of one directory, which is made when something is written. `refused` collects, in words, the files that were
    found and were no whole records of this version: their cells count as not run.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self.refused: list[str] = []

    def get(self, cell: Cell) -> Record | None:
        """The record of a cell, under the cell's own axes, or None; a failed one is a record too."""
        path = self._path(cell.key)
        if not path.exists():
            return None
        try:
            return replace(_read(path), axes=dict(cell.axes))
        except DataError as error:
            self.refused.append(f"{error}; it is run again")
            return None

    def put(self, record: Record) -> None:
        """Write a record whole or not at all. Raises OSError."""
        path = self._path(record.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(packed(record), indent=1, allow_nan=False) + "\n").encode(), mode=0o644)

    def write_grid(self, name: str, axes: Sequence[str], cells: Sequence[Cell], text: str = "") -> None:
        """Say which cells the grid has now; those of an earlier one stay in the store and out of its reports."""
        told = {
            "schema": SCHEMA,
            "name": name,
            "axes": list(axes),
            "cells": [{"key": cell.key, "axes": dict(cell.axes)} for cell in cells],
            "text": text,
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        write_file(self.directory / GRID, (json.dumps(told, indent=1, allow_nan=False) + "\n").encode(), mode=0o644)

    def records(self) -> list[Record]:
        """All records of the grid in its order, or of the whole store in that of their ends where no grid was written.

        Raises DataError for a directory without records, and for a file that is no record of this version.
        """
        grid = self._grid()
        if grid is not None:
            placed = [(self._path(entry["key"]), entry["axes"]) for entry in grid["cells"]]
            found = [replace(_read(path), axes=axes) for path, axes in placed if path.exists()]
        else:
            found = sorted(map(_read, (self.directory / CELLS).glob("*.json")), key=lambda record: record.ended)
        if not found:
            raise DataError(f"{self.directory} holds no finished cell; give the directory that `holdfast sweep --out` filled")
        return found

    @property
    def missing(self) -> int:
        """Cells of the grid that have no record yet."""
        grid = self._grid()
        return 0 if grid is None else sum(not self._path(entry["key"]).exists() for entry in grid["cells"])

    @property
    def name(self) -> str:
        """What the grid is called, or else the directory."""
        grid = self._grid()
        return str(grid["name"]) if grid is not None else self.directory.resolve().name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store against other processes; raises ConfigError where one fills it. A lock ends with its process."""
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _seize(descriptor, self.directory)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            if (self.directory / CELLS).is_dir():
                clear_leftovers(self.directory / CELLS)
            yield
        finally:
            os.close(descriptor)

    def _path(self, key: str) -> Path:
        return self.directory / CELLS / f"{key}.json"

    def _grid(self) -> dict[str, Any] | None:
        path = self.directory / GRID
        try:
            content = from_own_json(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"it has schema {content['schema']!r}, this version of Holdfast reads {SCHEMA}")
            if not isinstance(content["name"], str) or not all(_is_place(entry) for entry in content["cells"]):
                raise ValueError("it names no cells")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not what a sweep writes ({error}); run the sweep again, which writes it") from None
        return dict(content)


def is_store(directory: Path) -> bool:
    """Whether a directory looks like one that a sweep filled."""
    return (directory / CELLS).is_dir() or (directory / GRID).is_file()


def _read(path: Path) -> Record:
    """A record from its file; raises DataError for what is torn, altered, of another version, or another cell's."""
    try:
        record = unpacked(from_own_json(path.read_text(encoding="utf-8")))
        if record.key != path.stem:
            raise ValueError("it is the record of another cell")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is no record of a cell ({error}); {ADVICE}") from None
    return record


def _is_place(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("key"), str) and isinstance(entry.get("axes"), dict)


def _seize(descriptor: int, directory: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        raise ConfigError(
            f"another sweep (process {holder or 'unknown'}) is filling {directory}; wait for it, or choose another --out"
        ) from None
