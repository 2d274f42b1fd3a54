"""`holdfast nodes`: who is in a run, and the operator's word on each: accept, quarantine, release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.options import JSON, require_known

ACTIONS = ("accept", "quarantine", "release")
GIB = 2**30


def register(app: typer.Typer) -> None:
    app.command("nodes")(nodes)


def nodes(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run whose host is running.")],
    action: Annotated[str | None, typer.Argument(metavar="ACTION", help="accept, quarantine or release one.")] = None,
    id: Annotated[str | None, typer.Argument(metavar="ID", help="Its name, or the beginning of its fingerprint.")] = None,
    as_json: JSON = False,
) -> None:
    """List the machines of a run, and say who may compute.

    Accept one that waits, put one in quarantine (its values do not count), or send one away.
    """
    from holdfast.admission.control import ask, control_path
    from holdfast.errors import ConfigError

    if action is not None:
        require_known("nodes", action, ACTIONS)
    if (action is None) is not (id is None):
        raise ConfigError(f"`holdfast nodes RUN_DIR {action} ID`: the name of a machine, or of its fingerprint the beginning")
    if action is None:
        found = ask(control_path(run), "nodes", action="list")
    else:
        found = ask(control_path(run), "nodes", action=action, id=id)
    if as_json:
        print(json.dumps(found))
    elif action is None:
        _table(found["members"])
    else:
        from holdfast.cli.tables import plain

        print(f"{plain(found['member']['name'])} is {plain(found['member']['status'])}")


def _table(members: list[dict[str, Any]]) -> None:
    import time

    from holdfast.cli.tables import ago, show

    now = time.time()
    rows = [
        (
            member["name"],
            member["status"],
            member["fingerprint"][:16],
            ago(now - member["last_seen"]),
            f"{member['speed']:.3g}",
            f"{member['memory_bytes'] / GIB:.1f} GiB",
            member["device"],
            member["numerics"],
            member["listen"] or "-",
            member["note"],
        )
        for member in members
    ]
    headings = ("name", "status", "key", "last seen", "speed", "memory", "device", "numerics", "dialled at", "note")
    show(headings, rows, nothing="nobody came in yet; make an invite: holdfast invite RUN_DIR")
