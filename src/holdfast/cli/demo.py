"""`holdfast demo`: four small runs side by side, offline, that show an attack, what it does, and the defence holding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.options import QUIET, VERBOSE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from holdfast.report import RunRecord

PIPED_WIDTH = 112


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs and report are written.")] = Path(
        "holdfast-demo"
    ),
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Steps a run (default 150).")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The seed of all four runs.")] = 0,
    processes: Annotated[
        int | None, typer.Option("--processes", metavar="N", min=1, help="Runs at a time (default: one a core, at most two).")
    ] = None,
    quiet: QUIET = False,
    verbose: VERBOSE = False,
) -> None:
    """Train four times in a minute: clean, attacked, and defended twice. Who was caught, and whose weights are equal?"""
    from rich.console import Console

    from holdfast.cli.demo_runs import run_all
    from holdfast.errors import HoldfastError
    from holdfast.report import open_progress, render_html

    with open_progress(sys.stderr, quiet=quiet, verbose=verbose) as progress:
        runs = run_all(out, progress, steps=steps, seed=seed, processes=processes)
    page = out / "report.html"
    page.write_text(render_html(runs), encoding="utf-8")

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    _show_table(console, runs)
    _show_caught(console, runs[-1])
    clean, replaced = runs[0].result["weights_digest"], runs[-1].result["weights_digest"]
    if clean == replaced:
        console.print(f"The final weights of the replace run equal those of the clean run, bit for bit.\nsha256 {clean}\n")
    console.print(f"Report: {page}", soft_wrap=True)
    if clean != replaced:
        raise HoldfastError(
            f"the weights of the replace run ({replaced[:12]}) differ from the clean ones ({clean[:12]}): a broken promise; "
            "`holdfast doctor` checks whether this machine computes the same thing twice"
        )


def _show_table(console: Console, runs: Sequence[RunRecord]) -> None:
    from rich import box
    from rich.table import Table

    from holdfast.report.tables import HEADINGS, rows

    left = ("label", "weights", "remedy")
    shown = ("label", "perplexity", "ratio", "weights", "attacked", "detected", "missed", "dropped", "false_alarms", "remedy")
    colours = {"equal": "[green]", "differ": "[red]"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in shown:
        table.add_column(HEADINGS[name].replace(" ", "\n"), justify="left" if name in left else "right", no_wrap=name in left)
    for row in rows(runs):
        table.add_row(*(colours.get(cell, "") + cell for cell in (getattr(row, name) for name in shown)))
    console.print(table)


def _show_caught(console: Console, run: RunRecord) -> None:
    console.print(f"Caught in the {run.label} run:")
    for catch in run.catches:
        console.print(
            f"  {catch.worker:<12} stage {catch.stage}   {catch.lies:>4} lies proven   "
            f"first in step {catch.first_step} (virtual second {catch.first_seconds:.1f}), last in step {catch.last_step}"
        )
    console.print("" if run.catches else "  nobody\n")
