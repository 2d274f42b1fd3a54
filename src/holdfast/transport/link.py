"""One link between two processes as a state machine without I/O: two streams, their ways, sessions, and when the peer is lost.

    waiting  --both streams have a way-->  up  --one has none-->  broken  --it is back-->  up
    up, broken  --not back in time, or silence-->  lost

A stream may have two ways, direct and relayed; both carry the same numbers, so nothing is lost or doubled on a switch.
A session is named by a token: the incarnation of the transport (16 random bytes) and a number that grows. Each end starts a new
session when it gives the other up, and tells in its hello which session of the other it knows: whoever remembers an older one
has missed something, and is told so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from holdfast.transport.endpoint import LinkStats, WireOptions
from holdfast.transport.packet import ACK, Hello, Refusal, number
from holdfast.transport.sequence import Inbox, Outbox

StreamKind: TypeAlias = Literal["control", "bulk"]
Way: TypeAlias = Literal["direct", "relayed"]
Event: TypeAlias = Literal["up", "relayed"]
Key: TypeAlias = tuple[str, StreamKind]
"""A stream with a process."""

STREAMS: tuple[StreamKind, ...] = ("control", "bulk")
INCARNATION_BYTES = 16
GOODBYE = "it said goodbye"

BULK_PATIENCE = 5.0
"""A way of tensors may be silent so many times longer: one part takes long on a slow line, and control tells who is alive."""


class Attached(Protocol):
    """A way over which a stream goes; `dialled_by` is the process that opened it."""

    way: Way
    dialled_by: str
    heard_s: float

    def kick(self) -> None:
        """There may be something to pull."""


class Stream:
    """Frames of one kind both ways, over the best way there is."""

    def __init__(self, kind: StreamKind, options: WireOptions) -> None:
        control = kind == "control"
        limits = options.limits
        self.kind = kind
        self.window = options.window_bytes // 8 if control else options.window_bytes
        self.outbox = Outbox(options.part_bytes)
        self.inbox = Inbox(self.window, limits.max_header_bytes + 64 if control else limits.max_frame_bytes)
        self.ways: dict[Way, Attached] = {}
        self.said_goodbye = False
        self._told = 0
        self._owed = 0
        self._tell = False

    @property
    def active(self) -> Attached | None:
        """The way by which this end sends."""
        return self.ways.get("direct") or self.ways.get("relayed")

    def attach(self, path: Attached, hello: Hello) -> Attached | None:
        """Go on over `path`, at whose other end `hello` was said; the way that it replaces, if any."""
        old = self.ways.get(path.way)
        self.ways[path.way] = path
        self.outbox.window = min(self.window, hello.window)
        if self.active is path:
            self.outbox.rewind(hello.received)
            self._told = 0
            self._tell = True
        return old

    def detach(self, path: Attached) -> bool:
        """`path` is gone; False if it was not attached."""
        if self.ways.get(path.way) is not path:
            return False
        was_active = self.active is path
        del self.ways[path.way]
        if was_active and self.active is not None:
            self.outbox.rewind(None)
            self._told = 0
            self._tell = True
            self.active.kick()
        return True

    def taken(self, cost: int) -> bool:
        """After a part was taken: whether an acknowledgement is due at once. Else it may wait for company."""
        self._owed += cost
        if self.inbox.acknowledged > self._told and self._owed >= self.window // 8:
            self._tell = True
        return self._tell

    def tell(self) -> None:
        """Acknowledge now what has not been."""
        self._tell = True

    def pull(self, path: Attached, prefix: bytes = b"") -> bytes | None:
        """The next packet for `path`, behind `prefix`."""
        if self.active is not path:
            return None
        if self._tell:
            self._tell = False
            if self.inbox.acknowledged > self._told:
                self._told, self._owed = self.inbox.acknowledged, 0
                return prefix + number(ACK, self._told)
        return self.outbox.pull(prefix)


@dataclass(slots=True)
class Tally:
    """What is counted for a peer over all its sessions; bytes of packets."""

    sent: int = 0
    received: int = 0
    reconnects: int = 0


class Link:
    """One session with `peer`. `serial` is its number at this end; times are given in seconds of any steady clock."""

    def __init__(
        self, me: str, peer: str, incarnation: bytes, serial: int, options: WireOptions, tally: Tally, now_s: float
    ) -> None:
        self.me, self.peer, self.serial, self.tally = me, peer, serial, tally
        self.token = incarnation + serial.to_bytes(8, "big")
        self.peer_token = b""
        self.streams: dict[StreamKind, Stream] = {kind: Stream(kind, options) for kind in STREAMS}
        self.lost = False
        self.was_up = False
        self.relayed = False
        self.since_s = now_s
        self.broken_s: float | None = now_s
        self.heard_s: float | None = None
        self.rtt_s: float | None = None
        self._options = options

    @property
    def state(self) -> Literal["waiting", "up", "broken", "lost"]:
        if self.lost:
            return "lost"
        if self.broken_s is None:
            return "up"
        return "broken" if self.was_up else "waiting"

    @property
    def queued_bytes(self) -> int:
        return sum(stream.outbox.queued_bytes for stream in self.streams.values())

    def stats(self, now_s: float) -> LinkStats:
        active = self.streams["control"].active
        return LinkStats(
            state=self.state,
            way=active.way if active is not None else None,
            rtt_s=self.rtt_s,
            bytes_sent=self.tally.sent,
            bytes_received=self.tally.received,
            queued_bytes=self.queued_bytes,
            unread_bytes=sum(stream.inbox.held_bytes for stream in self.streams.values()),
            reconnects=self.tally.reconnects,
            heard_s=None if self.heard_s is None else now_s - self.heard_s,
        )

    @property
    def peer_incarnation(self) -> bytes:
        return self.peer_token[:INCARNATION_BYTES]

    def judge(self, hello: Hello) -> Refusal | Literal["new session", "same session"]:
        """Whether a hello from the peer goes on with this session, begins another, or comes from one that is over."""
        stale = Refusal("stale", "the other end has given this session up, or started anew, since it was last connected")
        if hello.knows and hello.knows != self.token:
            return stale
        if self.peer_token in (b"", hello.token):
            return "same session"
        if hello.token[:INCARNATION_BYTES] == self.peer_incarnation and hello.token < self.peer_token:
            return stale
        return "new session"

    def hello(self, run: str, kind: StreamKind) -> Hello:
        """What this end says when it begins a way of `kind`."""
        stream = self.streams[kind]
        return Hello(run, self.me, kind, self.token, self.peer_token, stream.inbox.received, stream.window)

    def prefers(self, kind: StreamKind, path: Attached) -> bool:
        """Whether a direct way may take the place of the one there is: of two dialled crosswise the smaller name's stays."""
        there = self.streams[kind].ways.get("direct")
        return path.way == "relayed" or there is None or path.dialled_by <= there.dialled_by

    def heard(self, path: Attached, now_s: float) -> None:
        self.heard_s = path.heard_s = now_s

    def forgive(self, seconds: float) -> None:
        """This end stood still for so long and could not have heard anything."""
        if self.heard_s is not None:
            self.heard_s += seconds
        if self.broken_s is not None:
            self.broken_s += seconds
        for stream in self.streams.values():
            for path in stream.ways.values():
                path.heard_s += seconds

    def settle(self, now_s: float) -> list[Event]:
        """Look again at the ways after one came or went; what there is to tell."""
        active = [stream.active for stream in self.streams.values()]
        if not all(active):
            if self.broken_s is None:
                self.broken_s = now_s
            return []
        events: list[Event] = []
        if not self.was_up:
            events.append("up")
        elif self.broken_s is not None:
            self.tally.reconnects += 1
        relayed = any(path is not None and path.way == "relayed" for path in active)
        if relayed and not self.relayed:
            events.append("relayed")
        self.was_up, self.relayed, self.broken_s = True, relayed, None
        return events

    def overdue(self, now_s: float) -> str | None:
        """Why the peer counts as lost now, if it does."""
        options = self._options
        if not self.was_up or self.lost or self.heard_s is None:
            return None
        if now_s - self.heard_s > options.silence_s:
            return f"nothing was heard from it for {options.silence_s:g} s"
        if self.broken_s is not None and now_s - self.broken_s > options.reconnect_s:
            return f"its connection broke and was not back within {options.reconnect_s:g} s"
        if self.queued_bytes > options.queue_bytes:
            return f"it does not read: {self.queued_bytes} bytes wait for it, the limit is {options.queue_bytes}"
        return None

    def silent(self, now_s: float) -> list[Attached]:
        """Ways on which nothing was heard for so long that another should be tried before the peer counts as lost."""
        limit = 0.7 * self._options.silence_s
        return [
            path
            for kind, stream in self.streams.items()
            for path in stream.ways.values()
            if now_s - path.heard_s > (limit if kind == "control" else BULK_PATIENCE * limit)
        ]

    def wants_relay(self, direct: bool, now_s: float) -> bool:
        """Whether to go through the relay; `direct` says whether one end can dial the other at all."""
        if self.lost or self.broken_s is None:
            return False
        return not direct or now_s - self.broken_s > self._options.reconnect_s / 3

    @property
    def left(self) -> bool:
        """Whether the peer has said goodbye on every stream that still has a way."""
        streams = self.streams.values()
        return any(s.said_goodbye for s in streams) and all(s.said_goodbye or s.active is None for s in streams)
