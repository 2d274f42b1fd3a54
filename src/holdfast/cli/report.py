"""`holdfast report`: finished runs, sweeps and tables as text, LaTeX, figures or one self-contained page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.options import require_known

if TYPE_CHECKING:
    from holdfast.sweep.table import ResultTable

FORMS = ("md", "csv", "html", "tex", "pdf", "svg", "means", "all")
ALL = {
    "report.md": "md",
    "runs.csv": "csv",
    "means.csv": "means",
    "table.tex": "tex",
    "figure.pdf": "pdf",
    "figure.svg": "svg",
    "report.html": "html",
}
"""What `--format all` writes."""


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="What `train`, `sweep` or `bench` wrote with --out.")],
    form: Annotated[
        str, typer.Option("--format", "-f", metavar="FORM", help="md, csv, means, tex, pdf, svg, html, or all.")
    ] = "md",
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write here instead of printing; for all, a directory.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="AXIS", help="An axis of the rows; repeatable (default: those that vary, not the seed)."),
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option("--value", metavar="NAME", help="A number of `train --json`, weights or against_clean; repeatable."),
    ] = None,
    geometric: Annotated[bool, typer.Option("--geometric", help="Geometric means of perplexities.")] = False,
) -> None:
    """Compare finished runs, sweeps and experiments. Of many runs it gives means over seeds, each number with its runs."""
    from holdfast.errors import ConfigError
    from holdfast.sweep.sources import is_run

    require_known("--format", form, FORMS)
    if to is None and form in ("pdf", "all"):
        raise ConfigError(f"--format {form} is nothing to print; give --to {'DIR' if form == 'all' else 'FILE'}")
    chosen = bool(by or value or geometric)
    if form in ("md", "csv", "html") and not chosen and all(is_run(run) or not run.exists() for run in runs):
        _put(_compared(runs, form).encode(), to)
        return
    tables = _tables(runs, by, value, geometric=geometric)
    renderers = _renderers()
    if form != "all":
        _put(renderers[form](tables), to)
        return
    assert to is not None
    contents = {name: renderers[each](tables) for name, each in ALL.items()}
    to.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        _put(content, to / name)


def _compared(runs: list[Path], form: str) -> str:
    """Runs one by one, with their curves and stories."""
    from holdfast.report import read_run, render_csv, render_html, render_markdown
    from holdfast.sweep.sources import told_apart

    renderers = {"md": render_markdown, "csv": render_csv, "html": render_html}
    return renderers[form](told_apart([(run, read_run(run)) for run in runs]))


def _tables(runs: list[Path], by: list[str] | None, value: list[str] | None, *, geometric: bool) -> list[ResultTable]:
    from holdfast.sweep import Store
    from holdfast.sweep.frame import require_pandas, require_scipy
    from holdfast.sweep.sources import read_sources
    from holdfast.sweep.store import is_store
    from holdfast.sweep.table import make_tables

    require_pandas()
    require_scipy()
    name, records = read_sources(runs)
    for run in runs:
        if is_store(run) and (missing := Store(run).missing):
            print(f"note: {missing} cells of {run} are not run yet", file=sys.stderr)
    return make_tables(records, by=by, values=value, geometric=geometric, name=name)


def _renderers() -> dict[str, Callable[[list[ResultTable]], bytes]]:
    from holdfast.sweep.draw import figure
    from holdfast.sweep.page import page
    from holdfast.sweep.text import csv_means, csv_runs, latex, markdown

    return {
        "md": lambda tables: markdown(*tables).encode(),
        "csv": lambda tables: csv_runs(*tables).encode(),
        "means": lambda tables: csv_means(*tables).encode(),
        "tex": lambda tables: latex(*tables).encode(),
        "pdf": lambda tables: figure(*tables, form="pdf"),
        "svg": lambda tables: figure(*tables, form="svg"),
        "html": lambda tables: page(*tables).encode(),
    }


def _put(content: bytes, to: Path | None) -> None:
    from holdfast.atomic import write_file

    if to is None:
        print(content.decode(), end="")
    else:
        write_file(to, content, mode=0o644)
        print(to)
