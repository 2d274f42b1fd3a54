"""`holdfast bench aggregation`: do voting, medians, Krum and outlier tests find lies in a pipeline, at what cost?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.options import JSON, QUIET

if TYPE_CHECKING:
    from holdfast.bench.aggregation import Question


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
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where tables and figures are written (default: runs/DATE-TIME)."),
    ] = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure whether the defences of federated learning carry over to a pipeline, and what the jumping connection is worth."""
    from holdfast.bench.aggregation import ATTACKS, PARTS, SCALES, Question
    from holdfast.errors import ConfigError
    from holdfast.presets import default_out

    if scale not in SCALES:
        raise ConfigError(f"--scale {scale!r}: known are {', '.join(SCALES)}")
    where = out if out is not None else Path(default_out())
    if where.exists() and (not where.is_dir() or any(where.iterdir())):
        raise ConfigError(f"{where} exists and is not empty; choose another --out")
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
    _measure(question, where, as_json=as_json, quiet=quiet)


def _measure(question: Question, out: Path, *, as_json: bool, quiet: bool) -> None:
    from datetime import date

    from holdfast.bench.aggregation import run
    from holdfast.bench.aggregation_report import best, headlines, summary, write
    from holdfast.bench.drawing import require_matplotlib
    from holdfast.bench.environment import environment
    from holdfast.bench.intervals import proportion
    from holdfast.bench.table import render_markdown
    from holdfast.errors import HoldfastError

    def tell(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    require_matplotlib()
    proportion(1, 2)
    here = {**environment(), "date": date.today().isoformat()}  # of the code that runs, not of what it is edited to meanwhile
    findings = run(question, tell)
    write(findings, out, here)
    if as_json:
        print(json.dumps({"out": str(out), **summary(findings)}, allow_nan=False))
    else:
        print("\n".join(headlines(findings)))
        if findings.tests:
            print("\nAll micro-batches of a step forged, the best of all tests:\n\n" + best(findings))
        if findings.jump:
            print(render_markdown(findings.jump))
        print(f"\nTables and figures: {out}")
    if findings.failed:
        raise HoldfastError(f"{len(findings.failed)} of the small runs failed; the first: {findings.failed[0]}")
