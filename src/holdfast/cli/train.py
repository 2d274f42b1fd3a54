"""`holdfast train`: one run, from a TOML file, options and assignments, in this order of growing weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.options import JSON, QUIET, VERBOSE, with_settings

if TYPE_CHECKING:
    from holdfast.config import RunConfig


def register(app: typer.Typer) -> None:
    app.command("train", rich_help_panel="Runs")(with_settings(train))


def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.toml", help="Settings as a TOML file.")] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME[,p=v...]", help="An attack by name or as file.py:Class; repeatable."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="X", help="Probability of a strike in a step. [default: 1.0]")
    ] = None,
    attack_stages: Annotated[
        str | None,
        typer.Option("--attack-stages", metavar="1-4", help="Stages that may lie. [default: all but the first and the last]"),
    ] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other setting; repeatable.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on with the run in DIR from its last checkpoint.")
    ] = None,
    as_json: JSON = False,
    quiet: QUIET = False,
    verbose: VERBOSE = False,
    **settings: Any,
) -> None:
    """Train a model in one run, with or without attackers."""
    from holdfast.cli.session import run_experiment, show_result

    tables = _tables(config, resume, settings, attack or [], rate, attack_stages)
    resolved = _resolve(tables, assign or [])
    result = run_experiment(resolved, resume=resume, quiet=quiet, verbose=verbose)
    show_result(result, as_json=as_json)


def _tables(
    config: Path | None,
    resume: Path | None,
    settings: dict[str, Any],
    attack: list[str],
    rate: float | None,
    attack_stages: str | None,
) -> dict[str, Any]:
    from holdfast.errors import ConfigError
    from holdfast.settings import add_attacks, merge, run_directory
    from holdfast.toml import read_toml

    if config is not None and resume is not None:
        raise ConfigError(f"got both {config} and --resume {resume}; a resumed run has its settings in {resume}/config.toml")
    if resume is not None and settings.get("out") is not None:
        raise ConfigError(f"got --out {settings['out']} with --resume {resume}; a resumed run goes on in its own directory")
    if resume is not None:
        directory = run_directory(resume)
        tables = merge(merge(read_toml(directory / "config.toml"), settings), {"out": str(directory)})
    else:
        tables = merge(read_toml(config) if config is not None else {}, settings)
    return add_attacks(tables, attack, rate, attack_stages)


def _resolve(tables: dict[str, Any], assignments: list[str]) -> RunConfig:
    from holdfast.config import resolve
    from holdfast.presets import default_out
    from holdfast.toml import assign

    resolved = resolve(assign(tables, assignments))
    if resolved.output.dir is None:
        resolved = resolved.model_copy(update={"output": resolved.output.model_copy(update={"dir": default_out()})})
    return resolved
