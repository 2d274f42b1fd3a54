"""`holdfast bench detection`: what is caught, of which attack, by which defence, how soon, against whom and at what cost."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.cells import DRY_RUN, OUT, directory, list_cells, measure, numbers, require_libraries
from holdfast.cli.options import JSON, QUIET, require_known

if TYPE_CHECKING:
    from holdfast.bench.cell import Setup
    from holdfast.bench.suites import Suite
    from holdfast.bench.workshop import Outcome

DEFAULT_SUITE = "catalogue"


def register(app: typer.Typer) -> None:
    app.command("detection")(detection)


def detection(
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="NAME", help="quick, catalogue (default), blame or collusion.")
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME[,p=v...]", help="An attack in place of the suite's, or honest; repeatable."),
    ] = None,
    stages: Annotated[
        list[str] | None, typer.Option("--stages", metavar="1-4", help="Stages that may lie, or all; repeatable.")
    ] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option("--direction", metavar="NAME", help="Instead of each attack's own; or every; repeatable."),
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option("--rate", metavar="X", help="Probability of a strike in a step; repeatable.")
    ] = None,
    defence: Annotated[
        list[str] | None,
        typer.Option("--defence", metavar="NAME[,p=v...]", help="A defence with settings; repeatable."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", metavar="N", min=1, help="Runs of each combination.")] = None,
    first_seed: Annotated[int, typer.Option("--first-seed", metavar="N", min=0, help="The seed of the first run.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Optimizer steps a run.")] = None,
    micro_batches: Annotated[int | None, typer.Option("--micro-batches", metavar="M", min=1, help="In a step.")] = None,
    scale: Annotated[str, typer.Option("--scale", metavar="NAME", help="Size of the model: tiny or small.")] = "tiny",
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other setting; repeatable.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", "-j", metavar="N", min=1, help="Runs at a time.")] = 1,
    dry_run: DRY_RUN = False,
    out: OUT = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure detection, attack by attack, stage by stage. The grid is attack x stage x direction x rate x defence, over
    seeds, against clean runs.
    """
    from holdfast.bench.cell import Setup
    from holdfast.bench.suites import plan
    from holdfast.bench.workshop import Outcome, outcome_of, study_of
    from holdfast.sweep import Store

    chosen = _suite(suite)
    typed: dict[str, Any] = {"attacks": attack, "stages": stages, "directions": direction, "rates": rate, "defences": defence}
    count = len(chosen.grid.seeds) if seeds is None else seeds
    given = {name: tuple(values) for name, values in typed.items() if values}
    grid = replace(chosen.grid, seeds=range(first_seed, first_seed + count), **given)
    setup = Setup(scale, chosen.steps if steps is None else steps, micro_batches, tuple(assign or ()))
    planned = plan(grid, setup, frozenset([*(attack or ()), *(defence or ())]))
    study, store = study_of(planned.cells, setup), Store(directory(out))
    if dry_run:
        list_cells(study, store, processes, as_json=as_json)
        return
    require_libraries()
    tell = numbers({"detected": "caught", "missed": "missed", "false_alarms": "false alarms", "stopped": "stopped:"})
    records, _ = measure(study, store, processes, quiet=quiet, tell=tell)
    outcomes = [*map(outcome_of, records), *(Outcome(cell, error=why) for cell, why in planned.impossible.items())]
    _report(store.directory, outcomes, setup, as_json=as_json)


def _suite(name: str | None) -> Suite:
    from holdfast.bench.suites import SUITES

    if name is not None:
        require_known("--suite", name, SUITES)
    return SUITES[name or DEFAULT_SUITE]


def _report(out: Path, outcomes: list[Outcome], setup: Setup, *, as_json: bool) -> None:
    from holdfast.bench.figure import draw
    from holdfast.bench.rows import rows_of
    from holdfast.bench.table import COLUMNS, findings, write
    from holdfast.errors import HoldfastError
    from holdfast.report.pipes import told_pipes
    from holdfast.sweep.environment import environment

    rows = rows_of(outcomes, setup)
    write(out, rows, outcomes, setup, environment())
    draw(rows, out)
    failures = [outcome.error for outcome in outcomes if outcome.measurement is None and not outcome.stopped]
    if as_json:
        summary = {"out": str(out), "cells": len(outcomes), "failed": len(failures), "rows": [asdict(row) for row in rows]}
        print(json.dumps({**summary, "findings": findings(outcomes, setup)}, allow_nan=False))
    else:
        print(told_pipes(rows, COLUMNS))
        for line in findings(outcomes, setup):
            print(f"- {line}")
        print(f"\nTable and figure: {out}")
    if failures:
        raise HoldfastError(f"{len(failures)} of {len(outcomes)} runs failed; the first: {failures[0]}")
