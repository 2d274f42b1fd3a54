"""`holdfast bench recovery`: what crashes, lies and a day among spot machines cost; 1 if a promise is broken."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.cells import DRY_RUN, JOBS, OUT, directory, list_cells, measure, numbers, require_all, require_libraries
from holdfast.cli.options import JSON, QUIET, require_known

if TYPE_CHECKING:
    from holdfast.bench.recovery import Plan
    from holdfast.sweep import Store, Study


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
    jobs: JOBS = 1,
    dry_run: DRY_RUN = False,
    out: OUT = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure what crashes and lies cost. And the goodput of a day among machines that come and go."""
    from holdfast.bench import recovery as experiment
    from holdfast.bench.described import NETWORKS
    from holdfast.errors import ConfigError
    from holdfast.sweep import Store

    for name in part or ():
        require_known("--part", name, experiment.PARTS)
    require_known("--network", network, NETWORKS)
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
    study, store = experiment.study_of(plan), Store(directory(out))
    if dry_run:
        list_cells(study, store, jobs, as_json=as_json)
        return
    require_libraries()
    _measure(plan, study, store, jobs, as_json=as_json, quiet=quiet)


def _measure(plan: Plan, study: Study, store: Store, jobs: int, *, as_json: bool, quiet: bool) -> None:
    import torch

    from holdfast.bench.recovery import gather
    from holdfast.bench.recovery_figure import draw
    from holdfast.bench.recovery_report import headline, summary, write
    from holdfast.sweep.environment import environment

    torch.set_num_threads(1)
    tell = numbers({"extra_s": "seconds lost:", "steps": "steps:", "rollbacks": "rollbacks:"})
    records, ran = measure(study, store, jobs, quiet=quiet, tell=tell)
    found, out = gather(plan, records), store.directory
    write(out, found, plan.network, environment())
    draw(found, out)
    broken = found.findings()
    if as_json:
        rows = {"incidents": [asdict(row) for row in found.incidents], "trace": [asdict(row) for row in found.trace]}
        rows["processes"] = [asdict(row) for row in found.kills]
        print(json.dumps({"out": str(out), "measured": ran, "findings": broken, **rows}, allow_nan=False))
    else:
        for title, text in headline(found):
            print(f"{title}\n\n{text}")
        for line in [*summary(found), *broken]:
            print(f"- {line}")
        print(f"\nTables and figures: {out}")
    require_all(records)
    if broken:
        raise typer.Exit(1)
