"""The reception hears every packet first: hellos are let in or refused, what is relayed goes where it belongs, the rest flows.

packet --+-- relayed, for another --> passed on, unread
         +-- relayed, for this process --> the packet inside, on its circuit --+
         +----------------------------------------------------------------------+-- hello --> admitted, or refused
                                                                                +-- refused --> the way or the session ends
                                                                                `-- anything else --> `flow`
"""

from __future__ import annotations

import time

from holdfast.errors import ProtocolError
from holdfast.transport import packet
from holdfast.transport.flow import Flow
from holdfast.transport.news import News
from holdfast.transport.packet import Closed, Code, Hello, OtherVersion, Packet, Refusal, Relayed
from holdfast.transport.path import Path
from holdfast.transport.sessions import Refused, Sessions

MOST_STRANGERS = 8
"""Connections of one process that have not said hello yet, at most; counted for each, so that none can shut the others out."""

QUIET = ("duplicate", "stale")
"""Refusals that are part of finding each other again, and no news."""


class Reception:
    """`strangers` are the ways of who has dialled this process and not said hello yet."""

    def __init__(self, sessions: Sessions, flow: Flow, news: News) -> None:
        self.strangers: set[Path] = set()
        self._sessions = sessions
        self._ways = sessions.ways
        self._flow = flow
        self._news = news

    def has_room(self, process: str) -> bool:
        """Whether one more stranger that proves to be `process` may wait here."""
        return sum(path.peer == process for path in self.strangers) < MOST_STRANGERS

    def heard(self, path: Path, data: bytes) -> None:
        """A packet has come over a connection."""
        try:
            found = packet.parse(data)
            if isinstance(found, Relayed):
                self._on_relayed(path, found)
            elif isinstance(found, Closed):
                if path.peer == self._sessions.book.relay:
                    self._ways.drop_circuit((found.process, path.kind), "the relay cannot reach it")
            else:
                self._on_packet(path, found, len(data))
        except (ProtocolError, Refused) as error:
            self._object(path, error)

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
            self._flow.heard(path, path.link, found)

    # -- who is let in ---------------------------------------------------------------------------------------------------

    def _greet(self, path: Path, greeting: Hello) -> None:
        link = self._sessions.admit(path, greeting)
        asked = path.carrier.dialled if path.way == "direct" else self._sessions.book.opens_circuits(path.peer)
        if not asked:
            path.say(self._sessions.hello(link, path.kind))
        self._sessions.attach(path, link, greeting)
        self.strangers.discard(path)

    def _object(self, path: Path, error: ProtocolError | Refused) -> None:
        """Answer to what cannot be let in, or let pass."""
        if isinstance(error, ProtocolError) and path.link is not None:
            self._sessions.convict(path.peer, str(error))
            return
        code: Code = "conduct"
        if isinstance(error, Refused):
            code = error.code
        elif isinstance(error, OtherVersion):
            code = "version"
        path.greeted = True  # nothing more is heard on this way
        if code not in QUIET:
            self._news.tell(path.peer, "refused", str(error))
        path.say(packet.refused(code, str(error)))
        path.end(str(error))

    def _put_off(self, path: Path, refusal: Refusal) -> None:
        """The other end does not let this one in, or puts it out."""
        link = self._sessions.links.get(path.peer)
        if refusal.code not in QUIET:
            self._news.tell(path.peer, "refused", refusal.reason)
        held = link is not None and (path.link is link or not path.greeted)
        path.greeted = True
        path.end(refusal.reason)
        if path.way == "relayed":
            self._ways.drop_circuit((path.peer, path.kind), refusal.reason)
        if link is not None and held and link.peer_token and refusal.code in ("fenced", "conduct", "stranger", "stale"):
            self._sessions.lose(path.peer, refusal.reason, code=None, fence=False)

    # -- through the relay -----------------------------------------------------------------------------------------------

    def _on_relayed(self, path: Path, relayed: Relayed) -> None:
        book = self._sessions.book
        if path.link is None:
            return
        if relayed.target == book.me.process:
            if path.peer != book.relay:
                raise ProtocolError(f"{path.peer} relays messages; only {book.relay or 'nobody'} may")
            self._on_circuit(path, relayed)
        elif not book.is_relay or relayed.source != path.peer:
            raise ProtocolError(f"{path.peer} wants a message of {relayed.source!r} relayed to {relayed.target!r}")
        else:
            self._ways.pass_on(path, relayed)

    def _on_circuit(self, hop: Path, relayed: Relayed) -> None:
        """A packet from `relayed.source`, as the relay vouches."""
        book, key = self._sessions.book, (relayed.source, hop.kind)
        circuit = self._ways.circuits.get(key)
        try:
            found = packet.parse(relayed.packet)
            if isinstance(found, Hello) and not book.opens_circuits(relayed.source):
                circuit = Path(hop.carrier, "relayed", book.me.process, relayed.source, time.monotonic())
            if circuit is not None:
                self._on_packet(circuit, found, len(relayed.packet))
        except (ProtocolError, Refused) as error:
            self._object(circuit or Path(hop.carrier, "relayed", book.me.process, relayed.source, 0.0), error)
            if self._ways.circuits.get(key) is circuit:
                self._ways.circuits.pop(key, None)
