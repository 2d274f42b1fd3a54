"""`holdfast bench roc`: false alarms in honest checks on mixed arithmetic, and which forgeries are caught; 1 if short."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.cells import empty_directory
from holdfast.cli.options import JSON, QUIET, require_known


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
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where tables and figure are written (default: runs/DATE-TIME).")
    ] = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure tolerance across unlike hardware: false alarms, and the detection rate against the size of a forgery."""
    from holdfast.bench.roc import ARITHMETICS, Plan, run_roc
    from holdfast.bench.roc_report import summary, write_roc
    from holdfast.sweep.environment import environment
    from holdfast.sweep.style import require_matplotlib

    dtypes = tuple(dict.fromkeys(dtype or ARITHMETICS))
    for name in dtypes:
        require_known("--dtype", name, ARITHMETICS)
    where = empty_directory(out)
    require_matplotlib()

    def tell(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    found = run_roc(Plan(model, dtypes, checks, seed, stages, micro_batches), tell)
    write_roc(found, where, environment())
    if as_json:
        print(json.dumps(summary(found) | {"out": str(where)}))
    else:
        print(
            f"{found.checks:,} honest checks, {found.false_alarms} false alarms; {found.missed} forgeries missed; see {where}"
        )
    if not found.passed:
        raise typer.Exit(1)
