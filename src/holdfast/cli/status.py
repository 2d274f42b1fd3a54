"""`holdfast status`: where a running host is: step, who holds which stage, who was heard when, what happened last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.options import JSON


def register(app: typer.Typer) -> None:
    app.command("status")(status)


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run whose host is running.")],
    as_json: JSON = False,
) -> None:
    """Ask a running host where it is."""
    from holdfast.admission.control import ask, control_path

    found = ask(control_path(run), "status")
    if as_json:
        print(json.dumps(found))
    else:
        _page(found)


def _page(found: dict[str, Any]) -> None:
    from datetime import datetime

    from holdfast.cli.tables import ago, plain, show

    print(f"run {plain(found['run'])}: {plain(found.get('state', ''))}, step {found['step']} of {found['steps']}\n")
    stages = [(stage["stage"], stage["worker"], stage.get("shadow") or "-") for stage in found["stages"]]
    show(("stage", "worker", "shadow"), stages)
    members = [
        (m["name"], m["state"], ago(m.get("last_heard")), _speed(m.get("speed")), _queue(m.get("queue")))
        for m in found["members"]
    ]
    show(
        ("member", "state", "last heard", "speed", "to be sent"),
        members,
        nothing="no member yet; make an invite: holdfast invite",
    )
    for event in found["events"]:
        print(f"{datetime.fromtimestamp(event['time']):%H:%M:%S}  {plain(event['text'])}")


def _speed(gigaflops: float | None) -> str:
    return f"{gigaflops:.3g} GFLOP/s" if gigaflops else "-"


def _queue(count: float | None) -> str:
    """Bytes that wait to be sent to a machine, or for its word that they came."""
    return "-" if count is None else f"{count:,} B" if count < 1024 else f"{count / 1024:,.0f} KiB"
