"""What `sweep` and every `bench` do with cells at the border: where they are kept, which are left, how each one ended.

directory --> Store      a directory of something else is refused
list_cells               --dry-run: each cell with its state, and the time that is left
measure                  run what is missing, one line on stderr for each; the same command goes on after a kill
require_all              cells that failed are told at the end, by the exit code too
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from holdfast.sweep import Cell, Record, Store, Study

JOBS = Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Runs at a time, a process each.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="List the cells, and the time that is left; run nothing.")]
OUT = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Tables, figures, cells; the same again goes on (default: runs/DATE-TIME)."),
]
INTERRUPTED = 130


def directory(out: Path | None) -> Path:
    """Results go nowhere where something else lies. Raises ConfigError."""
    from holdfast.errors import ConfigError
    from holdfast.presets import default_out
    from holdfast.sweep.store import LOCK, is_store

    where = out if out is not None else Path(default_out())
    if where.exists():
        strange = not where.is_dir() or (any(path.name != LOCK for path in where.iterdir()) and not is_store(where))
        if strange:
            raise ConfigError(f"{where} exists and holds no cells to go on with; choose another --out")
    return where


def require_libraries() -> None:
    """What tables and figures need, before an hour of runs and not after it. Raises MissingExtra."""
    from holdfast.sweep.frame import require_pandas, require_scipy
    from holdfast.sweep.style import require_matplotlib

    require_pandas()
    require_scipy()
    require_matplotlib()


def list_cells(study: Study, store: Store, jobs: int, *, as_json: bool) -> None:
    """What `--dry-run` says."""
    from holdfast.cli.tables import ago, show
    from holdfast.sweep import split, time_left
    from holdfast.sweep.cell import shown

    cells, axes = study.cells, study.axes
    done, waiting = split(cells, store)
    _complain(store)
    left = time_left(waiting, list(done.values()), jobs)
    lines = [(cell, done.get(cell.key), _state(cell, done, store)) for cell in cells]
    if as_json:
        listed = [{"key": cell.key, "state": state, "axes": dict(cell.axes)} for cell, _, state in lines]
        print(json.dumps({"out": str(store.directory), "cells": listed, "waiting": len(waiting), "seconds_left": left}))
        return
    rows = [
        [
            cell.key[:12],
            state,
            ago(record.seconds) if record else "",
            *(shown(cell.axes[a]) if a in cell.axes else "" for a in axes),
        ]
        for cell, record, state in lines
    ]
    show(["cell", "state", "took", *axes], rows)
    told = "none measured yet, so nobody knows how long" if left is None else f"about {ago(left)} left with -j {jobs}"
    print(f"{len(cells)} cells, {len(waiting)} to be run" + (f": {told}" if waiting else ""))


def measure(
    study: Study,
    store: Store,
    jobs: int,
    *,
    quiet: bool,
    tell: Callable[[Record], str] = lambda _record: "",
    shared: bool = False,
) -> tuple[list[Record], int]:
    """The records of all cells, and how many of them were run now. `tell` says the outcome of a cell in a few words.

    A `shared` store serves several studies, so none of them writes its grid there. The first Ctrl-C keeps what has ended and
    leaves with 130.
    """
    from holdfast.sweep import split

    cells = study.cells
    done, waiting = split(cells, store)
    progress = _Progress(waiting, list(done.values()), jobs, tell, quiet=quiet)
    if not quiet:
        _complain(store)
        _say_of_others(list(done.values()))
        print(f"{len(cells)} cells, {len(waiting)} to be run; results: {store.directory}", file=sys.stderr, flush=True)
    store.refused.clear()
    try:
        run = study.run if shared else study.fill
        return run(store, jobs=jobs, tell=progress), progress.ended
    except KeyboardInterrupt:
        kept = len(split(cells, store)[0])
        print(f"stopped; {kept} of {len(cells)} cells are kept, the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def require_all(records: Sequence[Record]) -> None:
    """Raises HoldfastError where cells failed."""
    from holdfast.errors import HoldfastError

    failed = [record for record in records if not record.ok]
    if failed:
        raise HoldfastError(
            f"{len(failed)} of {len(records)} cells failed, and the same command tries them again; "
            f"the first: {failed[0].name}: {failed[0].error}"
        )


def numbers(names: Mapping[str, str]) -> Callable[[Record], str]:
    """For `tell`: the numbers of a record's result that have these names, each behind its word."""

    def tell(record: Record) -> str:
        result = record.result or {}
        return ", ".join(f"{word} {_short(result[name])}".strip() for name, word in names.items() if name in result)

    return tell


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "not finite" if value is None else str(value)
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"


def _state(cell: Cell, done: Mapping[str, Record], store: Store) -> str:
    if cell.key in done:
        return "done"
    return "failed" if store.get(cell) is not None else "waiting"


def _complain(store: Store) -> None:
    for told in store.refused:
        print(f"note: {told}", file=sys.stderr)


def _say_of_others(kept: Sequence[Record]) -> None:
    """Results of another state of the program are not measured again, and not kept secret."""
    from holdfast.sweep.environment import environment

    if not kept:
        return
    here = environment()
    for what in ("commit", "holdfast", "python", "torch", "machine"):
        others = sorted({str(record.environment.get(what)) for record in kept} - {str(here[what])})
        if others:
            print(f"note: kept cells have another {what} ({', '.join(others)}; here {here[what]})", file=sys.stderr)


class _Progress:
    """One line on stderr for each cell that ends, with the time that is left."""

    def __init__(
        self, waiting: Sequence[Cell], done: list[Record], jobs: int, tell: Callable[[Record], str], *, quiet: bool
    ) -> None:
        self._waiting = {cell.key: cell for cell in waiting}
        self._count, self._done, self._jobs, self._tell, self._quiet = len(waiting), done, jobs, tell, quiet
        self.ended = 0

    def __call__(self, record: Record) -> None:
        from holdfast.cli.tables import ago, plain
        from holdfast.sweep import time_left

        self.ended += 1
        self._waiting.pop(record.key, None)
        if record.ok:
            self._done.append(record)
        if self._quiet:
            return
        left = time_left(list(self._waiting.values()), self._done, self._jobs)
        more = f"; about {ago(left)} left" if self._waiting and left is not None else ""
        told = f"FAILED: {record.error}" if record.error is not None else f"{_before(self._tell(record))}{ago(record.seconds)}"
        print(plain(f"[{self.ended}/{self._count}] {record.name}: {told}{more}"), file=sys.stderr, flush=True)


def _before(words: str) -> str:
    return f"{words}, " if words else ""
