"""`holdfast bench recovery`: what crashes, lies and a day among spot machines cost; 1 if a promise is broken."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.options import JSON, QUIET

if TYPE_CHECKING:
    from holdfast.bench.recovery import Plan


def register(app: typer.Typer) -> None:
    app.command("recovery")(recovery)


def recovery(
    quick: Annotated[bool, typer.Option("--quick", help="A few cells, in seconds.")] = False,
    part: Annotated[
        list[str] | None, typer.Option("--part", metavar="NAME", help="crash, lie, trace or processes; repeatable.")
    ] = None,
    network: Annotated[str, typer.Option("--network", metavar="NAME", help="local, gigabit, wan or mixed.")] = "gigabit",
    life: Annotated[
        list[float] | None, typer.Option("--life-hours", metavar="X", help="How long a machine stays, on average; repeatable.")
    ] = None,
    gone: Annotated[
        float | None, typer.Option("--gone-minutes", metavar="X", help="Until another one comes, on average (default: 10).")
    ] = None,
    restart: Annotated[
        float | None, typer.Option("--restart-seconds", metavar="X", help="Processes start in after a rollback (default: 0).")
    ] = None,
    hours: Annotated[float | None, typer.Option("--hours", metavar="X", help="Length of the day (default: 24).")] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Days of each kind.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Tables, figures, cells; goes on there (default: runs/DATE-TIME)."),
    ] = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure recovery: what crashes and lies cost, and the goodput of a day among machines that come and go."""
    from holdfast.bench import recovery as experiment
    from holdfast.bench.described import NETWORKS
    from holdfast.bench.drawing import require_matplotlib
    from holdfast.bench.overhead_report import frame
    from holdfast.errors import ConfigError
    from holdfast.presets import default_out

    for name in part or ():
        if name not in experiment.PARTS:
            raise ConfigError(f"--part {name!r}: known are {', '.join(experiment.PARTS)}")
    if network not in NETWORKS:
        raise ConfigError(f"--network {network!r}: known are {', '.join(NETWORKS)}")
    for option, values in (("--life-hours", life), ("--gone-minutes", [gone]), ("--hours", [hours])):
        for value in values or ():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{option} {value}: needed is a time greater than 0")
    if restart is not None and not 0 <= restart < float("inf"):
        raise ConfigError(f"--restart-seconds {restart}: needed is a time of 0 or more")
    plan = replace(experiment.quick() if quick else experiment.Plan(), network=network, seeds=tuple(range(seeds)))
    given = {
        "parts": tuple(name for name in experiment.PARTS if name in part) if part else None,
        "lives_h": tuple(dict.fromkeys(life)) if life else None,
        "gone_min": gone,
        "restart_s": restart,
        "hours": hours,
    }
    plan = replace(plan, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    require_matplotlib()
    frame([])
    _measure(plan, out if out is not None else Path(default_out()), as_json=as_json, quiet=quiet)


def _measure(plan: Plan, out: Path, *, as_json: bool, quiet: bool) -> None:
    import torch

    from holdfast.bench.environment import environment
    from holdfast.bench.kept import Kept
    from holdfast.bench.recovery import run
    from holdfast.bench.recovery_figure import draw
    from holdfast.bench.recovery_report import sections, summary, write

    def tell(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    torch.set_num_threads(1)
    kept = Kept(out)
    found = run(plan, kept, tell)
    write(out, found, plan.network, environment())
    draw(found, out)
    broken = found.findings()
    if as_json:
        rows = {"incidents": [asdict(row) for row in found.incidents], "trace": [asdict(row) for row in found.trace]}
        print(json.dumps({"out": str(out), "measured": kept.measured, "findings": broken, **rows}, allow_nan=False))
    else:
        for title, text in sections(found)[1:]:
            print(f"{title}\n\n{text}")
        for line in [*summary(found), *broken]:
            print(f"- {line}")
        print(f"\nTables and figures: {out}")
    if broken:
        raise typer.Exit(1)
