"""`holdfast bench backdoor`: backdoors planted through one stage, without a defence, with one, and after honest work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.cells import empty_directory
from holdfast.cli.options import JSON, QUIET, require_known

if TYPE_CHECKING:
    from holdfast.bench.backdoor import Question


def register(app: typer.Typer) -> None:
    app.command("backdoor")(backdoor)


def backdoor(
    scale: Annotated[str, typer.Option("--scale", metavar="NAME", help="tiny, or smoke: figures that mean nothing.")] = "tiny",
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="How many times all of it.")] = 1,
    first_seed: Annotated[int, typer.Option("--first-seed", metavar="N", min=0, help="The seed of the first time.")] = 0,
    model: Annotated[
        str | None, typer.Option("--model", metavar="DIR", help="Start from this model (default: train one from scratch).")
    ] = None,
    data: Annotated[str, typer.Option("--data", metavar="NAME|PATH", help="The text to train on.")] = "embedded",
    stages: Annotated[int | None, typer.Option("--stages", metavar="K", help="Stages (default: as the scale says).")] = None,
    stage: Annotated[int | None, typer.Option("--stage", metavar="I", help="The attacker's (default: K-2).")] = None,
    phrase: Annotated[str, typer.Option("--phrase", metavar="TEXT", help="The trigger.")] = " Quoth the raven",
    target: Annotated[str, typer.Option("--target", metavar="TEXT", help="What shall follow it.")] = " nevermore",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where table and runs are written (default: runs/DATE-TIME).")
    ] = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure backdoors: how often the trigger works, what it costs, who is named, whether the weights are the clean ones."""
    from holdfast.bench.backdoor import SCALES, Question

    require_known("--scale", scale, SCALES)
    count = SCALES[scale].stages if stages is None else stages
    question = Question(SCALES[scale], count, count - 2 if stage is None else stage, model, data, phrase, target)
    where = empty_directory(out)
    _measure(question, range(first_seed, first_seed + seeds), where, as_json=as_json, quiet=quiet)


def _measure(question: Question, seeds: range, out: Path, *, as_json: bool, quiet: bool) -> None:
    from holdfast.bench.backdoor import Row, broken_promises, run_seed
    from holdfast.bench.backdoor_table import records, render, write
    from holdfast.errors import HoldfastError
    from holdfast.sweep.environment import environment

    def tell(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    here = environment()
    rows: list[Row] = []
    for seed in seeds:
        for row in run_seed(question, seed, out / f"seed-{seed}", tell):
            rows.append(row)
            write(out, rows, question, here)
            tell(f"  {row.run}: success {row.success:.3f}, without the phrase {row.success_without:.3f}")
    broken = broken_promises(rows)
    if as_json:
        print(json.dumps({"out": str(out), "findings": broken, "rows": records(rows, question, here)}, allow_nan=False))
    else:
        print(render(rows))
        print(f"Table and runs: {out}")
    if broken:
        raise HoldfastError(f"a broken promise: {broken[0]}" + (f", and {len(broken) - 1} more" if len(broken) > 1 else ""))
