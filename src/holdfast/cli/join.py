"""`holdfast join`: let this machine take part in somebody's run. It is told what to compute, and nothing that runs code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("join", rich_help_panel="Machines")(join)


def join(
    invite: Annotated[str, typer.Argument(metavar="INVITE", help="The line that the host gave away; - reads it from input.")],
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda[:N]", help="Where to compute.")] = "cpu",
    memory: Annotated[
        float | None, typer.Option("--memory", metavar="GIB", min=0.1, help="What the run may use (default: what is free).")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="ADDRESS:PORT", help="Where other workers may dial this machine (default: nowhere)."),
    ] = None,
    expose: Annotated[bool, typer.Option("--expose", help="Allow --listen at an address that other machines reach.")] = False,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The name to ask for.")] = "",
    patience: Annotated[
        float, typer.Option("--patience", metavar="SECONDS", min=1, help="How long to knock at a door that does not answer.")
    ] = 600.0,
    keep: Annotated[
        float,
        typer.Option(
            "--keep", metavar="SECONDS", min=0, help="How long to keep sealed states in memory when the host is gone."
        ),
    ] = 600.0,
) -> None:
    """Join a run and compute until it is over. First the host proves who it is, then this machine does."""
    from holdfast.transport.quiet import quiet_grpc

    quiet_grpc()  # before gRPC is imported, with the guest
    from holdfast.admission.address import check_listen
    from holdfast.admission.invite import Invite
    from holdfast.cli.session import INTERRUPTED, first_interrupt_calls
    from holdfast.join import Guest, Machine

    line = sys.stdin.readline() if invite == "-" else invite
    found = Invite.parse(line.strip())
    if listen is not None:
        check_listen(listen, exposed=expose)
    memory_bytes = None if memory is None else int(memory * 2**30)
    machine = Machine(device, memory_bytes, listen, name, patience, keep)
    guest = Guest(found, machine, lambda text: print(text, file=sys.stderr, flush=True))
    with first_interrupt_calls(guest.stop) as interrupted:
        reason = guest.run()
    print(reason, file=sys.stderr)
    if interrupted():
        raise typer.Exit(INTERRUPTED)
    if "banned" in reason:
        raise typer.Exit(1)
