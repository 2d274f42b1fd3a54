"""Actors in real time: each room is a thread that hears messages first and computes next; the owner's room runs in `run_until`.

    wire --reader--> room of the recipient --> receive --> answers leave now
                     nothing to hear       --> next_work of the first actor that has any --> execute --> its messages leave

Actors, hooks and what an actor may have besides are those of the engine in one process. What differs: time is the machine's,
messages of several senders arrive in any order, and who is lost elsewhere its owner has to say (`call`).
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from holdfast.errors import NetworkError, ProtocolError, WorkerDied, WorkerStalled
from holdfast.launch.inprocess import Deadlock, Hooks
from holdfast.message import Actor, Envelope

TURN_S = 0.2
"""How long a room that has nothing to do waits before it looks again at what no message tells it."""


Call = Callable[[], Sequence[Envelope]]

log = logging.getLogger("holdfast.launch")


def _drop(envelope: Envelope, error: ProtocolError) -> Sequence[Envelope]:
    """What a member refuses is lost: who sends nonsense to another must not end it."""
    log.info("%s from %s was refused: %s", type(envelope.message).__name__, envelope.sender, error)
    return ()


NO_HOOKS = Hooks(on_refused=_drop)


class Wire(Protocol):
    """What carries envelopes to members elsewhere."""

    def send(self, envelope: Envelope) -> None: ...

    def receive(self, timeout_s: float) -> Envelope | None: ...


class Room:
    """Actors that share one thread, in the order of whose work goes first. Only `put` and `stir` may be called from others.

    `die` ends the process of an actor that says its machine is gone.
    """

    def __init__(
        self,
        actors: Iterable[Actor],
        send: Callable[[Envelope], None],
        hooks: Hooks = NO_HOOKS,
        die: Callable[[], None] = lambda: None,
    ) -> None:
        self.actors = {actor.name: actor for actor in actors}
        self.seconds_by_kind: dict[str, float] = defaultdict(float)
        self.began_s = time.monotonic()
        self.heard_s = self.began_s
        self._send = send
        self._hooks = hooks
        self._die = die
        self._waiting: deque[Envelope | Call] = deque()
        self._stirred = threading.Condition()
        self._timers: list[tuple[float, int, Actor, Hashable]] = []
        self._set = 0

    @property
    def is_waiting_for_a_timer(self) -> bool:
        return bool(self._timers)

    def put(self, item: Envelope | Call) -> None:
        """Have an actor of this room hear an envelope, or have something called in the room's thread, soon."""
        with self._stirred:
            self._waiting.append(item)
            self._stirred.notify()

    def stir(self) -> None:
        """Wake the room, to look at the world anew."""
        with self._stirred:
            self._stirred.notify()

    def turn(self, wait_s: float = TURN_S) -> None:
        """Hear all that has come, ring what is due, then do one piece of work; without any, wait for what comes."""
        if self._hear() | self._ring() | self._work():
            return
        self._rest(wait_s)

    def look(self) -> None:
        """Ask every actor for its events and timers, and deliver what it has to say: after it was called from outside."""
        for actor in self.actors.values():
            self._look_at(actor)

    def _hear(self) -> bool:
        heard = False
        while self._waiting:
            item = self._waiting.popleft()
            heard, self.heard_s = True, time.monotonic()
            if not isinstance(item, Envelope):
                self._say(item())
                self.look()
                continue
            actor = self.actors[item.recipient]
            self._say(self._alive(partial(self._receive, actor, item)))
            self._look_at(actor)
        return heard

    def _receive(self, actor: Actor, envelope: Envelope) -> Sequence[Envelope]:
        try:
            return actor.receive(envelope)
        except ProtocolError as error:
            return self._hooks.on_refused(envelope, error)

    def _alive(self, call: Call) -> Sequence[Envelope]:
        """What a member says, unless its machine breaks in the middle of it."""
        try:
            return call()
        except WorkerDied as signal:
            self._say(signal.sent)
            self._die()
        except WorkerStalled as signal:
            self._say(signal.sent)
            time.sleep(signal.seconds)
        return ()

    def _ring(self) -> bool:
        rung = False
        while self._timers and self._timers[0][0] <= time.monotonic():
            _, _, actor, token = heapq.heappop(self._timers)
            self._say(actor.on_timer(token))  # type: ignore[attr-defined]  # who sets a timer hears it
            self._look_at(actor)
            rung = True
        return rung

    def _work(self) -> bool:
        for actor in self.actors.values():
            for device in range(getattr(actor, "devices", 1)):
                work = actor.next_work(device)
                if work is None:
                    continue
                began = time.perf_counter()
                envelopes = self._alive(partial(actor.execute, work))
                self.seconds_by_kind[work.kind] += time.perf_counter() - began
                self._say(envelopes)
                self._look_at(actor)
                return True
        return False

    def _rest(self, wait_s: float) -> None:
        if self._timers:
            wait_s = min(wait_s, max(0.0, self._timers[0][0] - time.monotonic()))
        with self._stirred:
            if not self._waiting:
                self._stirred.wait(wait_s)

    def _look_at(self, actor: Actor) -> None:
        for event in getattr(actor, "pending_events", tuple)():
            self._hooks.observe(event, time.monotonic() - self.began_s)
        for token, delay_s in getattr(actor, "pending_timers", tuple)():
            self._set += 1
            heapq.heappush(self._timers, (time.monotonic() + delay_s, self._set, actor, token))

    def _say(self, envelopes: Iterable[Envelope]) -> None:
        for envelope in envelopes:
            try:
                self._send(envelope)
            except ProtocolError as error:  # what the transport refuses is lost, and the rest still goes out
                self._hooks.on_refused(envelope, error)


class RealTime:
    """The trusted members of a run at one end of a wire. `desk` are the actors that run in the caller's thread, in `run_until`;
    `bench` are those that compute, in a thread of their own.

    `patience_s` without a message or a running timer is a deadlock; `starts` is called first in the thread that computes. Close
    it, or its threads stay.
    """

    def __init__(
        self,
        desk: Sequence[Actor],
        bench: Sequence[Actor],
        wire: Wire,
        hooks: Hooks = NO_HOOKS,
        *,
        patience_s: float = 120.0,
        starts: Callable[[], None] = lambda: None,
    ) -> None:
        self._desk = Room(desk, self._route, hooks)
        self._bench = Room(bench, self._route, Hooks(on_refused=hooks.on_refused))
        self._rooms = {name: room for room in (self._desk, self._bench) for name in room.actors}
        self._wire = wire
        self._patience_s = patience_s
        self._starts = starts
        self._failure: BaseException | None = None
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=f"holdfast {name}", daemon=True)
            for name, loop in (("reader", self._read), ("bench", self._compute))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._desk.began_s

    @property
    def seconds_by_kind(self) -> Mapping[str, float]:
        """What the trusted members have computed, in seconds."""
        return self._bench.seconds_by_kind

    def call(self, what: Call) -> None:
        """Have something called at the desk and its answers sent; may be called from any thread."""
        self._desk.put(what)

    def inject(self, envelopes: Iterable[Envelope]) -> None:
        """Send messages in the names of the members of this end."""
        for envelope in envelopes:
            self._route(envelope)
        self._desk.look()

    def run_until(self, done: Callable[[], bool]) -> None:
        """Run the desk until `done()`, asked after each turn. Raises Deadlock, and what a thread of this end has raised."""
        self._desk.heard_s = time.monotonic()
        self._desk.look()
        while not done():
            if self._failure is not None:
                raise self._failure
            self._desk.turn()
            silent_s = time.monotonic() - self._desk.heard_s
            if silent_s > self._patience_s and not self._desk.is_waiting_for_a_timer:
                raise Deadlock(
                    f"nothing has come for {silent_s:.0f} s, nothing is due, and the end is not reached; {self._said()}"
                )

    def close(self) -> None:
        """Stop the threads; what they were doing is finished first. A second call does nothing."""
        self._closed.set()
        self._bench.stir()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    # -- threads -----------------------------------------------------------------------------------------------------

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except NetworkError as error:
            if not self._closed.is_set():
                self._fail(error)
        except BaseException as error:  # noqa: BLE001  # it is raised again in the owner's thread
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._desk.stir()

    def _read(self) -> None:
        while not self._closed.is_set():
            envelope = self._wire.receive(TURN_S)
            if envelope is not None:
                room = self._rooms.get(envelope.recipient)
                if room is not None:
                    room.put(envelope)

    def _compute(self) -> None:
        self._starts()
        while not self._closed.is_set():
            self._bench.turn()

    def _route(self, envelope: Envelope) -> None:
        room = self._rooms.get(envelope.recipient)
        if room is None:
            self._wire.send(envelope)
        else:
            room.put(envelope)

    def _said(self) -> str:
        actors = [*self._desk.actors.values(), *self._bench.actors.values()]
        return "; ".join(str(getattr(actor, "describe", lambda: "")()) for actor in actors if hasattr(actor, "describe"))
