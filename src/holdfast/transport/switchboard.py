"""All links of one process on the event loop: who is let in, who is dialled, what goes through the relay, who is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Iterable

from holdfast.errors import ProtocolError
from holdfast.transport import packet
from holdfast.transport.connection import Connection, Dialler, Door
from holdfast.transport.endpoint import AddressBook, Credentials, LinkStats, Notice, NoticeKind, WireOptions
from holdfast.transport.fences import Fences
from holdfast.transport.link import INCARNATION_BYTES, STREAMS, Link, Stream, StreamKind, Tally
from holdfast.transport.mailbox import Letter, Mailbox
from holdfast.transport.packet import (
    Ack,
    Closed,
    Code,
    Goodbye,
    Hello,
    OtherVersion,
    Packet,
    Part,
    Ping,
    Pong,
    Preamble,
    Refusal,
    Relayed,
)
from holdfast.transport.path import Path
from holdfast.transport.relay import Relay
from holdfast.transport.sequence import Arrival, Outgoing

log = logging.getLogger("holdfast.wire")
log.addHandler(logging.NullHandler())

HELLO_S = 5.0
"""How long somebody who is connected may take to say hello."""

MOST_STRANGERS = 8
"""Connections of one process that have not said hello yet, at most; counted for each, so that none can shut the others out."""

COMPANY_S = 0.02
"""How long an acknowledgement waits for others."""

ASK_AGAIN_S = 0.3
"""After how long the relay is asked again for somebody whom it could not reach."""

STALL_S = 0.5
"""A process that stood still for longer (stopped, or suspended) does not count that time as the silence of others."""

MOST_REASONS = 1000
"""Different refusals told between two address books, at most."""

QUIET = ("duplicate", "stale")
"""Refusals that are part of finding each other again, and no news."""

Key = tuple[str, StreamKind]


class _Refused(Exception):
    """Somebody is not let in."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code: Code = code
        self.reason = reason


class Backoff:
    """Waits that double from `first_s` to `most_s`, each shortened at random so that peers do not come together."""

    def __init__(self, first_s: float = 0.05, most_s: float = 1.0) -> None:
        self._first_s, self._most_s, self._tries = first_s, most_s, 0

    def reset(self) -> None:
        self._tries = 0

    def next_s(self) -> float:
        wait = min(self._most_s, self._first_s * (1 << self._tries))
        self._tries = min(self._tries + 1, 20)
        return wait * (1 - 0.5 * random.random())


class Switchboard:
    """Called on its event loop only, but for the mailbox that it fills."""

    def __init__(self, run: str, book: AddressBook, credentials: Credentials, options: WireOptions, mailbox: Mailbox) -> None:
        self.incarnation = secrets.token_bytes(16)
        self._run = run
        self._book = book
        self._options = options
        self._mailbox = mailbox
        self._dialler = Dialler(credentials)
        self._door = Door(credentials, self._accept)
        self._open = False
        self._closing = False
        self._serial = 0
        self._links: dict[str, Link] = {}
        self._fences = Fences()
        self._connections: dict[Key, Connection] = {}
        self._circuits: dict[Key, Path] = {}
        self._asked_s: dict[Key, float] = {}
        self._relay = Relay(options.window_bytes * 5 // 4)
        self._dialling: dict[Key, tuple[str, asyncio.Task[None]]] = {}
        self._nudges: dict[Key, asyncio.Event] = {}
        self._strangers: set[Path] = set()
        self._telling: set[Stream] = set()
        self._conversations: set[asyncio.Task[None]] = set()
        self._told: set[tuple[str, str]] = set()
        self._clock: asyncio.Task[None] | None = None

    # -- from outside ----------------------------------------------------------------------------------------------------

    async def start(self, listen: str | None) -> str | None:
        """Begin; the address that was bound, if `listen` says to."""
        address = None
        if listen is not None:
            address = await self._door.open(listen)
            self._open = True
        self._clock = asyncio.create_task(self._tick())
        return address

    def know(self, book: AddressBook) -> None:
        """Go by another address book."""
        self._book = book
        self._told.clear()
        for process in [p for p in self._links if p not in book.processes]:
            self._close_ways(process, "stranger", f"{process} is no longer in the address book of {book.me.process}")
            del self._links[process]
            self._fences.drop(process)
        for process in book.processes:
            self._fences.pardon(process)
            if process not in self._links or self._links[process].lost:
                self._begin_session(process)
        self._dial_all()

    def enqueue(self, process: str, kind: StreamKind, frame: Outgoing) -> None:
        """Send a frame, unless the peer is lost."""
        link = self._links.get(process)
        if link is None or link.lost:
            return
        stream = link.streams[kind]
        stream.outbox.put(frame)
        if stream.active is not None:
            stream.active.kick()

    def consumed(self, letters: Iterable[tuple[Link, StreamKind, Arrival]]) -> None:
        """The reader has taken these frames."""
        for link, kind, arrival in letters:
            stream = link.streams[kind]
            waiting = stream.inbox.acknowledged < stream.inbox.received
            stream.inbox.read(arrival)
            if waiting and stream.inbox.acknowledged == stream.inbox.received:
                self._tell(stream)

    def convict(self, process: str, reason: str) -> None:
        """The peer did what no honest end does: put it out, and keep its incarnation out."""
        self._note(process, "refused", reason)
        self._lose(process, reason, code="conduct")

    def forget(self, process: str, *, current: bool) -> None:
        """Refuse for good what was given up of a peer; if `current`, drop the link too and refuse whoever it is with."""
        link = self._links.get(process)
        if link is None:
            return
        self._fences.condemn(process)
        if not current:
            return
        if link.peer_token:
            self._fences.forget(process, link.peer_incarnation)
        self._close_ways(
            process, "fenced", f"{self._book.me.process} has given up this incarnation of {process}; start it anew"
        )
        self._begin_session(process).lost = True

    def is_current(self, link: Link) -> bool:
        """Whether this session goes on."""
        return self._links.get(link.peer) is link

    def stats(self) -> dict[str, LinkStats]:
        now = time.monotonic()
        return {process: self._stats(link, now) for process, link in self._links.items()}

    async def close(self) -> None:
        """Say goodbye after what is queued, for at most the lingering time, and close everything."""
        self._closing = True
        for _, task in self._dialling.values():
            if task not in self._conversations:
                task.cancel()
        deadline = time.monotonic() + self._options.linger_s
        paths = [path for link in self._links.values() for path in self._ways(link)]
        for way in ("relayed", "direct"):  # through the relay first, while it still listens
            leaving = [path for path in paths if path.way == way]
            for path in leaving:
                path.leaving = True
                path.kick()
            while time.monotonic() < deadline and any(path.leaving for path in leaving if path.link is not None):
                await asyncio.sleep(0.005)
        for connection in list(self._connections.values()):
            connection.finish("left")
        if self._conversations:
            await asyncio.wait(self._conversations, timeout=max(0.1, deadline - time.monotonic()))
        tasks = [task for _, task in self._dialling.values()] + ([self._clock] if self._clock else [])
        for task in [*tasks, *self._conversations]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._open:
            await self._door.close()

    # -- sessions --------------------------------------------------------------------------------------------------------

    def _begin_session(self, process: str) -> Link:
        old = self._links.get(process)
        self._serial += 1
        tally = old.tally if old is not None else Tally()
        me = self._book.me.process
        link = Link(me, process, self.incarnation, self._serial, self._options, tally, time.monotonic())
        self._links[process] = link
        return link

    def _lose(self, process: str, reason: str, *, code: Code | None = "fenced", fence: bool = True) -> None:
        """Give a session up: what was on its way is gone, and the peer's incarnation stays out until `know`."""
        link = self._links[process]
        if link.lost:
            return
        if fence and link.peer_token:
            self._fences.give_up(process, link.peer_incarnation)
        self._close_ways(process, code, f"{link.me} has given up this incarnation of {process}: {reason}")
        self._begin_session(process).lost = True
        if link.was_up:
            self._note(process, "lost", reason)

    def _close_ways(self, process: str, code: Code | None, reason: str) -> None:
        link = self._links[process]
        for path in self._ways(link):
            link.streams[path.kind].detach(path)
            if code is not None:
                path.say(packet.refused(code, reason))
            path.end(reason)
        for kind in STREAMS:
            self._circuits.pop((process, kind), None)
            self._release((process, kind))

    def _ways(self, link: Link) -> list[Path]:
        return [path for s in link.streams.values() for path in s.ways.values() if isinstance(path, Path)]

    def _admit(self, path: Path, greeting: Hello) -> Link:
        """The session that a hello goes on with or begins. Raises _Refused."""
        me, peer = self._book.me.process, path.peer
        if greeting.run != self._run:
            raise _Refused("run", f"{me} takes part in run {self._run!r}, not {greeting.run[:80]!r}; join the right one")
        if greeting.process != peer or greeting.stream != path.kind:
            raise _Refused("conduct", f"{peer} calls itself {greeting.process[:80]!r} on stream {greeting.stream}")
        if peer not in self._links:
            raise _Refused("stranger", f"{peer} is not in the address book of {me}; it must be admitted first")
        incarnation = greeting.token[:INCARNATION_BYTES]
        if self._fences.keeps_out(peer, incarnation):
            raise _Refused("fenced", f"{me} has given up this incarnation of {peer}; start it anew")
        verdict = self._links[peer].judge(greeting)
        if isinstance(verdict, Refusal):
            raise _Refused(verdict.code, verdict.reason)
        if verdict == "new session":
            anew = incarnation != self._links[peer].peer_incarnation
            self._lose(peer, "it started anew" if anew else "it had given this end up", fence=anew)
        link = self._links[peer]
        if link.lost:
            link.lost = False  # it was begun when its forerunner was given up, and has never been used
        if greeting.knows not in (b"", link.token):
            raise _Refused("stale", "the session that this hello goes on with is over")
        if not link.prefers(path.kind, path):
            raise _Refused("duplicate", "the two ends are connected already")
        link.peer_token = greeting.token
        self._fences.let_in(peer, incarnation)
        return link

    def _attach(self, path: Path, link: Link, greeting: Hello) -> None:
        old = link.streams[path.kind].attach(path, greeting)
        key = (path.peer, path.kind)
        if isinstance(old, Path):
            old.end("another connection took its place")
            if path.way == "direct":
                self._release(key)
        path.link = link
        path.greeted = True
        self._strangers.discard(path)
        if path.way == "direct":
            self._connections[key] = path.carrier
            self._drop_circuit(key, "the direct way is open")
        else:
            self._circuits[key] = path
        self._settle(link, path)
        path.kick()

    def _detach(self, path: Path, reason: str) -> None:
        link = path.link
        path.drop()
        path.link = None
        if link is None or not link.streams[path.kind].detach(path) or self._links.get(link.peer) is not link:
            return
        log.info("%s: the %s way to %s (%s) ended: %s", link.me, path.way, link.peer, path.kind, reason)
        if link.left:
            self._lose(link.peer, "left", code=None)
        else:
            link.settle(time.monotonic())
            self._nudge(link.peer)

    def _settle(self, link: Link, path: Path) -> None:
        now = time.monotonic()
        link.heard(path, now)
        for event in link.settle(now):
            self._note(link.peer, event, f"{path.way}" if event == "up" else f"through {self._book.relay}")

    # -- connections -----------------------------------------------------------------------------------------------------

    async def _accept(self, connection: Connection) -> None:
        """Talk to somebody who has dialled this process."""
        if not self._closing and sum(path.peer == connection.peer for path in self._strangers) < MOST_STRANGERS:
            path = Path(connection, "direct", self._book.me.process, connection.peer, time.monotonic())
            self._strangers.add(path)
            await self._converse(connection, path)

    def _dial_all(self) -> None:
        book = self._book
        wanted = {(p, kind): e.address for p, e in book.processes.items() if book.dials(p) for kind in STREAMS}
        for key in [key for key, (address, _) in self._dialling.items() if wanted.get(key) != address]:
            del self._dialling[key]  # its task finds that out by itself
            if wanted.get(key) is not None and key in self._connections:
                self._connections[key].abort("the peer has another address")
        for key, address in wanted.items():
            if address is not None and key not in self._dialling:
                self._nudges[key] = asyncio.Event()
                self._dialling[key] = (address, asyncio.create_task(self._keep_dialling(key, address)))
        for nudge in self._nudges.values():
            nudge.set()

    async def _keep_dialling(self, key: Key, address: str) -> None:
        """Connect whenever there is no connection, until the address book says otherwise."""
        process, kind = key
        backoff = Backoff(most_s=min(2.0, self._options.reconnect_s / 3))
        nudge = self._nudges[key]
        while not self._closing and self._dialling.get(key, ("",))[0] == address:
            if key not in self._connections:
                async with self._dialler.dial(process, address, kind) as connection:
                    path = Path(connection, "direct", self._book.me.process, process, time.monotonic())
                    path.say(packet.hello(self._links[process].hello(self._run, kind)))
                    await self._converse(connection, path)
                    if path.greeted:
                        backoff.reset()
                    else:
                        log.debug("%s cannot reach %s at %s: %s", self._book.me.process, process, address, connection.reason)
            nudge.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(nudge.wait(), backoff.next_s())

    def _nudge(self, process: str) -> None:
        for kind in STREAMS:
            if (process, kind) in self._nudges:
                self._nudges[process, kind].set()

    async def _converse(self, connection: Connection, path: Path) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        patience = asyncio.get_running_loop().call_later(HELLO_S, self._lose_patience, path)
        try:
            await connection.run(lambda data: self._heard(path, data))
        finally:
            patience.cancel()
            self._conversations.discard(task)
            self._strangers.discard(path)
            key = (connection.peer, connection.kind)
            if self._connections.get(key) is connection:
                self._release(key)
            self._detach(path, connection.reason)

    def _lose_patience(self, path: Path) -> None:
        if not path.greeted:
            path.carrier.abort(f"no hello within {HELLO_S:g} s")

    def _release(self, key: Key) -> None:
        """A direct connection is over: with it go the circuits through it."""
        connection = self._connections.pop(key, None)
        if connection is not None:
            self._relay.ended(connection)
            for other, circuit in list(self._circuits.items()):
                if circuit.carrier is connection:
                    self._drop_circuit(other, "the way to the relay ended")

    # -- what is heard ---------------------------------------------------------------------------------------------------

    def _heard(self, path: Path, data: bytes) -> None:
        try:
            found = packet.parse(data)
            if isinstance(found, Relayed):
                self._on_relayed(path, found)
            elif isinstance(found, Closed):
                if path.peer == self._book.relay:
                    self._drop_circuit((found.process, path.kind), "the relay cannot reach it")
            else:
                self._on_packet(path, found, len(data))
        except (ProtocolError, _Refused) as error:
            self._object(path, error)

    def _object(self, path: Path, error: ProtocolError | _Refused) -> None:
        """Answer to what cannot be let in, or let pass."""
        if isinstance(error, ProtocolError) and path.link is not None:
            self.convict(path.peer, str(error))
            return
        code: Code = "conduct"
        if isinstance(error, _Refused):
            code = error.code
        elif isinstance(error, OtherVersion):
            code = "version"
        path.greeted = True  # nothing more is heard on this way
        if code not in QUIET:
            self._note(path.peer, "refused", str(error))
        path.say(packet.refused(code, str(error)))
        path.end(str(error))

    def _on_packet(self, path: Path, found: Packet, size: int) -> None:
        if isinstance(found, Refusal):
            self._put_off(path, found)
        elif not path.greeted:
            if not isinstance(found, Hello):
                raise ProtocolError(f"a {type(found).__name__} where a hello belongs")
            self._greet(path, found)
        elif path.link is not None:
            path.link.heard(path, time.monotonic())
            path.link.tally.received += size
            self._on_stream(path, path.link, found)

    def _greet(self, path: Path, greeting: Hello) -> None:
        link = self._admit(path, greeting)
        asked = path.carrier.dialled if path.way == "direct" else self._book.opens_circuits(path.peer)
        if not asked:
            path.say(packet.hello(link.hello(self._run, path.kind)))
        self._attach(path, link, greeting)

    def _on_stream(self, path: Path, link: Link, found: Packet) -> None:
        stream = link.streams[path.kind]
        match found:
            case Part():
                if found.preamble is not None:
                    self._check_names(link.peer, found.preamble)
                arrival = stream.inbox.take(found)
                if arrival is not None:
                    self._mailbox.put(Letter(path.kind, arrival.preamble.generation, link, arrival))
                if stream.taken(len(found.octets)):
                    path.kick()
                elif stream not in self._telling:
                    self._telling.add(stream)
                    asyncio.get_running_loop().call_later(COMPANY_S, self._tell, stream)
            case Ack(sequence):
                stream.outbox.acknowledge(sequence)
                path.kick()
            case Ping(nanoseconds):
                path.say(packet.number(packet.PONG, nanoseconds))
            case Pong(nanoseconds):
                if path.kind == "control":
                    link.rtt_s = max(0.0, (time.monotonic_ns() - nanoseconds) / 1e9)
            case Goodbye():
                stream.said_goodbye = True
                if link.left:
                    self._lose(link.peer, "left", code=None)
            case Hello() if path.way == "direct":
                raise ProtocolError("a second hello")

    def _check_names(self, process: str, preamble: Preamble) -> None:
        book = self._book
        if book.process_of(preamble.sender) != process:
            raise ProtocolError(f"{process} sent a message as {preamble.sender[:80]!r}, for whom it does not speak")
        if book.process_of(preamble.recipient) != book.me.process:
            raise ProtocolError(f"{process} sent a message for {preamble.recipient[:80]!r} here, to {book.me.process}")

    def _put_off(self, path: Path, refusal: Refusal) -> None:
        """The other end does not let this one in, or puts it out."""
        link = self._links.get(path.peer)
        if refusal.code not in QUIET:
            self._note(path.peer, "refused", refusal.reason)
        held = link is not None and (path.link is link or not path.greeted)
        path.greeted = True
        path.end(refusal.reason)
        if path.way == "relayed":
            self._drop_circuit((path.peer, path.kind), refusal.reason)
        if link is not None and held and link.peer_token and refusal.code in ("fenced", "conduct", "stranger", "stale"):
            self._lose(path.peer, refusal.reason, code=None, fence=False)

    def _tell(self, stream: Stream) -> None:
        """Acknowledge what has not been."""
        self._telling.discard(stream)
        if stream.active is not None:
            stream.tell()
            stream.active.kick()

    # -- through the relay -----------------------------------------------------------------------------------------------

    def _on_relayed(self, path: Path, relayed: Relayed) -> None:
        book = self._book
        if path.link is None:
            return
        if relayed.target == book.me.process:
            if path.peer != book.relay:
                raise ProtocolError(f"{path.peer} relays messages; only {book.relay or 'nobody'} may")
            self._on_circuit(path, relayed)
        elif not book.is_relay or relayed.source != path.peer:
            raise ProtocolError(f"{path.peer} wants a message of {relayed.source!r} relayed to {relayed.target!r}")
        else:
            self._relay.carry(path.carrier, self._connections.get((relayed.target, path.kind)), relayed)

    def _on_circuit(self, hop: Path, relayed: Relayed) -> None:
        """A packet from `relayed.source`, as the relay vouches."""
        key = (relayed.source, hop.kind)
        circuit = self._circuits.get(key)
        try:
            found = packet.parse(relayed.packet)
            if isinstance(found, Hello) and not self._book.opens_circuits(relayed.source):
                circuit = Path(hop.carrier, "relayed", self._book.me.process, relayed.source, time.monotonic())
            if circuit is not None:
                self._on_packet(circuit, found, len(relayed.packet))
        except (ProtocolError, _Refused) as error:
            self._object(circuit or Path(hop.carrier, "relayed", self._book.me.process, relayed.source, 0.0), error)
            if self._circuits.get(key) is circuit:
                self._circuits.pop(key, None)

    def _open_circuit(self, link: Link, kind: StreamKind, now_s: float) -> None:
        key = (link.peer, kind)
        hop = self._connections.get((self._book.relay or "", kind))
        if hop is None or now_s - self._asked_s.get(key, 0.0) < ASK_AGAIN_S:
            return
        self._asked_s[key] = now_s
        self._drop_circuit(key, "asked anew")
        circuit = self._circuits[key] = Path(hop, "relayed", link.me, link.peer, now_s)
        circuit.say(packet.hello(link.hello(self._run, kind)))

    def _drop_circuit(self, key: Key, reason: str) -> None:
        circuit = self._circuits.pop(key, None)
        if circuit is not None:
            self._detach(circuit, reason)

    # -- the clock -------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Heartbeats, and what did not happen in time."""
        options = self._options
        pause_s = min(0.25, options.heartbeat_s / 4, options.silence_s / 8, options.reconnect_s / 8)
        last = time.monotonic()
        while True:
            await asyncio.sleep(pause_s)
            now = time.monotonic()
            stood_still_s = now - last - pause_s
            last = now
            for link in list(self._links.values()):
                if stood_still_s > STALL_S:
                    link.forgive(stood_still_s)
                self._look_after(link, now)

    def _look_after(self, link: Link, now_s: float) -> None:
        reason = link.overdue(now_s)
        if reason is not None:
            self._lose(link.peer, reason)
            return
        for silent in link.silent(now_s):
            assert isinstance(silent, Path)
            if silent.way == "direct":
                silent.carrier.abort("silence")
            self._detach(silent, "silence")
        for path in self._ways(link):
            if now_s - path.pinged_s >= self._options.heartbeat_s:
                path.pinged_s = now_s
                path.say(packet.number(packet.PING, time.monotonic_ns()))
        if self._book.opens_circuits(link.peer) and link.wants_relay(self._book.direct(link.peer), now_s):
            for kind, stream in link.streams.items():
                if stream.active is None:
                    self._open_circuit(link, kind, now_s)

    # -- what is told ----------------------------------------------------------------------------------------------------

    def _note(self, process: str, kind: NoticeKind, reason: str) -> None:
        if kind == "refused":
            if (process, reason) in self._told or len(self._told) >= MOST_REASONS:
                return
            self._told.add((process, reason))
        log.log(
            logging.INFO if kind in ("up", "relayed") else logging.WARNING, "%s: %s %s: %s", *self._say(process, kind, reason)
        )
        self._mailbox.note(Notice(process, kind, reason, time.monotonic()))

    def _say(self, process: str, kind: str, reason: str) -> tuple[str, str, str, str]:
        return self._book.me.process, process, kind, reason

    def _stats(self, link: Link, now_s: float) -> LinkStats:
        active = link.streams["control"].active
        return LinkStats(
            state=link.state,
            way=active.way if active is not None else None,
            rtt_s=link.rtt_s,
            bytes_sent=link.tally.sent,
            bytes_received=link.tally.received,
            queued_bytes=link.queued_bytes,
            unread_bytes=sum(stream.inbox.held_bytes for stream in link.streams.values()),
            reconnects=link.tally.reconnects,
            heard_s=None if link.heard_s is None else now_s - link.heard_s,
        )
