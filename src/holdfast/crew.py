"""Crews of one owner's machines: a process for each worker, here or where Ray has a place, told its part when it starts.

Each gets the credentials that the run's own authority issues to it, and speaks the same wire as a machine far away. A process
that ends is started again, after a pause that grows; who is banned is not.
"""

from __future__ import annotations

import secrets
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from holdfast import __version__
from holdfast.config import RunConfig, Section
from holdfast.engine import described_memory
from holdfast.evidence.authority import Authority
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
    """What a worker's process is told, as one line of JSON. `cast` is the config where this process plays a part in it.

    Who is of another `version` than the host, or of other `numerics` than the run wants, does not play.
    """

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
    version: str
    numerics: str | None

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


class Started(ABC):
    """A `Crew` that is started, and started again, from here. `host` is the endpoint of the trusted members.

    Who implements it says how one is launched, ended (`for_good`: its place is given up) and who runs now, and calls `_ended`
    when one has ended.
    """

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

    @abstractmethod
    def _launch(self, name: str, told: Told) -> None: ...

    @abstractmethod
    def _end(self, name: str, *, for_good: bool) -> None: ...

    @abstractmethod
    def _running(self) -> Sequence[str]: ...

    @abstractmethod
    def _finish(self) -> None: ...

    def gather(self, names: Sequence[str]) -> None:
        with self._lock:
            alive = self._running()
            lacking = [name for name in names if name not in alive and name not in self._timers]
            over = [name for name in lacking if self._starts[name] and not self._restarts]
            for name in lacking:
                if name not in over:
                    self._start(name)
        for name in over:
            self._told_ended(name, "its process ended, and is not started again")

    def expect(self) -> Sequence[Endpoint]:
        return [Endpoint(name, (name,), None) for name in list(self._starts) if name not in self._banned]

    def key(self, name: str) -> bytes | None:
        return None

    def awaits(self, name: str) -> bool:
        if not name:
            return False
        with self._lock:
            again = self._restarts and name not in self._banned and self._in_a_row[name] < MAX_STARTS
            return again or name in self._running()

    def left(self, name: str, *, banned: bool) -> None:
        with self._lock:
            self._banned |= {name} if banned else set()
        self._end(name, for_good=banned)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for timer in self._timers.values():
                timer.cancel()
        self._finish()

    @property
    def _device(self) -> str:
        """What a worker's own machine calls the device that it computes on."""
        return self._staging.config.model.device

    @property
    def _numerics(self) -> str | None:
        """The numerics class that a worker must be of; None where it is of this machine, and so of its class."""
        return None

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
            device=self._device,
            cast=self._staging.cast,
            struck_before=self._staging.step() if self._starts[name] > 1 else 0,
            silence_s=config.machines.silence_s,
            version=__version__,
            numerics=self._numerics,
        )
        self._launch(name, told)

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
                return
        self._end(name, for_good=True)

    def _again(self, name: str) -> None:
        with self._lock:
            self._timers.pop(name, None)
            if not self._closed and name not in self._banned:
                self._start(name)


class Processes(Started):
    """Each worker is a process on this machine, told its part on its standard input."""

    def __init__(
        self, run: str, host: Endpoint, authority: Authority, staging: Staging, ended: Callable[[str, str], None]
    ) -> None:
        super().__init__(run, host, authority, staging, ended)
        self.children = Subprocesses(self._ended, staging.heard, staging.logs)

    def _launch(self, name: str, told: Told) -> None:
        command = [sys.executable, "-m", "holdfast.cli.play"]
        environment = {"OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "NONE"}
        self.children.start(name, command, told.model_dump_json().encode(), environment)

    def _end(self, name: str, *, for_good: bool) -> None:
        self.children.signal(name, signal.SIGKILL)

    def _running(self) -> Sequence[str]:
        return self.children.alive()

    def _finish(self) -> None:
        self.children.close()


def processes(
    staging: Staging,
    crew: Callable[..., Crew] = Processes,
    patience: Patience | None = None,
) -> Machines:
    """The engine `processes`; no process is started before the first deployment, but the wire listens on loopback.

    `crew` makes the crew (as `Processes` is made). Raises CannotListen if it cannot listen.
    """
    return machines(staging, crew, patience)


def machines(staging: Staging, crew: Callable[..., Crew], patience: Patience | None, listen: str = "127.0.0.1:0") -> Machines:
    run = secrets.token_hex(16)
    identity = generate()
    authority = Authority.generate(identity, run)
    certificate, private_key = authority.credentials(HOST, identity)
    transport = GrpcTransport(
        Endpoint(HOST, TRUSTED),
        Credentials(authority.certificate, certificate, private_key),
        run=run,
        listen=listen,
        options=WireOptions(silence_s=staging.config.machines.silence_s),
        anytime=ANYTIME,
    )
    host = Endpoint(HOST, TRUSTED, transport.address)
    memory = partial(described_memory, staging.config)
    return Machines(transport, lambda ended: crew(run, host, authority, staging, ended), patience or Patience(), memory)
