"""`holdfast bench roc`: false alarms in honest checks on mixed arithmetic, and which forgeries are caught; 1 if short."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.cells import DRY_RUN, JOBS, OUT, directory, list_cells, measure, require_all, require_libraries
from holdfast.cli.options import JSON, QUIET, require_known

if TYPE_CHECKING:
    from holdfast.sweep import Record


def register(app: typer.Typer) -> None:
    app.command("roc")(roc)


def roc(
    checks: Annotated[int, typer.Option("--checks", metavar="N", min=1, help="Honest checks, at least.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The seed that all others follow from.")] = 0,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="gpt2:layers=6,..., a directory, a hub name.")
    ] = "gpt2:layers=6,width=64,heads=4",
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", metavar="TYPE", help="float32 or bfloat16 (default: both); repeatable.")
    ] = None,
    stages: Annotated[int, typer.Option("--stages", metavar="K", min=3, help="Stages to cut the model into.")] = 6,
    micro_batches: Annotated[int, typer.Option("--micro-batches", metavar="M", min=1, help="Micro-batches in a step.")] = 4,
    jobs: JOBS = 1,
    dry_run: DRY_RUN = False,
    out: OUT = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure tolerance across unlike hardware. False alarms, and the detection rate against the size of a forgery."""
    from holdfast.bench.roc import ARITHMETICS, Plan, config_of
    from holdfast.bench.roc_cells import gather, study_of
    from holdfast.bench.roc_report import summary, write_roc
    from holdfast.job import prepare
    from holdfast.sweep import Store
    from holdfast.sweep.environment import environment

    dtypes = tuple(dict.fromkeys(dtype or ARITHMETICS))
    for name in dtypes:
        require_known("--dtype", name, ARITHMETICS)
    plan = Plan(model, dtypes, checks, seed, stages, micro_batches)
    study, store = study_of(plan), Store(directory(out))
    if dry_run:
        list_cells(study, store, jobs, as_json=as_json)
        return
    require_libraries()
    prepare(config_of(plan, dtypes[0]))  # what cannot be run is told before anything is written
    here, where = environment(), store.directory
    records, _ = measure(study, store, jobs, quiet=quiet, tell=_told)
    require_all(records)
    found = gather(plan, records)
    write_roc(found, where, here)
    if as_json:
        print(json.dumps(summary(found) | {"out": str(where)}))
    else:
        print(
            f"{found.checks:,} honest checks, {found.false_alarms} false alarms; {found.missed} forgeries missed; see {where}"
        )
    if not found.passed:
        raise typer.Exit(1)


def _told(record: Record) -> str:
    rows = record.result["rows"] if record.result else ()
    checks, alarms, missed = (sum(row[name] for row in rows) for name in ("honest_checks", "false_alarms", "missed"))
    return f"{checks:,} honest checks, {alarms} false alarms, {missed} missed"
