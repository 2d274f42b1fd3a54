"""`holdfast sweep`: a grid of runs, each of them kept as it ends, so that the same command goes on where it was stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.options import JSON, QUIET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.sweep import Cell, Grid, Record, Store

INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    app.command("sweep", rich_help_panel="Runs")(sweep)


def sweep(
    grid: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="Base settings, axes, cases and seeds.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where results are kept (default: runs/NAME of the sweep).")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Runs at a time, a process each.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells, and the time that is left; run nothing.")] = False,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Run a grid of settings x seeds; what is there already is not run again."""
    from holdfast.sweep import Store, read_grid
    from holdfast.sweep.frame import require_pandas, require_scipy

    planned = read_grid(grid)
    store = Store(_directory(out if out is not None else Path("runs") / planned.name))
    if dry_run:
        _list(planned, store, jobs, as_json=as_json)
        return
    require_pandas()
    require_scipy()  # before an hour of runs, not after it
    _run(planned, store, jobs, as_json=as_json, quiet=quiet)


def _directory(out: Path) -> Path:
    """Results go nowhere where something else lies."""
    from holdfast.errors import ConfigError
    from holdfast.sweep.store import LOCK, is_store

    strange = out.exists() and (not out.is_dir() or (any(path.name != LOCK for path in out.iterdir()) and not is_store(out)))
    if strange:
        raise ConfigError(f"{out} exists and holds no sweep; choose another --out")
    return out


def _list(planned: Grid, store: Store, jobs: int, *, as_json: bool) -> None:
    from holdfast.cli.tables import ago, show
    from holdfast.sweep import split, time_left

    done, waiting = split(planned.cells, store)
    _complain(store)
    left = time_left(waiting, list(done.values()), jobs)
    lines = [(cell, done.get(cell.key), _state(cell, done, store)) for cell in planned.cells]
    if as_json:
        listed = [{"key": cell.key, "state": state, "axes": dict(cell.axes)} for cell, _, state in lines]
        print(json.dumps({"out": str(store.directory), "cells": listed, "waiting": len(waiting), "seconds_left": left}))
        return
    rows = [[cell.key[:12], state, ago(record.seconds) if record else "", *_places(cell)] for cell, record, state in lines]
    show(["cell", "state", "took", *planned.axes], rows)
    told = "none measured yet, so nobody knows how long" if left is None else f"about {ago(left)} left with -j {jobs}"
    print(f"{len(planned.cells)} cells, {len(waiting)} to be run" + (f": {told}" if waiting else ""))


def _state(cell: Cell, done: dict[str, Record], store: Store) -> str:
    if cell.key in done:
        return "done"
    return "failed" if store.get(cell) is not None else "waiting"


def _places(cell: Cell) -> list[str]:
    from holdfast.sweep.cell import shown

    return [shown(value) for value in cell.axes.values()]


def _run(planned: Grid, store: Store, jobs: int, *, as_json: bool, quiet: bool) -> None:
    from holdfast.errors import HoldfastError
    from holdfast.sweep import run_cells, split

    done, waiting = split(planned.cells, store)
    progress = _Progress(waiting, list(done.values()), jobs, quiet=quiet)
    if not quiet:
        _complain(store)
        _say_of_others(list(done.values()))
        print(f"{len(planned.cells)} cells, {len(waiting)} to be run; results: {store.directory}", file=sys.stderr, flush=True)
    store.refused.clear()
    try:
        with store.lock():
            store.write_grid(planned.name, planned.axes, planned.cells, planned.text)
        records = run_cells(planned.cells, store, jobs=jobs, tell=progress)
    except KeyboardInterrupt:
        kept = len(split(planned.cells, store)[0])
        print(f"stopped; {kept} of {len(planned.cells)} cells are kept, the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    failed = [record for record in records if not record.ok]
    _report(planned, store, records, ran=progress.ended, as_json=as_json)
    if failed:
        raise HoldfastError(
            f"{len(failed)} of {len(records)} cells failed, and the same command tries them again; "
            f"the first: {failed[0].name}: {failed[0].error}"
        )


def _complain(store: Store) -> None:
    for told in store.refused:
        print(f"note: {told}", file=sys.stderr)


def _say_of_others(kept: Sequence[Record]) -> None:
    """Results of another state of the program are not measured again, and not kept secret."""
    from holdfast.bench.environment import environment

    if not kept:
        return
    here = environment()
    for what in ("commit", "holdfast", "python", "torch", "machine"):
        others = sorted({str(record.environment.get(what)) for record in kept} - {str(here[what])})
        if others:
            print(f"note: kept cells have another {what} ({', '.join(others)}; here {here[what]})", file=sys.stderr)


class _Progress:
    """One line on stderr for each cell that ends, with the time that is left."""

    def __init__(self, waiting: Sequence[Cell], done: list[Record], jobs: int, *, quiet: bool) -> None:
        self._waiting = {cell.key: cell for cell in waiting}
        self._count, self._done, self._jobs, self._quiet = len(waiting), done, jobs, quiet
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
        told = f"FAILED: {record.error}" if record.error is not None else f"{_number_of(record)}{ago(record.seconds)}"
        print(plain(f"[{self.ended}/{self._count}] {record.name}: {told}{more}"), file=sys.stderr, flush=True)


def _number_of(record: Record) -> str:
    result = record.result or {}
    if "validation_perplexity" not in result:
        return ""
    value = result["validation_perplexity"]
    return f"perplexity {value:,.1f}, " if isinstance(value, int | float) else "perplexity not finite, "


def _report(planned: Grid, store: Store, records: Sequence[Record], *, ran: int, as_json: bool) -> None:
    from holdfast.cli.tables import show
    from holdfast.sweep.table import make_table
    from holdfast.sweep.text import plain_rows

    table = make_table(records, name=planned.name)
    if as_json:
        told: dict[str, Any] = {
            "out": str(store.directory),
            "name": planned.name,
            "cells": len(records),
            "ran": ran,
            "failed": sum(not record.ok for record in records),
            "rows": table.to_json(),
        }
        print(json.dumps(told, allow_nan=False))
        return
    show(*plain_rows(table))
    print(f"Results: {store.directory}   (holdfast report {store.directory} -f html --to page.html)")
