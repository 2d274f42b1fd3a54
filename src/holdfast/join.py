"""A machine that takes part in somebody's run: it knocks, is let in, serves as a station, and comes back when it was cut off.

invite --> knock --> certificate, name --> Station over the wire --> dismissed                        the end
             ^                                      `--> the host is gone, or has lost us --> pause --+
             +----------------------------------------------------------------------------------------+
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from holdfast import __version__
from holdfast.admission.home import hosts_file, machine_identity
from holdfast.admission.invite import Invite
from holdfast.admission.knock import Admission, knock
from holdfast.admission.known_hosts import KnownHosts
from holdfast.admission.roster import Offer
from holdfast.commentary import Commentary
from holdfast.errors import CannotListen, ConfigError, NetworkError
from holdfast.evidence.envelope import sign_header
from holdfast.evidence.identity import Identity
from holdfast.job import check_device
from holdfast.kept import KEEP_S, Kept
from holdfast.machines import HOST, TRUSTED
from holdfast.message import Present
from holdfast.partition.memory import available_memory
from holdfast.speed import measure_speed
from holdfast.station import ANYTIME, CUT_OFF, DISMISSED, Part, Station, numerics_of
from holdfast.transport import Credentials, Endpoint, WireOptions
from holdfast.transport.grpc import GrpcTransport

PAUSE_S = 2.0
SILENCE_S = (3.0, 600.0)
"""What a host may ask for as the time until silence counts as loss."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine offers: torch device, bytes of memory (None: what is free), where others can dial it (None: nowhere).

    `patience_s` is how long it knocks at a door that does not answer, the first time and whenever it was cut off; `keep_s` how
    long it then keeps the states that it held; `home` is where its key and the hosts that it knows are kept (None:
    `holdfast.admission.home`).
    """

    device: str = "cpu"
    memory_bytes: int | None = None
    listen: str | None = None
    name: str = ""
    patience_s: float = 600.0
    keep_s: float = KEEP_S
    home: Path | None = None


class Guest:
    """One machine in one run. `run` serves until it is dismissed, `stop` (from any thread) leaves after what is computed now.

    Raises ConfigError for a device that is none, NetworkError where the host refuses, or is gone for too long,
    CannotListen where others could not dial this machine.
    """

    def __init__(self, invite: Invite, machine: Machine, tell: Callable[[str], None]) -> None:
        check_device(machine.device)
        if machine.listen is not None and machine.listen.endswith(":0"):
            raise ConfigError(f"others must know where to dial this machine: give --listen a port, got {machine.listen}")
        self._invite = invite
        self._machine = machine
        self._tell = tell
        home = machine.home
        self._identity: Identity = machine_identity(None if home is None else home / "identity.pem")
        self._known = KnownHosts(hosts_file() if home is None else home / "hosts.json")
        self._station: Station | None = None
        self._stopped = threading.Event()
        self._commentary = Commentary(tell)
        self._kept = Kept(machine.keep_s, machine.memory_bytes)

    def run(self) -> str:
        """Why the host needs this machine no more, or that it was stopped."""
        offer = self._offer()
        room = offer.memory_bytes / 2**30
        self._tell(f"this machine: {offer.device}, {offer.speed:.1f} GFLOP/s on one thread, {room:.1f} GiB")
        name, first = self._machine.name, True
        while not self._stopped.is_set():
            try:
                admission = knock(
                    self._invite,
                    self._identity,
                    offer,
                    wish=name,
                    known_hosts=self._known,
                    with_secret=first,
                    patience_s=self._machine.patience_s,
                    tell=self._tell,
                    sleep=self._pause,
                )
            except _Stopped:
                break
            name, first = admission.name, False
            self._tell(f"let in as {name}; the host's wire is at {', '.join(map(str, admission.wire))}")
            reason = self._serve(admission, offer)
            if reason.startswith(DISMISSED):
                self._kept.drop()
                return reason.removeprefix(DISMISSED)
            if not self._stopped.is_set():
                self._tell(f"{reason}; knocking again{self._told_kept()}")
                self._stopped.wait(PAUSE_S)
        return "stopped here"

    def _pause(self, seconds: float) -> None:
        """Between two knocks: who is stopped knocks no more."""
        if self._stopped.wait(seconds):
            raise _Stopped

    def _end(self, station: Station, reason: str) -> str:
        """Who was cut off keeps what it held: the host may come back, and look for it."""
        if not reason.startswith(DISMISSED) and not self._stopped.is_set():
            self._kept.take(station.holdings())
        return reason

    def _told_kept(self) -> str:
        stages = sorted({stage for stage, _digest in self._kept.announced})
        if not stages:
            return ""
        named = f"stage{'s' if len(stages) > 1 else ''} {', '.join(map(str, stages))}"
        return f" with the sealed state of {named}, which it keeps for {self._machine.keep_s:g} s"

    def stop(self) -> None:
        self._stopped.set()
        if self._station is not None:
            self._station.stop("stopped here")

    def _look(self) -> None:
        """The commentary hears what the station has to do."""
        if self._station is not None:
            self._commentary.look(self._station.seated)

    def _offer(self) -> Offer:
        device = self._machine.device
        free = self._machine.memory_bytes or available_memory() or 0
        listen = _shown(self._machine.listen)
        return Offer(device, free, measure_speed(device), numerics_of(device), listen, __version__, str(torch.__version__))

    def _serve(self, admission: Admission, offer: Offer) -> str:
        name, wire = admission.name, admission.wire[0]
        silence_s = _number(admission.terms.get("silence_s"), SILENCE_S)
        try:
            transport = GrpcTransport(
                Endpoint(name, (name,), offer.listen),
                Credentials(admission.authority, admission.certificate, admission.private_key),
                run=self._invite.run,
                listen=self._machine.listen,
                relay=HOST,
                options=WireOptions(silence_s=silence_s),
                anytime=ANYTIME,
            )
        except CannotListen as error:
            raise error.given_by("--listen") from None
        said = offer.device, offer.numerics, offer.memory_bytes, offer.speed
        present = Present(transport.address, *said, self._kept.announced)
        sign = partial(sign_header, identity=self._identity)
        part = Part(name, present, HOST, self._machine.device, sign, after_turn=self._look, kept=self._kept)
        station = Station(part, transport)
        try:
            transport.know([Endpoint(HOST, TRUSTED, str(wire))])
            self._station = station
            if self._stopped.is_set():
                station.stop("stopped here")
            return self._end(station, station.run())
        except NetworkError as error:
            return self._end(station, text if (text := str(error)).startswith(CUT_OFF) else f"{CUT_OFF}: {text}")
        finally:
            self._station = None
            transport.close()


class _Stopped(Exception):
    pass


def _shown(listen: str | None) -> str | None:
    """Where others dial what listens there; of an address that stands for all of them, only the port is known."""
    if listen is None or not listen.startswith(("0.0.0.0:", "[::]:")):
        return listen
    return ":" + listen.rpartition(":")[2]


def _number(text: str | None, limits: tuple[float, float]) -> float:
    """A number from a stranger, within limits; the lower one if it is none."""
    try:
        value = float(text or "")
    except ValueError:
        return limits[0]
    return min(max(value, limits[0]), limits[1]) if value == value else limits[0]
