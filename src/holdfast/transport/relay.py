"""The relay passes packets on between others, unread, and tells each when the other cannot be reached."""

from __future__ import annotations

from collections import deque

from holdfast.transport import packet
from holdfast.transport.connection import Connection
from holdfast.transport.packet import Relayed


class Forward:
    """What goes to `target` from the process at `origin`, first to last."""

    def __init__(self, origin: Connection, target: Connection) -> None:
        self.origin = origin
        self.bytes = 0
        self._target = target
        self._waiting: deque[bytes] = deque()
        target.sources.append(self.pull)

    def push(self, message: bytes) -> None:
        self._waiting.append(message)
        self.bytes += len(message)
        self._target.kick()

    def pull(self) -> bytes | None:
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        self.bytes -= len(message)
        return message


class Relay:
    """At most `limit_bytes` wait for one process from another; more come only from who ignores the window of the other end."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._to: dict[Connection, dict[str, Forward]] = {}

    def carry(self, origin: Connection, target: Connection | None, relayed: Relayed) -> None:
        """Pass a packet on from `origin`, or tell it that this cannot be."""
        if target is None:
            origin_queue = self._queue(origin, origin, relayed.target)
            origin_queue.push(packet.closed(relayed.target))
            return
        queue = self._queue(origin, target, origin.peer)
        if queue.bytes + len(relayed.whole) <= self._limit_bytes:
            queue.push(relayed.whole)
        else:
            self._queue(target, origin, relayed.target).push(packet.closed(relayed.target))

    def ended(self, connection: Connection) -> None:
        """A connection is gone: whoever spoke with its process through here learns that."""
        queues = self._to.pop(connection, {})
        others = {queue.origin for queue in queues.values()}
        others |= {other for other, sources in self._to.items() if connection.peer in sources and other.kind == connection.kind}
        for other in others - {connection}:
            self._queue(connection, other, connection.peer).push(packet.closed(connection.peer))

    def _queue(self, origin: Connection, target: Connection, source: str) -> Forward:
        queues = self._to.setdefault(target, {})
        if source not in queues:
            queues[source] = Forward(origin, target)
        queues[source].origin = origin
        return queues[source]
