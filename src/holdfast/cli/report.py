"""`holdfast report`: a comparison of finished runs as Markdown, CSV or one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from holdfast.report import RunRecord


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories that `train --out` wrote.")],
    form: Annotated[str, typer.Option("--format", "-f", metavar="FORM", help="md, csv or html.")] = "md",
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write here instead of printing.")] = None,
) -> None:
    """Compare finished runs; the first one without attackers is the reference."""
    from holdfast.errors import ConfigError
    from holdfast.report import read_run, render_csv, render_html, render_markdown

    renderers = {"md": render_markdown, "csv": render_csv, "html": render_html}
    if form not in renderers:
        raise ConfigError(f"--format {form!r}: known are {', '.join(renderers)}")
    content = renderers[form](_told_apart([(run, read_run(run)) for run in runs]))
    if to is None:
        print(content, end="")
    else:
        to.write_text(content, encoding="utf-8")
        print(to)


def _told_apart(found: list[tuple[Path, RunRecord]]) -> list[RunRecord]:
    """Runs that have the same label are called by their directories."""
    from collections import Counter
    from dataclasses import replace

    labels = Counter(run.label for _, run in found)
    return [
        run if labels[run.label] == 1 else replace(run, label=f"{run.label} ({path.resolve().name})") for path, run in found
    ]
