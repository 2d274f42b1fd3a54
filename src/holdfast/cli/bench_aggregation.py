"""`holdfast bench aggregation`: do voting, medians, Krum and outlier tests find lies in a pipeline, at what cost?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.cells import DRY_RUN, JOBS, OUT, directory, list_cells, measure, numbers, require_all, require_libraries
from holdfast.cli.options import JSON, QUIET, require_known

if TYPE_CHECKING:
    from holdfast.bench.aggregation import Question
    from holdfast.sweep import Store, Study


def register(app: typer.Typer) -> None:
    app.command("aggregation")(aggregation)


def aggregation(
    scale: Annotated[str, typer.Option("--scale", metavar="NAME", help="tiny, or smoke: figures that mean nothing.")] = "tiny",
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="How many times all of it.")] = 3,
    first_seed: Annotated[int, typer.Option("--first-seed", metavar="N", min=0, help="The seed of the first time.")] = 0,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="NAME", help="tests, cascade, training or jump (default: all); repeatable."),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME[,p=v...]", help="An attack for the tests, instead of ten; repeatable."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="DIR", help="Start from this model (default: one is pre-trained here).")
    ] = None,
    data: Annotated[str, typer.Option("--data", metavar="NAME|PATH", help="The text to train on.")] = "embedded",
    stages: Annotated[int | None, typer.Option("--stages", metavar="K", help="Stages (default: as the scale says).")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other setting; repeatable.")
    ] = None,
    jobs: JOBS = 1,
    dry_run: DRY_RUN = False,
    out: OUT = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure what federated defences are worth in a pipeline. And what the jumping connection is worth."""
    from holdfast.bench.aggregation import ATTACKS, PARTS, SCALES, Question
    from holdfast.bench.aggregation_cells import study_of
    from holdfast.sweep import Store

    require_known("--scale", scale, SCALES)
    question = Question(
        SCALES[scale],
        range(first_seed, first_seed + seeds),
        model,
        data,
        stages,
        tuple(dict.fromkeys(attack or ATTACKS)),
        tuple(dict.fromkeys(part or PARTS)),
        tuple(assign or ()),
    )
    store = Store(directory(out))
    study = study_of(question, store.directory)
    if dry_run:
        list_cells(study, store, jobs, as_json=as_json)
        return
    require_libraries()
    _measure(question, study, store, jobs, as_json=as_json, quiet=quiet)


def _measure(question: Question, study: Study, store: Store, jobs: int, *, as_json: bool, quiet: bool) -> None:
    from holdfast.bench.aggregation_cells import gather
    from holdfast.bench.aggregation_report import best, headlines, summary, write
    from holdfast.bench.table import COLUMNS
    from holdfast.report.pipes import told_pipes
    from holdfast.sweep.environment import environment

    here = environment()  # of the code that runs, not of what it is edited to meanwhile
    records, _ = measure(study, store, jobs, quiet=quiet, tell=numbers({"detected": "caught", "missed": "missed"}))
    findings, out = gather(question, records), store.directory
    write(findings, out, here)
    if as_json:
        print(json.dumps({"out": str(out), **summary(findings)}, allow_nan=False))
    else:
        print("\n".join(headlines(findings)))
        if findings.tests:
            print("\nAll micro-batches of a step forged, the best of all tests:\n\n" + best(findings))
        if findings.jump:
            print(told_pipes(findings.jump, COLUMNS))
        print(f"\nTables and figures: {out}")
    require_all(records)
