"""`holdfast sweep`: a grid of runs, each of them kept as it ends, so that the same command goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.cells import DRY_RUN, JOBS
from holdfast.cli.options import JSON, QUIET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.sweep import Grid, Record, Store


def register(app: typer.Typer) -> None:
    app.command("sweep", rich_help_panel="Runs")(sweep)


def sweep(
    grid: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="Base settings, axes, cases and seeds.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where results are kept (default: runs/NAME of the sweep).")
    ] = None,
    jobs: JOBS = 1,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Run a grid of settings x seeds. What is there already is not run again."""
    from holdfast.cli.cells import directory, list_cells, measure, numbers, require_all, require_libraries
    from holdfast.sweep import Store, Study, read_grid

    planned = read_grid(grid)
    study = Study(planned.name, planned.cells, text=planned.text)
    store = Store(directory(out if out is not None else Path("runs") / planned.name))
    if dry_run:
        list_cells(study, store, jobs, as_json=as_json)
        return
    require_libraries()
    tell = numbers({"validation_perplexity": "perplexity"})
    records, ran = measure(study, store, jobs, quiet=quiet, tell=tell)
    _report(planned, store, records, ran=ran, as_json=as_json)
    require_all(records)


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
