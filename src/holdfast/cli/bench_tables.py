"""`holdfast bench table1` and `table2`: the paper's tables at a size of one's own, each number with its run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.options import JSON, QUIET

if TYPE_CHECKING:
    from holdfast.bench.paper.cells import Record
    from holdfast.bench.paper.grid import Question
    from holdfast.bench.paper.table import Results

HELP = {
    "table1": "Table 1: clean, forward and backward attacks at rates 0.3 and 0.7; three data sets, two models.",
    "table2": "Table 2: clean, attacked at 0.5, defended by every remedy, with controls; two data sets, four models.",
}


def register(app: typer.Typer) -> None:
    for table, told in HELP.items():
        app.command(table, help=told)(_command(table))


def _command(table: str) -> Callable[..., None]:
    def command(
        scale: Annotated[str, typer.Option("--scale", metavar="NAME", help="tiny, small, paper, or smoke.")] = "tiny",
        seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Runs of each cell.")] = 1,
        first_seed: Annotated[int, typer.Option("--first-seed", metavar="N", min=0, help="The seed of the first.")] = 0,
        models: Annotated[
            list[str] | None, typer.Option("--models", metavar="NAME", help="A model of the scale; repeatable (default: all).")
        ] = None,
        data: Annotated[
            list[str] | None, typer.Option("--data", metavar="NAME|PATH", help="A data set; repeatable (default: the table's).")
        ] = None,
        steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Steps of fine-tuning.")] = None,
        model_dir: Annotated[
            list[str] | None,
            typer.Option("--model-dir", metavar="NAME=DIR", help="Take a model of the scale from a directory; repeatable."),
        ] = None,
        device: Annotated[
            str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, ... (default: the scale's).")
        ] = None,
        assign: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other setting; repeatable.")
        ] = None,
        jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Runs at a time.")] = 1,
        out: Annotated[
            Path | None,
            typer.Option(
                "--out", metavar="DIR", help="Table, figure and cells; the same again goes on (default: runs/TABLE-SCALE)."
            ),
        ] = None,
        store: Annotated[
            Path | None, typer.Option("--store", metavar="DIR", help="Models and cells, shared by tables (default: OUT/store).")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells that are still to be run.")] = False,
        as_json: JSON = False,
        quiet: QUIET = False,
    ) -> None:
        from holdfast.bench.paper.grid import ask

        question = ask(
            table,
            scale,
            models=models or (),
            data=data or (),
            seeds=range(first_seed, first_seed + seeds),
            directories=_directories(model_dir or []),
            steps=steps,
            assignments=tuple(assign or ()),
            **({"device": device} if device is not None else {}),
        )
        where = out if out is not None else Path("runs") / f"{table}-{scale}"
        kept = store if store is not None else where / "store"
        if dry_run:
            _list(question, kept, as_json=as_json)
        else:
            _measure(question, where, kept, jobs, as_json=as_json, quiet=quiet)

    return command


def _directories(given: list[str]) -> dict[str, str]:
    from holdfast.errors import ConfigError

    found = {}
    for text in given:
        name, equals, directory = text.partition("=")
        if not equals or not Path(directory).is_dir():
            raise ConfigError(f"--model-dir {text!r}: expected NAME=DIR, and DIR a directory that holds a model")
        found[name] = directory
    return found


def _list(question: Question, kept: Path, *, as_json: bool) -> None:
    from holdfast.bench.paper.cells import Store
    from holdfast.bench.paper.grid import cells_of

    cells, store = cells_of(question), Store(kept)
    waiting = [cell for cell in cells if store.read(cell) is None]
    if as_json:
        told = [{"key": cell.key, **cell.axes} for cell in waiting]
        print(json.dumps({"cells": len(cells), "kept": len(cells) - len(waiting), "waiting": told}))
        return
    for cell in waiting:
        print(f"{cell.key}  " + "  ".join(str(value) for value in cell.axes.values()))
    print(f"{len(cells)} cells, {len(waiting)} to be run")


def _measure(question: Question, out: Path, kept: Path, jobs: int, *, as_json: bool, quiet: bool) -> None:
    from holdfast.bench.drawing import require_matplotlib
    from holdfast.bench.environment import environment
    from holdfast.bench.paper.cells import Store, run_cells
    from holdfast.bench.paper.grid import cells_of, check_models
    from holdfast.bench.paper.pretrain import make_all
    from holdfast.bench.paper.runner import FineTuning
    from holdfast.bench.paper.table import Results, Summary
    from holdfast.bench.paper.write import write
    from holdfast.job import check_device

    say = partial(_say, quiet=quiet)
    require_matplotlib()
    _ = Summary((1.0, 2.0)).half  # before an hour of runs, not after it
    check_device(question.device)
    check_models(question)
    cells, store = cells_of(question), Store(kept)
    starters = [question.starter(*row) for row in question.rows]
    make_all([starter for starter in starters if starter is not None], kept, say, jobs)
    waiting = [cell for cell in cells if store.read(cell) is None]
    say(f"{len(cells)} cells, {len(waiting)} to be run")
    tell = _Teller(len(waiting), say)
    results = Results(question, run_cells(cells, store, jobs=jobs, tell=tell, runner=FineTuning(kept)))
    write(out, results, cells, environment())
    _report(results, out, as_json=as_json)


def _say(line: str, *, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr, flush=True)


class _Teller:
    """One line for each run that ends."""

    def __init__(self, count: int, say: Callable[[str], None]) -> None:
        self._count, self._say, self._ended = count, say, 0

    def __call__(self, record: Record) -> None:
        self._ended += 1
        place = ", ".join(str(value) for value in record.axes.values())
        if record.error is not None:
            told = f"FAILED: {record.error}"
        else:
            perplexity = record.values["validation_perplexity"]
            told = f"perplexity {'infinite' if perplexity is None else f'{perplexity:,.1f}'}, {record.values['seconds']:.1f} s"
        self._say(f"[{self._ended}/{self._count}] {place}: {told}")


def _report(results: Results, out: Path, *, as_json: bool) -> None:
    from holdfast.bench.paper.table import broken_promises, grid, sections, words
    from holdfast.cli.tables import show
    from holdfast.errors import HoldfastError

    broken = broken_promises(results)
    if as_json:
        told = [
            dict(zip(["section", *headings], [part.title, *line], strict=True))
            for part in sections(results.question)
            for headings, lines in [grid(results, part)]
            for line in lines
        ]
        print(
            json.dumps(
                {
                    "out": str(out),
                    "cells": len(results.records),
                    "failed": len(results.failed),
                    "findings": broken,
                    "words": words(results),
                    "rows": told,
                },
                allow_nan=False,
            )
        )
    else:
        for part in sections(results.question):
            if part.title:
                print(part.title)
            show(*grid(results, part))
        for line in words(results):
            print(f"- {line}")
        print(f"\nTable and figure: {out}")
    if broken:
        raise HoldfastError(f"a broken promise: {broken[0]}" + (f", and {len(broken) - 1} more" if len(broken) > 1 else ""))
    if results.failed:
        raise HoldfastError(f"{len(results.failed)} of {len(results.records)} cells failed; the same command runs them again")
