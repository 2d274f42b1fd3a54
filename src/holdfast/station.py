"""A station is the process that a worker lives in: it says that it is there, is deployed, and plays its part until dismissed.

    Present --> Peers, Deploy --> build the worker of the blueprint --> Deployed --> the worker's messages and work
                   ^                                                                     |
                   +------------------------- after a rollback, or a loss ---------------+--> Dismiss

It believes the coordinator about deployments, and keeps its name, its key and its links from one to the next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from holdfast.blueprint import Blueprint, Builder, Sign
from holdfast.commentary import Seated
from holdfast.errors import HoldfastError, NetworkError
from holdfast.kept import Holdings, Kept
from holdfast.launch import Room
from holdfast.message import Actor, Deploy, Deployed, Dismiss, Envelope, Peers, Present, Tally, TallyUp
from holdfast.numerics import NATIVE, numerics_class, pinned
from holdfast.stage import COORDINATOR, unsigned
from holdfast.transport import Endpoint, Notice
from holdfast.worker import Worker

TURN_S = 0.2
CONNECT_S = 60.0
"""How long the host's wire may take to answer at first: the host may have gone since it let this machine in."""

CUT_OFF = "the host cannot be reached"
DISMISSED = "dismissed: "
"""How the word of the coordinator begins in what `Station.run` answers."""

ORDERS = (Peers, Deploy, TallyUp, Dismiss)
ANYTIME = frozenset({*ORDERS, Present, Deployed, Tally})
"""Messages of stations, which belong to no deployment."""


def cut_off(notice: Notice) -> str:
    """In words, that the host is gone, or lets this machine in no more."""
    if notice.kind == "refused":
        return f"{CUT_OFF}: it lets this machine in no more: {notice.reason}"
    return f"{CUT_OFF}: {notice.reason}"


def numerics_of(device: str) -> str:
    """The numerics class of a station on `device` of this machine: who is in another one gets other bytes."""
    return str(numerics_class(NATIVE, torch.float32, device))


class Link(Protocol):
    """What a station needs of its transport."""

    generation: int

    def send(self, envelope: Envelope) -> None: ...

    def receive(self, timeout_s: float) -> Envelope | None: ...

    def know(self, endpoints: Iterable[Endpoint]) -> None: ...

    def notices(self) -> Sequence[Notice]: ...

    @property
    def traffic(self) -> Any: ...


@dataclass(frozen=True)
class Part:
    """What a station brings along: its name and hand, its device, what it says of itself, and who plays its worker; `host` is
    the process of the coordinator, `kept` what the machine still holds from before it was cut off.
    """

    name: str
    present: Present
    host: str = "host"
    device: str = "cpu"
    sign: Sign = unsigned
    play: Callable[[Actor], Actor] = lambda actor: actor
    after_turn: Callable[[], None] = lambda: None
    die: Callable[[], None] = lambda: None
    kept: Kept | None = None


class Station:
    """See the module. `run` gives the reason of its dismissal; `stop` may be called from any thread."""

    def __init__(self, part: Part, link: Link) -> None:
        self._part = part
        self._link = link
        self._orders: deque[Envelope] = deque()
        self._room = Room([], self._send)
        self._base_bytes = 0
        self._over: str | None = None
        self._failure: BaseException | None = None
        self._alone = ""
        self._met = False
        self._worker: Worker | None = None
        self._handed = False
        self._blueprint: Blueprint | None = None

    def run(self) -> str:
        """Serve until dismissed or stopped. Raises NetworkError where the coordinator cannot be reached any more."""
        reader = threading.Thread(target=self._read, name="holdfast reader", daemon=True)
        with pinned(self._part.device):
            reader.start()
            try:
                self._say(self._part.present)
                while self._over is None:
                    failure = self._failure  # before the orders: those that came until then are obeyed first
                    while self._orders:
                        self._obey(self._orders.popleft())
                    if self._over is not None:
                        break
                    if failure is not None:
                        raise failure
                    self._room.turn(TURN_S)
                    self._part.after_turn()
                    self._look_after_kept()
            finally:
                self._over = self._over or "failed"
                reader.join()
        return self._over

    def stop(self, reason: str) -> None:
        """Leave after what is being computed now."""
        self._over = self._over or reason
        self._room.stir()

    def holdings(self) -> Holdings:
        """The states that its worker held when `run` ended, with their digests; see `Worker.holdings`."""
        return [] if self._worker is None else self._worker.holdings()

    @property
    def seated(self) -> Seated | None:
        """What it has to do, for who asks in `after_turn`; None before its first step in this deployment."""
        if self._worker is None or self._blueprint is None or not self._worker.has_begun:
            return None
        seats = self._worker.seats
        version = max((seat.version for seat in seats.values()), default=0)
        return Seated({i: seat.role for i, seat in seats.items()}, self._blueprint.layers, version, self._blueprint.steps)

    @property
    def seconds_by_kind(self) -> Mapping[str, float]:
        return self._room.seconds_by_kind

    # -- orders ------------------------------------------------------------------------------------------------------

    def _obey(self, envelope: Envelope) -> None:
        match envelope.message:
            case Peers(processes):
                self._link.know(Endpoint(*process) for process in processes)
            case Deploy():
                self._deploy(envelope.message)
            case TallyUp(number):
                seconds = tuple(sorted(self._room.seconds_by_kind.items()))
                self._say(Tally(number, seconds, self._link.traffic.bytes_sent - self._base_bytes))
            case Dismiss(reason):
                self._over = DISMISSED + reason

    def _deploy(self, order: Deploy) -> None:
        self._room, self._worker = Room([], self._send), None
        self._link.generation = order.generation
        try:
            self._blueprint = Blueprint.decode(order.blueprint)
            builder = Builder.unfold(self._blueprint, self._part.device)
            own = builder.worker(self._part.name, self._part.sign)
            worker = self._part.play(own)
        except (HoldfastError, MemoryError, RuntimeError) as error:
            self._say(Deployed(order.generation, f"{type(error).__name__}: {error}"[:1000]))
            return
        if self._part.kept is not None:
            own.hold(self._part.kept.holdings)
            self._handed = True
        self._worker = own
        self._base_bytes = self._link.traffic.bytes_sent
        self._room = Room([worker], self._send, die=self._part.die)
        self._say(Deployed(order.generation))

    def _look_after_kept(self) -> None:
        """What was kept is given up when a step has begun, with it or without it, and when its time is over."""
        kept, worker = self._part.kept, self._worker
        if kept is None or worker is None or not self._handed:
            return
        if worker.seats:
            kept.drop()
        if not kept.holdings:
            worker.let_go()
            self._handed = False

    # -- messages ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        began = time.monotonic()
        try:
            while self._over is None:
                alone = self._alone  # what the host said before it went is there by now
                envelope = self._link.receive(TURN_S)
                self._look_after_host()
                if envelope is None:
                    if alone and self._alone:
                        raise NetworkError(alone)
                    if not self._met and time.monotonic() - began > CONNECT_S:
                        raise NetworkError(f"{CUT_OFF}: its wire did not answer within {CONNECT_S:g} s")
                    continue
                self._met = True
                if isinstance(envelope.message, ORDERS):
                    if envelope.sender == COORDINATOR:
                        self._orders.append(envelope)
                        self._room.stir()
                elif envelope.recipient in self._room.actors:
                    self._room.put(envelope)
        except NetworkError as error:
            self._failure = error
            self._room.stir()

    def _look_after_host(self) -> None:
        """Without its coordinator a station is of no use to anybody: it ends, and may be started anew. Who was refused because
        it came too early, and then let in, goes on.
        """
        for notice in self._link.notices():
            if notice.process != self._part.host:
                continue
            if notice.kind in ("lost", "refused"):
                self._alone = cut_off(notice)
            elif notice.kind == "up" and not self._met:  # a host that is up again has started anew, and wants a new station
                self._alone, self._met = "", True

    def _say(self, message: Present | Deployed | Tally) -> None:
        self._send(Envelope(self._part.name, COORDINATOR, message))

    def _send(self, envelope: Envelope) -> None:
        if envelope.recipient == self._part.name:
            self._room.put(envelope)
        else:
            self._link.send(envelope)
