"""`holdfast doctor`: is this machine fit? Versions, threads, determinism, the self-test, room; exit code 1 if a check fails."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli.options import JSON


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="The model of the self-test.")
    ] = "gpt2:layers=6,width=64,heads=4",
    as_json: JSON = False,
) -> None:
    """Check versions, threads, determinism, the model's self-test, memory, disk and data."""
    import json

    from holdfast.cli.checkup import examine

    checks = []
    marks = {True: "ok  ", False: "FAIL", None: "    "}
    for check in examine(model):
        checks.append(check)
        if not as_json:
            print(f"{marks[check.passed]}  {check.name:<22} {check.detail}")
    failed = [check.name for check in checks if check.passed is False]
    if as_json:
        found = [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in checks]
        print(json.dumps({"passed": not failed, "checks": found}))
    else:
        print(f"\n{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}" if failed else "\nThis machine is fit.")
    if failed:
        raise typer.Exit(1)
