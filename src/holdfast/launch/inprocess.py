"""The engine in one process: a deterministic loop over actors, with real computation and virtual time.

    message arrives --> receive --> answers leave now
    device is idle  --> next_work --> execute (really, now) --> its messages leave after cost x seconds_per_forward / speed

Equal actors, network and seeds give the same calls in the same order. Besides the methods of `Actor`, an actor may have

    devices: int                                        serial devices that it computes on (default 1)
    pending_events() -> Sequence[Event]                 what happened; asked for after each call, handed to `Hooks.observe`
    pending_timers() -> Sequence[tuple[token, s]]       asked for after each call; `on_timer(token)` is called s seconds later
    on_timer(token) -> Sequence[Envelope]
    describe() -> str                                   one line for the report of a deadlock

and may raise `WorkerDied` or `WorkerStalled` from any call that takes a message, a timer or work.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from holdfast.errors import HoldfastError, ProtocolError, WorkerDied, WorkerStalled
from holdfast.event import Event
from holdfast.message import Actor, Envelope, Work


class Deadlock(HoldfastError):
    """Nothing is on its way, nobody works, no timer runs, and what was waited for has not come."""


class Traffic(Protocol):
    """Bytes that left the members' machines."""

    @property
    def bytes_sent(self) -> int: ...


class Network(Protocol):
    """A transport in virtual time (`transport.MemoryTransport`). `now_s` is the only clock; `receive` moves it forward."""

    now_s: float

    @property
    def traffic(self) -> Traffic: ...

    @property
    def next_s(self) -> float: ...

    def send(self, envelope: Envelope) -> None: ...

    def receive(self) -> Envelope | None: ...


@dataclass(frozen=True, slots=True)
class Glance:
    """What a launcher knows at this moment, without asking anybody who might not answer.

    `seconds` by kind of work and `bytes_sent` are of all members, those elsewhere as they last told; `links` are the links to
    other processes, by peer, as the transport describes them (none in one process).
    """

    seconds: Mapping[str, float]
    bytes_sent: int
    links: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """`speeds` of (worker, device) are relative to the device that takes `seconds_per_forward` (default 1)."""

    seconds_per_forward: float = 0.05
    speeds: Mapping[tuple[str, int], float] = field(default_factory=dict)
    detection_s: float = 0.1


def _raise(_envelope: Envelope, error: ProtocolError) -> Sequence[Envelope]:
    raise error


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the loop tells its owner. Envelopes that a hook returns are sent.

    `observe(event, now_s)` gets every event; `on_lost(name, reason)` is called `detection_s` after a death, once; `on_refused`
    is called where an actor refuses a message with ProtocolError (by default the error goes on up); `on_joined(name)` where
    a member came that was not there before.
    """

    observe: Callable[[Event, float], None] = lambda _event, _now_s: None
    on_lost: Callable[[str, str], Sequence[Envelope]] = lambda _name, _reason: ()
    on_refused: Callable[[Envelope, ProtocolError], Sequence[Envelope]] = _raise
    on_joined: Callable[[str], Sequence[Envelope]] = lambda _name: ()


class InProcess:
    """The loop. `seconds_by_kind` is wall time spent in `execute`, `busy_s` virtual time of each (worker, device).

    `transport` is the network that it was given.
    """

    def __init__(self, actors: Iterable[Actor], network: Network, timing: Timing = Timing(), hooks: Hooks = Hooks()) -> None:
        self.seconds_by_kind: dict[str, float] = defaultdict(float)
        self.busy_s: dict[tuple[str, int], float] = defaultdict(float)
        self._members = {actor.name: _Member(actor) for actor in actors}
        self.transport = self._network = network
        self._timing = timing
        self._hooks = hooks
        self._agenda: list[tuple[float, int, _Handler, _Member, Any]] = []
        self._entries = 0
        self._unasked: dict[str, _Member] = dict(self._members)

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self._network.now_s

    @property
    def bytes_sent(self) -> int:
        return self._network.traffic.bytes_sent

    def glance(self) -> Glance:
        """May be called from any thread."""
        return Glance(dict(self.seconds_by_kind), self.bytes_sent, {})

    def inject(self, envelopes: Iterable[Envelope]) -> None:
        """Send messages from outside; they travel as if their senders had sent them now."""
        for envelope in envelopes:
            self._check_recipient(envelope)
            self._network.send(envelope)
        self._look_at_all()

    def kill(self, name: str) -> None:
        """The machine of `name` dies now: what it was doing and what is on its way to it vanishes."""
        member = self._members[name]
        if member.alive:
            self._die(member, "killed")

    def join(self, actor: Actor) -> None:
        """A machine comes that was not there, or is back with nothing of what it had: nobody's name who is alive."""
        known = self._members.get(actor.name)
        assert known is None or not known.alive, f"{actor.name} is there already"
        self._members[actor.name] = _Member(actor)
        self._send(self._hooks.on_joined(actor.name))
        self._look_at_all()

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        """`act()` is called when the clock has moved on by `delay_s`, if the run lasts that long."""
        self._at(delay_s, _act, next(iter(self._members.values())), act)

    def run_until(self, done: Callable[[], bool]) -> None:
        """Run until `done()`, asked after every event. Raises Deadlock when nothing can happen any more."""
        self._look_at_all()
        while not done():
            if not self._advance():
                raise Deadlock(self._report())

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """One event; before time moves on, every device whose worker may have got new work is asked for it."""
        network = self._network
        planned = self._agenda[0][0] if self._agenda else math.inf
        arrival = network.next_s
        if self._unasked and min(planned, arrival) > network.now_s:
            unasked, self._unasked = self._unasked, {}
            for member in unasked.values():
                self._occupy(member)
            return True
        if arrival <= planned:
            envelope = network.receive() if arrival < math.inf else None
            if envelope is None:
                return False
            self._deliver(self._members[envelope.recipient], envelope)
        else:
            network.now_s, _, handler, member, payload = heapq.heappop(self._agenda)
            handler(member, payload)
        return True

    def _at(self, delay_s: float, handler: _Handler, member: _Member, payload: Any) -> None:
        self._entries += 1
        heapq.heappush(self._agenda, (self._network.now_s + delay_s, self._entries, handler, member, payload))

    def _deliver(self, member: _Member, envelope: Envelope) -> None:
        if member.frozen:
            member.backlog.append((self._deliver, envelope))
        elif member.alive:
            try:
                self._call(member, member.receive, envelope)
            except ProtocolError as error:
                self._send(self._hooks.on_refused(envelope, error))

    def _ring(self, member: _Member, token: Hashable) -> None:
        if member.frozen:
            member.backlog.append((self._ring, token))
        elif member.alive:
            self._call(member, member.on_timer, token)

    def _call(self, member: _Member, method: Callable[[Any], Sequence[Envelope]], argument: Any) -> None:
        try:
            self._send(method(argument), member.name)
        except WorkerDied as signal:
            self._send(signal.sent, member.name)
            self._die(member, str(signal))
            return
        except WorkerStalled as signal:
            self._send(signal.sent, member.name)
            self._freeze(member, signal.seconds)
        self._look_at(member)

    # -- work --------------------------------------------------------------------------------------------------------

    def _occupy(self, member: _Member) -> None:
        for device, busy in enumerate(member.busy):
            if busy or member.frozen or not member.alive:
                continue
            work = member.actor.next_work(device)
            if work is not None:
                assert work.device == device, f"{member.name} offers work for device {work.device} to device {device}"
                self._execute(member, work)

    def _execute(self, member: _Member, work: Work) -> None:
        stall_s, died = 0.0, None
        envelopes: Sequence[Envelope]
        began = time.perf_counter()
        try:
            envelopes = member.actor.execute(work)
        except WorkerDied as signal:
            envelopes, died = signal.sent, str(signal)
            member.alive = False
        except WorkerStalled as signal:
            envelopes, stall_s = signal.sent, signal.seconds
        self.seconds_by_kind[work.kind] += time.perf_counter() - began
        place = (member.name, work.device)
        seconds = work.cost * self._timing.seconds_per_forward / self._timing.speeds.get(place, 1.0)
        self.busy_s[place] += seconds
        member.busy[work.device] = True
        self._at(seconds, self._finish, member, _Outcome(work.device, envelopes, stall_s, died))

    def _finish(self, member: _Member, outcome: _Outcome) -> None:
        if outcome.died is not None:
            self._send(outcome.envelopes, member.name)
            self._die(member, outcome.died)
        elif member.frozen:
            member.backlog.append((self._finish, outcome))
        elif member.alive:
            member.busy[outcome.device] = False
            self._send(outcome.envelopes, member.name)
            if outcome.stall_s:
                self._freeze(member, outcome.stall_s)
            self._look_at(member)

    # -- death and stalls --------------------------------------------------------------------------------------------

    def _die(self, member: _Member, reason: str) -> None:
        member.alive = member.frozen = False
        self._at(self._timing.detection_s, self._announce, member, reason)

    def _announce(self, member: _Member, reason: str) -> None:
        self._send(self._hooks.on_lost(member.name, reason))
        self._look_at_all()

    def _freeze(self, member: _Member, seconds: float) -> None:
        member.frozen = True
        self._at(seconds, self._thaw, member, None)

    def _thaw(self, member: _Member, _payload: None) -> None:
        if not member.alive:
            return
        member.frozen = False
        backlog, member.backlog = member.backlog, []
        for handler, payload in backlog:  # a handler that finds the member frozen again puts its payload back
            handler(member, payload)
        self._look_at(member)

    # -- what comes out ----------------------------------------------------------------------------------------------

    def _send(self, envelopes: Sequence[Envelope], sender: str | None = None) -> None:
        for envelope in envelopes:
            try:
                if sender is not None and envelope.sender != sender:
                    raise ProtocolError(
                        f"{sender} sent a message in the name of {envelope.sender!r}; a transport would refuse it"
                    )
                self._check_recipient(envelope)
                self._network.send(envelope)
            except ProtocolError as error:  # what the transport refuses is lost, and the rest still goes out
                self._hooks.on_refused(envelope, error)

    def _check_recipient(self, envelope: Envelope) -> None:
        if envelope.recipient not in self._members:
            kind, known = type(envelope.message).__name__, ", ".join(self._members)
            raise ProtocolError(
                f"{envelope.sender} sent a {kind} to {envelope.recipient!r}, who is no member; there are {known}"
            )

    def _look_at(self, member: _Member) -> None:
        """After a call: pass on events, start timers, and ask for work before time moves on."""
        for event in member.pending_events():
            self._hooks.observe(event, self._network.now_s)
        for token, delay_s in member.pending_timers():
            self._at(delay_s, self._ring, member, token)
        self._unasked[member.name] = member

    def _look_at_all(self) -> None:
        for member in self._members.values():
            if member.alive and not member.frozen:
                self._look_at(member)

    def _report(self) -> str:
        lines = [f"nothing can happen any more at virtual second {self.now:g}, but the end is not reached; the members say:"]
        return "\n  ".join([*lines, *(member.describe() for member in self._members.values())])


class _Member:
    """An actor, and what the loop knows of its machine."""

    __slots__ = (
        "actor", "alive", "backlog", "busy", "frozen", "name", "on_timer", "pending_events", "pending_timers", "receive",
    )  # fmt: skip

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.name = actor.name
        self.busy = [False] * getattr(actor, "devices", 1)
        self.alive = True
        self.frozen = False
        self.backlog: list[tuple[_Handler, Any]] = []
        self.receive = actor.receive
        self.on_timer: Callable[[Hashable], Sequence[Envelope]] = getattr(actor, "on_timer", _no_timers)
        self.pending_events: Callable[[], Sequence[Event]] = getattr(actor, "pending_events", tuple)
        self.pending_timers: Callable[[], Sequence[tuple[Hashable, float]]] = getattr(actor, "pending_timers", tuple)

    def describe(self) -> str:
        if not self.alive:
            return f"{self.name}: dead"
        text: str = getattr(self.actor, "describe", lambda: f"{self.name}: waits")()
        return text


@dataclass(frozen=True, slots=True)
class _Outcome:
    device: int
    envelopes: Sequence[Envelope]
    stall_s: float
    died: str | None


_Handler = Callable[[_Member, Any], None]


def _act(_member: _Member, act: Callable[[], None]) -> None:
    act()


def _no_timers(token: Hashable) -> Sequence[Envelope]:
    raise AssertionError(f"an actor without on_timer set the timer {token!r}")
