"""Cells with a content hash, kept one file each, run one after another or in several processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.atomic import write_file
from holdfast.errors import HoldfastError

Runner = Callable[["Cell"], dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """`axes` say where its number stands, `tables` are the settings of the run; both are plain values."""

    axes: Mapping[str, Any]
    tables: Mapping[str, Any]

    @property
    def key(self) -> str:
        told = json.dumps({"axes": self.axes, "tables": self.tables}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """What a cell came to: `values`, or an `error`."""

    key: str
    axes: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Store:
    directory: Path

    def read(self, cell: Cell) -> Record | None:
        path = self.directory / "cells" / f"{cell.key}.json"
        return Record(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def write(self, record: Record) -> None:
        path = self.directory / "cells" / f"{record.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(asdict(record), indent=1) + "\n").encode(), mode=0o644)


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    *,
    jobs: int = 1,
    tell: Callable[[Record], None] = lambda _record: None,
    runner: Runner,
) -> list[Record]:
    """A record for each cell, in their order; what the store has is not run again, and what fails is not kept."""
    found = {cell.key: record for cell in cells if (record := store.read(cell)) is not None}
    waiting = [cell for cell in cells if cell.key not in found]
    for record in (_one(cell, runner) for cell in waiting) if jobs == 1 else _together(waiting, runner, jobs):
        found[record.key] = record
        if record.error is None:
            store.write(record)
        tell(record)
    return [found[cell.key] for cell in cells]


def _one(cell: Cell, runner: Runner) -> Record:
    """One cell, whatever becomes of it: the border between a table and the runs that may fail in it."""
    try:
        return Record(cell.key, dict(cell.axes), runner(cell))
    except HoldfastError as error:
        return Record(cell.key, dict(cell.axes), error=str(error))
    except Exception as error:  # noqa: BLE001  (a defect that one cell brings to light must not lose the others)
        return Record(cell.key, dict(cell.axes), error=f"unexpected {type(error).__name__}: {error}")


def _together(cells: Sequence[Cell], runner: Runner, jobs: int) -> Iterator[Record]:
    with together(jobs) as pool:
        futures = {pool.submit(_one, cell, runner): cell for cell in cells}
        for future in as_completed(futures):
            cell, error = futures[future], future.exception()
            ended = Record(cell.key, dict(cell.axes), error=f"its process ended: {error}")
            yield future.result() if error is None else ended


@contextmanager
def together(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with one thread each, which are ended where the block is left by an error or by Ctrl-C."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_deaf) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _deaf() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
