"""`holdfast bench backdoor`: backdoors planted through one stage, without a defence, with one, and after honest work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.cells import DRY_RUN, JOBS, OUT, directory, list_cells, measure, require_all, require_libraries
from holdfast.cli.options import JSON, QUIET, require_known

if TYPE_CHECKING:
    from holdfast.bench.backdoor import Question
    from holdfast.sweep import Record, Store, Study


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
    jobs: JOBS = 1,
    dry_run: DRY_RUN = False,
    out: OUT = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure how often a planted backdoor works. What it costs, who is named, whether the weights are the clean ones."""
    from holdfast.bench.backdoor import SCALES, Question, first_job
    from holdfast.bench.backdoor_cells import study_of
    from holdfast.sweep import Store

    require_known("--scale", scale, SCALES)
    count = SCALES[scale].stages if stages is None else stages
    question = Question(SCALES[scale], count, count - 2 if stage is None else stage, model, data, phrase, target)
    store = Store(directory(out))
    study = study_of(question, range(first_seed, first_seed + seeds), store.directory)
    if dry_run:
        list_cells(study, store, jobs, as_json=as_json)
        return
    require_libraries()
    first_job(question, first_seed)  # what cannot be run is told before anything is written
    _measure(question, study, store, jobs, as_json=as_json, quiet=quiet)


def _measure(question: Question, study: Study, store: Store, jobs: int, *, as_json: bool, quiet: bool) -> None:
    from holdfast.bench.backdoor import broken_promises
    from holdfast.bench.backdoor_cells import gather
    from holdfast.bench.backdoor_table import records as told_rows
    from holdfast.bench.backdoor_table import render, write
    from holdfast.errors import HoldfastError
    from holdfast.sweep.environment import environment

    here = environment()
    records, _ = measure(study, store, jobs, quiet=quiet, tell=_told)
    rows, out = gather(records), store.directory
    if rows:
        write(out, rows, question, here)
    broken = broken_promises(rows)
    if as_json:
        print(json.dumps({"out": str(out), "findings": broken, "rows": told_rows(rows, question, here)}, allow_nan=False))
    else:
        print(render(rows))
        print(f"Table and runs: {out}")
    require_all(records)
    if broken:
        raise HoldfastError(f"a broken promise: {broken[0]}" + (f", and {len(broken) - 1} more" if len(broken) > 1 else ""))


def _told(record: Record) -> str:
    rows = record.result["rows"] if record.result else ()
    best = {run: max((row["success"] for row in rows if row["run"] == run), default=0.0) for run in ("undefended", "defended")}
    return f"success {best['undefended']:.2f} undefended, {best['defended']:.2f} defended"
