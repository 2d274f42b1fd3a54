"""The flow of frames on streams that have a way: parts in and out, and acknowledgements, which are what holds a sender back.

enqueue --> outbox --> the way pulls, inside the window     a part comes --> inbox --> mailbox --> consumed
              ^                                                                |                      |
              +---- acknowledged <-------- told at once, or with company ------+--- room again -------+
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from holdfast.errors import ProtocolError
from holdfast.transport import packet
from holdfast.transport.link import GOODBYE, Link, Stream, StreamKind
from holdfast.transport.mailbox import Letter, Mailbox
from holdfast.transport.packet import Ack, Goodbye, Hello, Packet, Part, Ping, Pong, Preamble
from holdfast.transport.path import Path
from holdfast.transport.sequence import Arrival, Outgoing
from holdfast.transport.sessions import Sessions

COMPANY_S = 0.02
"""How long an acknowledgement waits for others."""


class Flow:
    """Fills `mailbox`; what no honest end sends is a ProtocolError."""

    def __init__(self, sessions: Sessions, mailbox: Mailbox) -> None:
        self._sessions = sessions
        self._mailbox = mailbox
        self._telling: set[Stream] = set()

    def enqueue(self, process: str, kind: StreamKind, frame: Outgoing) -> None:
        """Send a frame, unless the peer is lost."""
        link = self._sessions.links.get(process)
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

    def heard(self, path: Path, link: Link, found: Packet) -> None:
        """Take a packet that has come over a way of `link`."""
        stream = link.streams[path.kind]
        match found:
            case Part():
                self._take(path, link, found)
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
                    self._sessions.lose(link.peer, GOODBYE, code=None)
            case Hello() if path.way == "direct":
                raise ProtocolError("a second hello")

    def _take(self, path: Path, link: Link, part: Part) -> None:
        stream = link.streams[path.kind]
        if part.preamble is not None:
            self._check_names(link.peer, part.preamble)
        arrival = stream.inbox.take(part)
        if arrival is not None:
            self._mailbox.put(Letter(path.kind, arrival.preamble.generation, link, arrival))
        if stream.taken(len(part.octets)):
            path.kick()
        elif stream not in self._telling:
            self._telling.add(stream)
            asyncio.get_running_loop().call_later(COMPANY_S, self._tell, stream)

    def _tell(self, stream: Stream) -> None:
        """Acknowledge what has not been."""
        self._telling.discard(stream)
        if stream.active is not None:
            stream.tell()
            stream.active.kick()

    def _check_names(self, process: str, preamble: Preamble) -> None:
        book = self._sessions.book
        if book.process_of(preamble.sender) != process:
            raise ProtocolError(f"{process} sent a message as {preamble.sender[:80]!r}, for whom it does not speak")
        if book.process_of(preamble.recipient) != book.me.process:
            raise ProtocolError(f"{process} sent a message for {preamble.recipient[:80]!r} here, to {book.me.process}")
