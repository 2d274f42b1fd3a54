"""`holdfast new`: a package with one small class and a test that passes, to grow an attack or a defence from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write a template package whose test passes.", no_args_is_help=True, rich_markup_mode=None)

NAME = Annotated[str, typer.Argument(metavar="NAME", help="Lower-case words joined by dashes, for example slow-drift.")]
INTO = Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Where to write it (default: ./NAME).")]


@app.command("attack")
def attack(name: NAME, to: INTO = None) -> None:
    """A package with one attack: installed, `--attack NAME` finds it."""
    _write("attack", name, to)


@app.command("defence")
def defence(name: NAME, to: INTO = None) -> None:
    """A package with one remedy: what is done about a false claim."""
    _write("defence", name, to)


def _write(kind: str, name: str, to: Path | None) -> None:
    from holdfast.cli.templates import render

    directory = Path(name) if to is None else to
    for path in render(kind, name, directory):
        print(path)
    print(f"\nNext: cd {directory} && python -m pytest")
