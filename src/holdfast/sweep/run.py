"""Cells are run and their records kept: what the store has is not run again, and what fails does not stop the others.

cell --> in the store? --> its record
     --> runner (in this process, or in one of several) --> record --> store
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.report.jsonl import finite
from holdfast.sweep.cell import Cell
from holdfast.sweep.record import Record
from holdfast.sweep.store import Store
from holdfast.sweep.workers import together

Runner = Callable[[Cell], Mapping[str, Any]]
"""Measures a cell; what it returns is plain (JSON) values. Picklable where there are several processes."""


def run_training(cell: Cell) -> dict[str, Any]:
    """One run, without a directory; returns what `train --json` would print. Cells that differ in attack, defence or network
    alone share text, tokenizer, model and plan within a process.
    """
    from holdfast.experiment import Experiment
    from holdfast.sweep.jobs import job_of

    return Experiment(cell.config, job=job_of(cell.config)).run().to_json()


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    *,
    jobs: int = 1,
    tell: Callable[[Record], None] = lambda _record: None,
    runner: Runner | None = None,
    command: Callable[[Cell], str] = lambda cell: cell.command,
) -> list[Record]:
    """A record for each cell, in their order. `tell` is called with each new one once it is kept.

    Cells that failed before are tried again; those with one key are run once. A runner's exception, or the death of its
    process, is the record's `error`. With `jobs` > 1 that many processes are spawned, so the calling script needs its
    `if __name__ == "__main__"`. Raises ConfigError where another process fills the store; KeyboardInterrupt leaves all that
    ended in the store, and no process behind.
    """
    with store.lock():
        done, waiting = split(cells, store)
        for record in _measured(waiting, runner or run_training, jobs, command) if waiting else ():
            store.put(record)
            done[record.key] = record
            tell(record)
    return [replace(done[cell.key], axes=dict(cell.axes)) for cell in cells]


def split(cells: Sequence[Cell], store: Store) -> tuple[dict[str, Record], list[Cell]]:
    """The records that are there, by key, and the cells that are still to be run."""
    found = {cell.key: store.get(cell) for cell in {cell.key: cell for cell in cells}.values()}
    done = {key: record for key, record in found.items() if record is not None and record.ok}
    waiting = {cell.key: cell for cell in cells if cell.key not in done}
    return done, list(waiting.values())


def time_left(waiting: Sequence[Cell], done: Sequence[Record], jobs: int = 1) -> float | None:
    """Seconds that the waiting cells may take, judged by measured ones: those alike but for the seed, or else by all.

    None where nothing was measured yet.
    """
    if not done:
        return None
    alike: dict[tuple[Any, ...], list[float]] = {}
    for record in done:
        alike.setdefault(_place(record.axes), []).append(record.seconds)
    usual = sum(record.seconds for record in done) / len(done)
    each = [(sum(found) / len(found) if (found := alike.get(_place(cell.axes))) else usual) for cell in waiting]
    return max([sum(each) / jobs, *each], default=0.0)


def _place(axes: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted((name, value) for name, value in axes.items() if name != "seed" and value is not None))


@dataclass(frozen=True)
class _Ending:
    """What a cell came to, before it is known where."""

    result: Mapping[str, Any] | None
    error: str | None
    seconds: float
    started: str
    ended: str


def _measured(cells: Sequence[Cell], runner: Runner, jobs: int, command: Callable[[Cell], str]) -> Iterator[Record]:
    from holdfast.sweep.environment import environment

    here = environment()
    measure = partial(_measure, runner=runner)
    began = _now()
    pairs = ((cell, measure(cell)) for cell in cells) if jobs == 1 else together(cells, measure, jobs)
    for cell, ending in pairs:
        if isinstance(ending, str):
            ending = _Ending(None, ending, 0.0, began, _now())
        yield Record(
            key=cell.key,
            axes=dict(cell.axes),
            tables=cell.config.model_dump(mode="json", exclude_none=True, exclude={"output"}),
            result=ending.result,
            error=ending.error,
            seconds=ending.seconds,
            started=ending.started,
            ended=ending.ended,
            command=command(cell),
            environment=here,
            kind=cell.kind,
            more=dict(cell.more),
        )


def _measure(cell: Cell, runner: Runner) -> _Ending:
    """One cell, whatever becomes of it: the border between a grid and the runs that may fail in it."""
    started, began = _now(), time.perf_counter()
    result, error = None, None
    try:
        result = finite(dict(runner(cell)))  # as it will be read again
    except HoldfastError as failure:
        error = str(failure)
    except Exception as failure:  # noqa: BLE001  (a defect that one cell brings to light must not lose the others)
        error = f"unexpected {type(failure).__name__}: {failure}"
    return _Ending(result, error, time.perf_counter() - began, started, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
