"""`holdfast invite`: make an invite to a running host, list those there are, or revoke one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.options import JSON

_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def register(app: typer.Typer) -> None:
    app.command("invite")(invite)


def invite(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run whose host is running.")],
    uses: Annotated[
        int | None, typer.Option("--uses", metavar="N", min=1, help="Machines that it lets in (default: 1).")
    ] = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="24h", help="How long it lives: 90s, 30m, 24h, 7d (default: 24h).")
    ] = None,
    revoke: Annotated[str | None, typer.Option("--revoke", metavar="ID", help="Revoke this invite instead.")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the invites instead.")] = False,
    as_json: JSON = False,
) -> None:
    """Make an invite: one line that lets a machine into the run. Whoever reads it can use it, so send it in private."""
    from holdfast.admission.control import ask, control_path
    from holdfast.errors import ConfigError

    if sum([revoke is not None, list_all, uses is not None or ttl is not None]) > 1:
        raise ConfigError("--list, --revoke, and --uses with --ttl are three different requests; give one")
    path = control_path(run)
    if list_all:
        found = ask(path, "invite", action="list")
        _show(found, as_json, lambda: _table(found["invites"]))
    elif revoke is not None:
        found = ask(path, "invite", action="revoke", id=revoke)
        _show(found, as_json, lambda: print(f"invite {found['revoked']['id']} is revoked; who came in by it stays"))
    else:
        made = ask(path, "invite", action="new", uses=uses or 1, ttl_s=seconds(ttl or "24h"))
        _show(made, as_json, lambda: _tell(made))


def seconds(text: str) -> float:
    """How many seconds a span like 90s, 30m, 24h or 7d has. Raises ConfigError."""
    from holdfast.errors import ConfigError

    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise ConfigError(f"--ttl {text[:20]!r}: needed is a number with s, m, h or d, for example 24h")
    return float(found[1]) * _UNITS_S[found[2]]


def _show(found: dict[str, Any], as_json: bool, tell: Any) -> None:
    if as_json:
        print(json.dumps(found))
    else:
        tell()


def _tell(made: dict[str, Any]) -> None:
    """The line alone on stdout, so that it can be piped; the rest beside it."""
    import sys
    from datetime import datetime

    until = datetime.fromtimestamp(made["expires"]).strftime("%Y-%m-%d %H:%M")
    times = "once" if made["uses"] == 1 else f"{made['uses']} times"
    print(f"invite {made['id']}, good {times} until {until}; on the other machine: holdfast join INVITE", file=sys.stderr)
    print(made["invite"])


def _table(invites: list[dict[str, Any]]) -> None:
    from datetime import datetime

    from holdfast.cli.tables import show

    rows = [
        (
            invite["id"],
            invite["state"],
            f"{len(invite['used_by'])} of {invite['uses']}",
            datetime.fromtimestamp(invite["expires"]).strftime("%Y-%m-%d %H:%M"),
            ", ".join(key[:16] for key in invite["used_by"]),
        )
        for invite in invites
    ]
    show(("invite", "state", "used", "expires", "by keys"), rows, nothing="no invite was made yet")
