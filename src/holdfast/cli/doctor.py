"""`holdfast doctor`: is this machine fit? Versions, threads, determinism, the self-test, room; exit code 1 if a check fails.

With `--numerics` it measures instead how far apart this machine's arithmetics are; with `--peer` it looks at another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.options import JSON


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="The model of the self-test.")
    ] = "gpt2:layers=6,width=64,heads=4",
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda, ...: what to look at.")] = "cpu",
    numerics: Annotated[
        bool, typer.Option("--numerics", help="Measure how far apart this machine's arithmetics are, instead.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help="With --numerics: float32 or bfloat16 (default: both).")
    ] = None,
    stages: Annotated[
        int | None, typer.Option("--stages", metavar="K", min=3, help="With --numerics: stages to cut into (default: 3).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.toml", help="With --numerics: write the calibration to this file.")
    ] = None,
    peer: Annotated[
        str | None, typer.Option("--peer", metavar="HOST:PORT", help="See whether a door or wire can be dialled, instead.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Check whether this machine is fit. Versions, threads, determinism, the model's self-test, memory, disk and data."""
    import json

    if peer is not None:
        if numerics or dtype is not None or stages is not None or out is not None or device != "cpu":
            from holdfast.errors import ConfigError

            raise ConfigError("--peer looks at another machine, and takes no option but --json")
        _show_peer(peer, as_json=as_json)
        return
    if numerics:
        from holdfast.cli.numerics import show_numerics

        show_numerics(model, dtype, stages or 3, out, device=device, as_json=as_json)
        return
    if dtype is not None or stages is not None or out is not None:
        from holdfast.errors import ConfigError

        raise ConfigError("--dtype, --stages and --out say how numerics are measured; add --numerics")
    from holdfast.cli.checkup import examine

    checks = []
    marks = {True: "ok  ", False: "FAIL", None: "    "}
    for check in examine(model, device):
        checks.append(check)
        if not as_json:
            print(f"{marks[check.passed]}  {check.name:<22} {check.detail}")
    failed = [check.name for check in checks if check.passed is False]
    if as_json:
        found = [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in checks]
        print(json.dumps({"passed": not failed, "checks": found}))
    else:
        made = sum(check.passed is not None for check in checks)
        print(f"\n{len(failed)} of {made} checks failed: {', '.join(failed)}" if failed else "\nThis machine is fit.")
    if failed:
        raise typer.Exit(1)


def _show_peer(text: str, *, as_json: bool) -> None:
    """One line about the address, or one JSON object. Raises NetworkError where Holdfast cannot be reached there."""
    import json

    from holdfast.admission.address import parse_address
    from holdfast.transport.quiet import quiet_grpc

    quiet_grpc()
    from holdfast.admission.peer import look
    from holdfast.errors import NetworkError

    address = parse_address(text)
    sight = look(address)
    round_trip_ms = None if sight.round_trip_s is None else round(1e3 * sight.round_trip_s, 3)
    if as_json:
        found = {"address": str(address), "what": sight.what, "passed": sight.fit, "detail": sight.detail}
        print(json.dumps({**found, "round_trip_ms": round_trip_ms, "process": sight.process}))
        if not sight.fit:
            raise typer.Exit(NetworkError.exit_code)
        return
    if not sight.fit:
        dialled = "" if round_trip_ms is None else f" (it can be dialled, round trip {round_trip_ms:.1f} ms)"
        raise NetworkError(f"{address}: {sight.detail}{dialled}")
    print(f"ok    {address}  {sight.detail}; round trip {round_trip_ms:.1f} ms")
