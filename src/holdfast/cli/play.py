"""The process of one worker under the `processes` engine: it reads its part on standard input, and ends when that does.

Not a command for people; `holdfast train --engine processes` starts it. What the liars among the workers know of their lies
goes to standard output, line by line, for the report: the run itself never sees it.
"""

from __future__ import annotations

import json
import logging
import os
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
        return _play(line)
    except HoldfastError as error:
        logging.getLogger("holdfast").error("%s", error)
        return error.exit_code


def _play(line: bytes) -> int:
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
    play, after_turn = _cast(told)
    transport = GrpcTransport(
        Endpoint(told.name, (told.name,)),
        told.credentials,
        run=told.run,
        relay=HOST,
        options=WireOptions(silence_s=told.silence_s),
        anytime=ANYTIME,
    )
    transport.know([Endpoint(HOST, told.trusted, told.host)])
    present = Present(transport.address, told.device, numerics_of(told.device), available_memory() or 0)
    sign = partial(sign_header, identity=from_pem(told.identity.encode(), "its part"))
    part = Part(told.name, present, HOST, told.device, sign, play, after_turn, partial(_die, transport))
    station = Station(part, transport)
    threading.Thread(target=_leave_with_parent, args=(station.stop,), name="holdfast parent", daemon=True).start()
    try:
        station.run()
    finally:
        after_turn()
        transport.close()
    return 0


def _cast(told: Told) -> tuple[Callable[[Actor], Actor], Callable[[], None]]:
    """Who plays the worker, and what reports what it has forged since it was last asked."""
    if told.cast is None:
        return (lambda actor: actor), (lambda: None)
    from holdfast.attacks.journal import Journal
    from holdfast.cast import Troupe

    journal = Journal()
    troupe = Troupe(told.cast, ledger=journal, struck_before=told.struck_before, pause=time.sleep)

    def report() -> None:
        for entry in journal.take():
            sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()

    return troupe.play, report


def _die(transport: GrpcTransport) -> None:
    """End as a machine does whose plug is pulled, once what had left it has left."""
    deadline = time.monotonic() + FLUSH_S
    while time.monotonic() < deadline and any(link.queued_bytes for link in transport.links().values()):
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


def _leave_with_parent(stop: Callable[[str], None]) -> None:
    """The parent holds the other end of standard input as long as it lives."""
    sys.stdin.buffer.read()
    stop("its parent is gone")
    time.sleep(5.0)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
