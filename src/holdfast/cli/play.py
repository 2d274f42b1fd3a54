"""The process of one worker under the engines `processes` and `ray`: it is told its part, plays it, and ends.

Not a command for people. `holdfast train --engine processes` starts it with its part on standard input, and it ends when that
does; `--engine ray` calls `perform` in an actor. What the liars among the workers know of their lies is said line by line, on
standard output or through Ray, for the report: the run itself never sees it.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.crew import Told
    from holdfast.message import Actor
    from holdfast.transport.grpc import GrpcTransport

FLUSH_S = 1.0


def main() -> int:
    """Play the part on standard input; exit code 0 once dismissed, 2 for a part that is none, 4 where the host is gone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    line = sys.stdin.buffer.readline()
    if not line:
        return 2
    from holdfast.errors import HoldfastError

    try:
        _play(line, _print, "127.0.0.1", _leave_with_parent)
    except HoldfastError as error:
        logging.getLogger("holdfast").error("%s", error)
        return error.exit_code
    return 0


def perform(told: bytes, say: Callable[[bytes], None], ip: str) -> None:
    """Play the part `told` (a `crew.Told` as JSON) and be reached at `ip`; `say` gets lines. Raises a HoldfastError."""
    os.environ["GRPC_VERBOSITY"] = "NONE"
    _play(told, say, ip, lambda _stop: None)


def _play(line: bytes, say: Callable[[bytes], None], ip: str, watch: Callable[[Callable[[str], None]], None]) -> None:
    """`watch(stop)` runs in a thread of its own, and may have the worker leave."""
    from pydantic import ValidationError

    from holdfast.crew import Told
    from holdfast.errors import ConfigError
    from holdfast.evidence.envelope import sign_header
    from holdfast.evidence.identity import from_pem
    from holdfast.machines import HOST
    from holdfast.message import Present
    from holdfast.partition.memory import available_memory
    from holdfast.station import ANYTIME, Part, Station, numerics_of
    from holdfast.transport import Endpoint, WireOptions
    from holdfast.transport.grpc import GrpcTransport

    try:
        told = Told.model_validate_json(line)
    except ValidationError as error:
        raise ConfigError(f"not the part of a worker: {error.error_count()} fields are wrong") from None
    numerics = numerics_of(told.device)
    _check_fit(told, numerics)
    play, after_turn = _cast(told, say)
    transport = GrpcTransport(
        Endpoint(told.name, (told.name,)),
        told.credentials,
        run=told.run,
        listen=f"[{ip}]:0" if ":" in ip else f"{ip}:0",
        relay=HOST,
        options=WireOptions(silence_s=told.silence_s),
        anytime=ANYTIME,
    )
    transport.know([Endpoint(HOST, told.trusted, told.host)])
    present = Present(transport.address, told.device, numerics, available_memory() or 0)
    sign = partial(sign_header, identity=from_pem(told.identity.encode(), "its part"))
    part = Part(told.name, present, HOST, told.device, sign, play, after_turn, partial(_die, transport))
    station = Station(part, transport)
    threading.Thread(target=watch, args=(station.stop,), name="holdfast parent", daemon=True).start()
    try:
        station.run()
    finally:
        after_turn()
        transport.close()


def _check_fit(told: Told, numerics: str) -> None:
    """Raise SetupError on a machine whose work would not be the run's."""
    from holdfast import __version__
    from holdfast.errors import SetupError

    if told.version != __version__:
        raise SetupError(
            f"Holdfast is {__version__} on node {platform.node()} and {told.version} at the host; install the same version"
        )
    if told.numerics is not None and told.numerics != numerics:
        raise SetupError(
            f"node {platform.node()} computes in another numerics class ({numerics}) than the host ({told.numerics}), and this "
            "run compares bytes; use nodes of one kind with the same torch, or --defence none"
        )


def _print(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _cast(told: Told, say: Callable[[bytes], None]) -> tuple[Callable[[Actor], Actor], Callable[[], None]]:
    """Who plays the worker, and what reports what it has forged since it was last asked."""
    if told.cast is None:
        return (lambda actor: actor), (lambda: None)
    from holdfast.attacks.journal import Journal
    from holdfast.cast import Troupe

    journal = Journal()
    troupe = Troupe(told.cast, ledger=journal, struck_before=told.struck_before, pause=time.sleep)

    def report() -> None:
        for entry in journal.take():
            say(json.dumps(entry).encode())

    return troupe.play, report


def _die(transport: GrpcTransport) -> None:
    """End as a machine does whose plug is pulled, once what had left it has left."""
    deadline = time.monotonic() + FLUSH_S
    while time.monotonic() < deadline and any(link.queued_bytes for link in transport.links().values()):
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


def _leave_with_parent(stop: Callable[[str], None]) -> None:
    """The parent holds the other end of standard input as long as it lives."""
    while os.read(sys.stdin.fileno(), 4096):  # unbuffered: a lock that this thread holds would break the interpreter's end
        pass
    stop("its parent is gone")
    time.sleep(5.0)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
