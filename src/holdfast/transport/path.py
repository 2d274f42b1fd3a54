"""One way of a stream to a peer, over a connection to it or to the relay: what it sends, and in which order."""

from __future__ import annotations

from collections import deque

from holdfast.transport import packet
from holdfast.transport.connection import Connection
from holdfast.transport.link import Link, StreamKind, Way


class Path:
    """Urgent packets first, then what the stream has to send, then goodbye if it is `leaving`."""

    def __init__(self, carrier: Connection, way: Way, me: str, peer: str, now_s: float) -> None:
        self.carrier, self.way, self.peer = carrier, way, peer
        self.kind: StreamKind = carrier.kind
        self.dialled_by = me if carrier.dialled else carrier.peer
        self.heard_s = self.pinged_s = now_s
        self.link: Link | None = None
        self.greeted = False
        self.leaving = False
        self._ending = False
        self._prefix = packet.relay_head(me, peer) if way == "relayed" else b""
        self._urgent: deque[bytes] = deque()
        carrier.sources.append(self.pull)

    def kick(self) -> None:
        self.carrier.kick()

    def say(self, message: bytes) -> None:
        """Send a packet before all others."""
        self._urgent.append(message)
        self.carrier.kick()

    def end(self, reason: str) -> None:
        """Send what was said, then close; a way through the relay leaves its connection open."""
        self.link = None
        self._ending = True
        if self.way == "direct":
            self.carrier.finish(reason)

    def drop(self) -> None:
        """Send nothing more over this way."""
        if self.pull in self.carrier.sources:
            self.carrier.sources.remove(self.pull)

    def pull(self) -> bytes | None:
        message = self._next()
        if message is not None and self.link is not None:
            self.link.tally.sent += len(message)
        return message

    def _next(self) -> bytes | None:
        if self._urgent:
            return self._prefix + self._urgent.popleft()
        if self.link is None:
            if self._ending:
                self.drop()
            return None
        stream = self.link.streams[self.kind]
        message = stream.pull(self, self._prefix)
        if message is None and self.leaving and not stream.outbox.unsent:
            self.leaving = False
            return self._prefix + packet.goodbye()
        return message


def paths_of(link: Link) -> list[Path]:
    """All ways of a session."""
    return [path for stream in link.streams.values() for path in stream.ways.values() if isinstance(path, Path)]
