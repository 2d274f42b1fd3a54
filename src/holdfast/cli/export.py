"""`holdfast export`: the model of a run as a plain Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or one of its checkpoints.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new directory for the model.")],
    allow_uncertified: Annotated[
        bool, typer.Option("--allow-uncertified", help="Export even if some steps were never checked by a defence.")
    ] = False,
) -> None:
    """Write the model of a run so that transformers opens it alone. It is that of the newest certified checkpoint."""
    from holdfast.checkpoint import export_checkpoint

    print(export_checkpoint(run, to, allow_uncertified=allow_uncertified))
