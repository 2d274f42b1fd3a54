"""The relay passes packets on between others, unread, and tells each when the other cannot be reached."""

from __future__ import annotations

from collections import deque

from holdfast.transport import packet
from holdfast.transport.connection import Connection
from holdfast.transport.packet import Relayed


class Forward:
    """What goes to `target` from one process, first to last; `origin` is the connection over which it came, if it lives."""

    def __init__(self, target: Connection) -> None:
        self.origin: Connection | None = None
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
        if target is not None:
            queue = self._queue(target, origin.peer)
            queue.origin = origin
            if queue.bytes + len(relayed.whole) <= self._limit_bytes:
                queue.push(relayed.whole)
                return
        self._tell(origin, relayed.target)

    def ended(self, connection: Connection) -> None:
        """A connection is gone: whoever spoke with its process through here learns that."""
        others = dict.fromkeys(queue.origin for queue in self._to.pop(connection, {}).values() if queue.origin is not None)
        for other, queues in self._to.items():
            queue = queues.get(connection.peer)
            if queue is not None and queue.origin is connection:
                queue.origin = None
                others[other] = None
        others.pop(connection, None)
        for other in others:
            self._tell(other, connection.peer)

    def _tell(self, connection: Connection, process: str) -> None:
        """Behind what is on its way from there, that `process` cannot be reached."""
        self._queue(connection, process).push(packet.closed(process))

    def _queue(self, target: Connection, source: str) -> Forward:
        queues = self._to.setdefault(target, {})
        if source not in queues:
            queues[source] = Forward(target)
        return queues[source]
