"""The crew of the `processes` engine: a process on this machine for each worker, told its part on its standard input.

Each gets the credentials that the run's own authority issues to it, and speaks the same wire as a machine far away. A process
that ends is started again, after a pause that grows; who is banned is not.
"""

from __future__ import annotations

import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from holdfast.config import RunConfig, Section
from holdfast.engine import described_memory
from holdfast.evidence.certificates import Authority
from holdfast.evidence.identity import derived, generate
from holdfast.launch.subprocesses import Subprocesses
from holdfast.machines import HOST, TRUSTED, Crew, Machines, Patience
from holdfast.station import ANYTIME
from holdfast.transport import Credentials, Endpoint, WireOptions
from holdfast.transport.grpc import GrpcTransport

MAX_STARTS = 8
"""A worker whose process ends this often in a row is not started again."""

STEADY_S = 60.0
"""A process that has lived this long is not one in a row of failures."""

PAUSE_S = 0.5


class Told(Section):
    """What a worker's process is told, as one line of JSON. `cast` is the config where this process plays a part in it."""

    run: str
    name: str
    host: str
    trusted: tuple[str, ...]
    authority: str
    certificate: str
    private_key: str
    identity: str
    device: str
    cast: RunConfig | None
    struck_before: int
    silence_s: float

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.authority.encode(), self.certificate.encode(), self.private_key.encode())


@dataclass(frozen=True)
class Staging:
    """How the processes are set up. Where they play a part in a cast, `cast` is the config of it, `heard(name, line)` gets what
    they say on their standard output, and faults of steps before `step()` have struck when a process is started again.
    """

    config: RunConfig
    cast: RunConfig | None = None
    heard: Callable[[str, bytes], None] = lambda _name, _line: None
    step: Callable[[], int] = lambda: 0
    logs: Path | None = None


class Processes:
    """A `Crew`. `host` is the endpoint of the trusted members."""

    def __init__(
        self, run: str, host: Endpoint, authority: Authority, staging: Staging, ended: Callable[[str, str], None]
    ) -> None:
        self._run = run
        self._host = host
        self._authority = authority
        self._staging = staging
        self._told_ended = ended
        self._starts: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()
        self._started_s: dict[str, float] = {}
        self._banned: set[str] = set()
        self._timers: dict[str, threading.Timer] = {}
        self._lock = threading.RLock()
        self._closed = False
        self.children = Subprocesses(self._ended, staging.heard, staging.logs)

    def gather(self, names: Sequence[str]) -> None:
        with self._lock:
            alive = self.children.alive()
            lacking = [name for name in names if name not in alive and name not in self._timers]
            over = [name for name in lacking if self._starts[name] and not self._restarts]
            for name in lacking:
                if name not in over:
                    self._start(name)
        for name in over:
            self._told_ended(name, "its process ended, and is not started again")

    def expect(self) -> Sequence[Endpoint]:
        return [Endpoint(name, (name,), None) for name in self._starts if name not in self._banned]

    def key(self, name: str) -> bytes | None:
        return None

    def awaits(self, name: str) -> bool:
        if not name:
            return False
        with self._lock:
            again = self._restarts and name not in self._banned and self._in_a_row[name] < MAX_STARTS
            return again or name in self.children.alive()

    def left(self, name: str, *, banned: bool) -> None:
        with self._lock:
            self._banned |= {name} if banned else set()
        self.children.signal(name, signal.SIGKILL)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for timer in self._timers.values():
                timer.cancel()
        self.children.close()

    @property
    def _restarts(self) -> bool:
        return self._staging.config.machines.restart_workers

    def _start(self, name: str) -> None:
        self._starts[name] += 1
        self._in_a_row[name] += 1
        self._started_s[name] = time.monotonic()
        config = self._staging.config
        identity = derived(config.training.seed, name)
        certificate, private_key = self._authority.credentials(name, identity)
        assert self._host.address is not None
        told = Told(
            run=self._run,
            name=name,
            host=self._host.address,
            trusted=TRUSTED,
            authority=self._authority.certificate.decode(),
            certificate=certificate.decode(),
            private_key=private_key.decode(),
            identity=identity.pem().decode(),
            device=config.model.device,
            cast=self._staging.cast,
            struck_before=self._staging.step() if self._starts[name] > 1 else 0,
            silence_s=config.machines.silence_s,
        )
        command = [sys.executable, "-m", "holdfast.cli.play"]
        environment = {"OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "NONE"}
        self.children.start(name, command, told.model_dump_json().encode(), environment)

    def _ended(self, name: str, why: str) -> None:
        self._told_ended(name, why)  # first: the loss of this process must not be taken for that of the next
        with self._lock:
            if self._closed or not self._restarts or name in self._banned:
                return
            if time.monotonic() - self._started_s[name] > STEADY_S:
                self._in_a_row[name] = 1
            if self._in_a_row[name] < MAX_STARTS:
                timer = threading.Timer(PAUSE_S * 2 ** (self._in_a_row[name] - 1), self._again, (name,))
                timer.daemon = True
                self._timers[name] = timer
                timer.start()

    def _again(self, name: str) -> None:
        with self._lock:
            self._timers.pop(name, None)
            if not self._closed and name not in self._banned:
                self._start(name)


def processes(
    staging: Staging,
    crew: Callable[..., Crew] = Processes,
    patience: Patience | None = None,
) -> Machines:
    """The engine `processes`; no process is started before the first deployment, but the wire listens on loopback.

    `crew` makes the crew (as `Processes` is made). Raises NetworkError if it cannot listen.
    """
    run = secrets.token_hex(16)
    identity = generate()
    authority = Authority.generate(identity, run)
    certificate, private_key = authority.credentials(HOST, identity)
    transport = GrpcTransport(
        Endpoint(HOST, TRUSTED),
        Credentials(authority.certificate, certificate, private_key),
        run=run,
        options=WireOptions(silence_s=staging.config.machines.silence_s),
        anytime=ANYTIME,
    )
    host = Endpoint(HOST, TRUSTED, transport.address)
    memory = partial(described_memory, staging.config)
    return Machines(transport, lambda ended: crew(run, host, authority, staging, ended), patience or Patience(), memory)
