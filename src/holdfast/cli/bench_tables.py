"""`holdfast bench table1` and `table2`: the paper's tables at a size of one's own, each number with its run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.cells import DRY_RUN, JOBS, list_cells, measure, numbers, require_all, require_libraries
from holdfast.cli.options import JSON, QUIET

if TYPE_CHECKING:
    from holdfast.bench.paper.grid import Question
    from holdfast.bench.paper.table import Results

HELP = {
    "table1": "Table 1: what lies do to a model without a defence. Clean, forward and backward attacks at rates 0.3 and 0.7; "
    "three data sets, two models.",
    "table2": "Table 2: what each remedy saves. Clean, attacked at 0.5, defended by every remedy, with controls; "
    "two data sets, four models.",
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
        columns: Annotated[
            list[str] | None,
            typer.Option("--columns", metavar="NAME", help="A column; repeatable (default: all; clean always)."),
        ] = None,
        overfit: Annotated[
            bool, typer.Option("--overfit", help="Little text, many steps: clean runs overfit, as the paper's did.")
        ] = False,
        jobs: JOBS = 1,
        out: Annotated[
            Path | None,
            typer.Option(
                "--out", metavar="DIR", help="Table, figure and cells; the same again goes on (default: runs/TABLE-SCALE)."
            ),
        ] = None,
        store: Annotated[
            Path | None, typer.Option("--store", metavar="DIR", help="Models and cells, shared by tables (default: OUT/store).")
        ] = None,
        dry_run: DRY_RUN = False,
        as_json: JSON = False,
        quiet: QUIET = False,
    ) -> None:
        from holdfast.bench.paper.grid import ask
        from holdfast.bench.paper.runner import study_of
        from holdfast.sweep import Store

        question = ask(
            table,
            scale,
            models=models or (),
            data=data or (),
            seeds=range(first_seed, first_seed + seeds),
            directories=_directories(model_dir or []),
            columns=columns or (),
            overfit=overfit,
            steps=steps,
            assignments=tuple(assign or ()),
            **({"device": device} if device is not None else {}),
        )
        where = out if out is not None else Path("runs") / f"{table}-{scale}"
        kept = store if store is not None else where / "store"
        if dry_run:
            list_cells(study_of(question, kept), Store(kept), jobs, as_json=as_json)
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


def _measure(question: Question, out: Path, kept: Path, jobs: int, *, as_json: bool, quiet: bool) -> None:
    from holdfast.bench.paper.grid import check_models
    from holdfast.bench.paper.pretrain import make_all
    from holdfast.bench.paper.runner import study_of
    from holdfast.bench.paper.table import Results
    from holdfast.bench.paper.write import write
    from holdfast.job import check_device
    from holdfast.sweep import Store
    from holdfast.sweep.environment import environment

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    require_libraries()
    check_device(question.device)
    check_models(question)
    starters = [question.starter(*row) for row in question.rows]
    make_all([starter for starter in starters if starter is not None], kept, say, jobs)
    tell = numbers({"validation_perplexity": "perplexity"})
    records, _ = measure(study_of(question, kept), Store(kept), jobs, quiet=quiet, tell=tell, shared=True)
    results = Results(question, records)
    write(out, results, environment())
    _report(results, out, as_json=as_json)


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
    require_all(results.records)
