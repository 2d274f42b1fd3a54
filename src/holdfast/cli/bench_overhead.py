"""`holdfast bench overhead`: what each defence costs on described clusters and on this machine; 1 if a promise is broken."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.cells import DRY_RUN, JOBS, OUT, directory, list_cells, measure, numbers, require_all, require_libraries
from holdfast.cli.options import JSON, QUIET, require_known

if TYPE_CHECKING:
    from holdfast.bench.overhead import Plan
    from holdfast.sweep import Store, Study


def register(app: typer.Typer) -> None:
    app.command("overhead")(overhead)


def overhead(
    quick: Annotated[bool, typer.Option("--quick", help="A few small cells, in seconds; no processes.")] = False,
    part: Annotated[
        list[str] | None, typer.Option("--part", metavar="NAME", help="virtual, memory or processes; repeatable.")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option("--network", metavar="NAME", help="local, gigabit, wan or mixed; repeatable.")
    ] = None,
    stages: Annotated[
        list[int] | None, typer.Option("--stages", metavar="K", min=3, help="Instead of the plan's; repeatable.")
    ] = None,
    micro_batches: Annotated[
        list[int] | None, typer.Option("--micro-batches", metavar="M", min=1, help="Instead of the plan's; repeatable.")
    ] = None,
    forward: Annotated[
        float | None, typer.Option("--forward-seconds", metavar="X", help="A micro-batch through a stage (default: 0.05).")
    ] = None,
    tensor: Annotated[
        int | None, typer.Option("--tensor-bytes", metavar="N", min=1, help="Between stages (default: 4 MiB).")
    ] = None,
    state: Annotated[
        int | None, typer.Option("--state-bytes", metavar="N", min=1, help="Weights and moments of a stage (default: 696 MB).")
    ] = None,
    jobs: JOBS = 1,
    dry_run: DRY_RUN = False,
    out: OUT = None,
    as_json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure what each defence costs. Time, bytes, memory and operations, against defences off and against the bound."""
    from holdfast.bench.overhead import study_of
    from holdfast.sweep import Store

    plan = _plan(quick=quick, parts=part, networks=network, stages=stages, micro_batches=micro_batches)
    given: dict[str, Any] = {"seconds_per_forward": forward, "tensor_bytes": tensor, "state_bytes": state}
    plan = replace(plan, size=replace(plan.size, **{name: value for name, value in given.items() if value is not None}))
    study, store = study_of(plan), Store(directory(out))
    if dry_run:
        list_cells(study, store, jobs, as_json=as_json)
        return
    require_libraries()
    _measure(plan, study, store, jobs, as_json=as_json, quiet=quiet)


def _plan(
    *,
    quick: bool,
    parts: list[str] | None,
    networks: list[str] | None,
    stages: list[int] | None,
    micro_batches: list[int] | None,
) -> Plan:
    from holdfast.bench import overhead as experiment
    from holdfast.bench.described import NETWORKS

    for option, given, known in (("--part", parts, experiment.PARTS), ("--network", networks, NETWORKS)):
        for name in given or ():
            require_known(option, name, known)
    make = experiment.quick if quick else experiment.full
    plan = make(tuple(dict.fromkeys(networks))) if networks else make()
    if parts:
        plan = replace(plan, parts=tuple(name for name in experiment.PARTS if name in parts))
    return plan.at(stages, micro_batches)


def _measure(plan: Plan, study: Study, store: Store, jobs: int, *, as_json: bool, quiet: bool) -> None:
    import torch

    from holdfast.bench.overhead import gather
    from holdfast.bench.overhead_figure import draw
    from holdfast.bench.overhead_report import headline, promises, write
    from holdfast.sweep.environment import environment

    torch.set_num_threads(1)
    records, ran = measure(study, store, jobs, quiet=quiet, tell=numbers({"ratio": "time ×", "bound": "bound ×"}))
    found, out = gather(plan, records), store.directory
    write(out, found, environment())
    draw(found, out)
    broken = [what for what, measured, most in found.promises() if measured > most]
    if as_json:
        rows = {"virtual": [asdict(row) for row in found.virtual], "real": [asdict(row) for row in found.real]}
        told = {"out": str(out), "measured": ran, "promises": promises(found), "broken": broken, **rows}
        print(json.dumps(told, allow_nan=False))
    else:
        print(headline(found))
        for line in promises(found):
            print(f"- {line}")
        print(f"\nTables and figures: {out}")
    require_all(records)
    if broken:
        raise typer.Exit(1)
