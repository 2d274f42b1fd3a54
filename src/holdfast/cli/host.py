"""`holdfast host`: open a run that other machines join, and train it as they come, fail, lie and go."""

from __future__ import annotations

import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.options import JSON, QUIET, VERBOSE, with_settings
from holdfast.settings import SETTINGS

if TYPE_CHECKING:
    from holdfast.config import RunConfig

CHECKPOINT_EVERY = 10
"""Steps: what a host that dies may have to compute again, where the config does not say, or says 0."""

NOT_HERE = ("engine", "ray_address", "expose_wire")
"""Settings of `train` that say where workers come from: here they are machines that join."""
HELP = {"checkpoint_every": "steps between checkpoints, the last at the end (0: the default)"}
"""What settings mean here that mean something else to `train`."""


def register(app: typer.Typer) -> None:
    settings = [replace(each, help=HELP.get(each.name, each.help)) for each in SETTINGS if each.name not in NOT_HERE]
    own = {"checkpoint_every": CHECKPOINT_EVERY, "out": None}
    app.command("host", rich_help_panel="Machines")(with_settings(host, settings, own))


def host(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Settings as a TOML file.")],
    door: Annotated[str, typer.Option("--door", metavar="ADDRESS:PORT", help="Where machines knock.")] = "127.0.0.1:7700",
    wire: Annotated[str, typer.Option("--wire", metavar="ADDRESS:PORT", help="Where members connect.")] = "127.0.0.1:7701",
    expose: Annotated[bool, typer.Option("--expose", help="Allow addresses that other machines reach.")] = False,
    advertise: Annotated[
        list[str] | None, typer.Option("--advertise", metavar="NAME[:PORT]", help="How others reach the door; repeatable.")
    ] = None,
    accept: Annotated[str, typer.Option("--accept", metavar="auto|manual", help="Who lets newcomers in.")] = "auto",
    uses: Annotated[
        int | None,
        typer.Option(
            "--uses", metavar="N", min=1, help="Machines that the first invite lets in (default: twice those needed)."
        ),
    ] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other setting; repeatable.")
    ] = None,
    as_json: JSON = False,
    quiet: QUIET = False,
    verbose: VERBOSE = False,
    **settings: Any,
) -> None:
    """Open a run, print one invite, wait for machines and train. The same command goes on with a run that was broken off."""
    from holdfast.transport.quiet import quiet_grpc

    quiet_grpc()  # before gRPC is imported, with the host
    from holdfast.cli.session import run_hosted, show_result
    from holdfast.errors import ConfigError
    from holdfast.host import Host, Premises

    if accept not in ("auto", "manual"):
        raise ConfigError(f"--accept is auto or manual, got {accept!r}")
    resolved, directory, resume = _resolve(config, settings, assign or [])
    machines = max(1, resolved.pipeline.stages - 2)
    premises = Premises(
        door, wire, expose, "manual" if accept == "manual" else "auto", tuple(advertise or ()), uses or 2 * machines
    )
    hosted = Host(resolved, directory, premises, lambda line: print(line, file=sys.stderr, flush=True))
    result = run_hosted(resolved, hosted, resume=resume, quiet=quiet, verbose=verbose)
    show_result(result, as_json=as_json)


def _resolve(path: Path, settings: dict[str, Any], assignments: list[str]) -> tuple[RunConfig, Path, Path | None]:
    """The config of a run that begins, or of the one in its directory, which then goes on."""
    from holdfast.config import resolve
    from holdfast.errors import ConfigError
    from holdfast.settings import merge
    from holdfast.toml import assign, read_toml

    resolved = resolve(assign(merge(read_toml(path), settings), assignments))
    engine = resolved.pipeline.engine
    if engine != "memory":
        raise ConfigError(
            f"pipeline.engine is {engine!r}, and the workers of a host are machines that join; leave it out, or use "
            f"holdfast train --engine {engine}"
        )
    if resolved.machines.ray_address is not None or resolved.machines.expose_wire:
        raise ConfigError(
            "machines.ray_address and machines.expose_wire are of holdfast train --engine ray; a host that others reach "
            "has --expose"
        )
    if resolved.output.dir is None:
        raise ConfigError("a hosted run needs a directory of its own, by which it is found again; give --out DIR")
    if resolved.attack or resolved.faults:
        raise ConfigError("attacks and faults are played by processes of this machine; use holdfast train --engine processes")
    if resolved.pipeline.stages < 3:
        raise ConfigError("with 2 stages nothing is left for other machines; give --stages 3 or more")
    if resolved.cluster.numerics:
        raise ConfigError("cluster.numerics describes a simulated cluster; machines that join compute as they are")
    every = resolved.output.checkpoint_every or CHECKPOINT_EVERY
    output = resolved.output.model_copy(update={"checkpoint_every": every})
    directory = Path(resolved.output.dir or "")
    resume = directory if (directory / "config.toml").is_file() else None
    defence = resolved.defence
    if defence.check_seed is None:
        defence = defence.model_copy(update={"check_seed": _secret(resume)})
    return resolved.model_copy(update={"output": output, "defence": defence}), directory, resume


def _secret(run: Path | None) -> int:
    """What the draws of the checks follow from: strangers could guess the seed of a run, so it is not that."""
    from holdfast.config import resolve
    from holdfast.toml import read_toml

    before = None if run is None else resolve(read_toml(run / "config.toml")).defence.check_seed
    return secrets.randbits(62) if before is None else before
