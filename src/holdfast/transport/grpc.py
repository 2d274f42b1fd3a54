"""The real wire: gRPC with mutual TLS between processes, behind the interface of every transport.

    caller's thread     send: encode (tensors stay where they are)        receive: decode, generation
                            |                                                 ^
    event loop          link: number, cut into parts, window  ==mTLS==>  link: put together, acknowledge

docs/design/wire.md says what is promised, and draws the frames.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace

from holdfast.errors import NetworkError, ProtocolError
from holdfast.message import Envelope
from holdfast.transport.base import Traffic, Transport
from holdfast.transport.compression import compress, expand
from holdfast.transport.endpoint import AddressBook, Credentials, Endpoint, LinkStats, Notice, WireOptions
from holdfast.transport.link import Link, StreamKind
from holdfast.transport.loop import LoopThread
from holdfast.transport.mailbox import Letter, Mailbox
from holdfast.transport.packet import Preamble
from holdfast.transport.sequence import Arrival, Outgoing
from holdfast.transport.switchboard import Switchboard
from holdfast.transport.wire import WITH_TENSORS, decode_envelope, encode_pieces

MAX_NAMES_BYTES = 2048
"""Sender and recipient of a message together."""


class GrpcTransport(Transport):
    """One process of a run. `send` and `receive` are called from one thread; `wake`, `forget`, `links` and `know` from any.

    `run` names the run: who takes part in another one is refused. `listen` None: this end only dials. `relay` is the process
    through which peers are reached that cannot be reached directly; None (or its own name) on the relay itself. Messages of a
    kind in `anytime` are received whatever generation of the cluster they are of.

    Raises CannotListen where the address cannot be had.
    """

    def __init__(
        self,
        me: Endpoint,
        credentials: Credentials,
        *,
        run: str,
        listen: str | None = "127.0.0.1:0",
        relay: str | None = None,
        options: WireOptions | None = None,
        generation: int = 0,
        anytime: frozenset[type] = frozenset(),
    ) -> None:
        self.traffic = Traffic()
        self.generation = generation
        self._options = options or WireOptions()
        self._anytime = anytime
        self._relay = relay
        self._mailbox = Mailbox()
        self._ahead: deque[tuple[Letter, Envelope]] = deque()
        self._outgoing: deque[tuple[str, StreamKind, Outgoing]] = deque()
        self._taken: deque[tuple[Link, StreamKind, Arrival]] = deque()
        self._telling = False
        self._lock = threading.Lock()
        self._closed = False
        self._loop = LoopThread.acquire()
        try:
            self._switchboard, self.address = self._loop.call(self._start(me, credentials, run, listen))
        except BaseException:
            LoopThread.release()
            raise
        self.me = replace(me, address=me.address or self.address)
        self._book = AddressBook(self.me, relay)
        self.know(())

    async def _start(
        self, me: Endpoint, credentials: Credentials, run: str, listen: str | None
    ) -> tuple[Switchboard, str | None]:
        book = AddressBook(me, self._relay)
        switchboard = Switchboard(run, book, credentials, self._options, self._mailbox)
        return switchboard, await switchboard.start(listen)

    # -- Transport -------------------------------------------------------------------------------------------------------

    def send(self, envelope: Envelope) -> None:
        self._check_open()
        kind: StreamKind = "bulk" if type(envelope.message) in WITH_TENSORS else "control"
        process = self._book.process_of(envelope.recipient)
        if self._book.process_of(envelope.sender) != self.me.process:
            raise ProtocolError(f"{self.me.process} does not speak for {envelope.sender!r}, but for {', '.join(self.me.names)}")
        if process == self.me.process:
            self._mailbox.put(Letter(kind, self.generation, None, envelope))
            return
        if len(envelope.sender.encode()) + len(envelope.recipient.encode()) > MAX_NAMES_BYTES:
            raise ProtocolError(f"names of {MAX_NAMES_BYTES} bytes at most, got {envelope.sender[:40]!r} and another")
        pieces, plain = encode_pieces(envelope, self._options.limits)
        if process is None:  # left the address book; whoever still writes to it will learn that
            return
        codec, pieces, size = compress(self._options.compression if kind == "bulk" else None, pieces, plain)
        preamble = Preamble(size, plain, codec, self.generation, envelope.sender, envelope.recipient)
        with self._lock:
            self.traffic.add(envelope.sender, size)
            idle = not self._outgoing
            self._outgoing.append((process, kind, Outgoing(preamble, pieces)))
        if idle:
            self._loop.loop.call_soon_threadsafe(self._drain)

    def receive(self, timeout_s: float) -> Envelope | None:
        deadline = time.monotonic() + timeout_s
        while True:
            self._check_open()
            envelope = self._caught_up()
            if envelope is not None:
                return envelope
            letter = self._mailbox.take(max(0.0, deadline - time.monotonic()))
            if letter is None:
                self._check_open()
                return None
            envelope = self._open_letter(letter)
            if envelope is not None:
                return envelope

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._mailbox.wake()
        try:
            self._loop.call(self._stop())
        finally:
            self._mailbox.clear()
            del self._switchboard
            LoopThread.release()

    # -- beyond it -------------------------------------------------------------------------------------------------------

    def know(self, endpoints: Iterable[Endpoint]) -> None:
        """Replace the address book: links with who is no longer in it are closed, links with others opened.

        Peers that were lost (not those forgotten) are let in again. Raises ConfigError if two speak for one member.
        """
        self._check_open()
        book = AddressBook(self.me, self._relay, endpoints)

        async def switch() -> None:
            self._drain()
            self._book = book
            self._switchboard.know(book)

        self._loop.call(switch())

    def notices(self) -> list[Notice]:
        """What happened to links since last asked, first to last. One that comes makes a blocked `receive` return None."""
        return self._mailbox.notices()

    def forget(self, process: str, *, current: bool = True) -> None:
        """Fence a peer: drop its link and refuse this incarnation of it from now on; nothing is told about it.

        Not `current`: only what was lost before is refused from now on, and who has taken its place stays.
        """
        self._check_open()

        async def drop() -> None:
            self._switchboard.sessions.forget(process, current=current)

        self._loop.call(drop())

    def wake(self) -> None:
        """Make a `receive` that is blocked, or else the next one that would be, return None."""
        self._mailbox.wake()

    def links(self) -> Mapping[str, LinkStats]:
        """Each peer's link as it is now."""
        self._check_open()

        async def look() -> Mapping[str, LinkStats]:
            return self._switchboard.stats()

        return self._loop.call(look())

    # -- on the event loop -----------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._outgoing:
                    return
                process, kind, frame = self._outgoing.popleft()
            self._switchboard.flow.enqueue(process, kind, frame)

    async def _stop(self) -> None:
        self._drain()
        await self._switchboard.close()

    def _drain_taken(self) -> None:
        self._telling = False  # before the queue is emptied, so that what is put in meanwhile is not forgotten
        taken = []
        while self._taken:
            taken.append(self._taken.popleft())
        if not self._closed:
            self._switchboard.flow.consumed(taken)

    # -- receiving -------------------------------------------------------------------------------------------------------

    def _open_letter(self, letter: Letter) -> Envelope | None:
        """The envelope in a letter, if it is for now; what is for a later generation is kept, and holds its sender's window."""
        if isinstance(letter.content, Envelope):
            envelope = letter.content
        else:
            assert letter.link is not None
            try:
                envelope = self._decode(letter.content)
            except ProtocolError as error:
                self._took(letter)
                self._convict(letter.link, str(error))
                return None
        if type(envelope.message) not in self._anytime:
            if letter.generation > self.generation:
                self._ahead.append((letter, envelope))
                return None
            if letter.generation < self.generation:
                self._took(letter)
                return None
        self._took(letter)
        return envelope

    def _caught_up(self) -> Envelope | None:
        """The first of what came too early and is for now."""
        for index, (letter, envelope) in enumerate(self._ahead):
            if letter.generation <= self.generation:
                del self._ahead[index]
                self._took(letter)
                return envelope if letter.generation == self.generation else self._caught_up()
        return None

    def _decode(self, arrival: Arrival) -> Envelope:
        preamble, limits = arrival.preamble, self._options.limits
        frame = expand(preamble.codec, arrival.octets, preamble.plain)
        envelope = decode_envelope(frame, limits, give_away=True)
        if (envelope.sender, envelope.recipient) != (preamble.sender, preamble.recipient):
            raise ProtocolError(
                f"a message from {envelope.sender!r} to {envelope.recipient!r} in a frame from {preamble.sender!r} "
                f"to {preamble.recipient!r}"
            )
        return envelope

    def _took(self, letter: Letter) -> None:
        if letter.link is not None and isinstance(letter.content, Arrival):
            self._taken.append((letter.link, letter.kind, letter.content))
            if not self._telling:
                self._telling = True
                self._loop.loop.call_soon_threadsafe(self._drain_taken)

    def _convict(self, link: Link, reason: str) -> None:
        self._loop.loop.call_soon_threadsafe(self._put_out, link, reason)

    def _put_out(self, link: Link, reason: str) -> None:
        if not self._closed and self._switchboard.sessions.is_current(link):
            self._switchboard.sessions.convict(link.peer, reason)

    def _check_open(self) -> None:
        if self._closed:
            raise NetworkError("the transport is closed; nothing can be sent or received any more")
