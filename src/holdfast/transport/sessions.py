"""Sessions with all processes of the address book: whose hello goes on with one, when one is over, and who stays out then.

begin --> a hello is admitted --> attached to a way, and to others --> detached from its last --> in time again, or lost
                                                                                                        |
                      begin anew, as lost, with the incarnation of the peer fenced <--------------------+
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from holdfast.transport import packet
from holdfast.transport.endpoint import AddressBook, WireOptions
from holdfast.transport.fences import Fences
from holdfast.transport.link import GOODBYE, INCARNATION_BYTES, Link, StreamKind, Tally
from holdfast.transport.news import News, log
from holdfast.transport.packet import Code, Hello, Refusal
from holdfast.transport.path import Path, paths_of
from holdfast.transport.relay import Relay
from holdfast.transport.ways import Ways


class Refused(Exception):
    """Somebody is not let in."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code: Code = code
        self.reason = reason


class Sessions:
    """`links` has the present session with each process of `book`, lost ones too. `broken(process)` is called when a way to it
    has ended and the session waits for another.
    """

    def __init__(self, run: str, book: AddressBook, options: WireOptions, news: News, broken: Callable[[str], None]) -> None:
        self.book = book
        self.links: dict[str, Link] = {}
        self.ways = Ways(Relay(options.window_bytes * 5 // 4), self.detach)
        self._run = run
        self._options = options
        self._news = news
        self._broken = broken
        self._incarnation = secrets.token_bytes(INCARNATION_BYTES)
        self._serial = 0
        self._fences = Fences()

    # -- from outside ----------------------------------------------------------------------------------------------------

    def know(self, book: AddressBook) -> None:
        """Go by another address book: who is not in it is put out, who is lost but in it may come again."""
        self.book = book
        for process in [p for p in self.links if p not in book.processes]:
            self._close_ways(process, "stranger", f"{process} is no longer in the address book of {book.me.process}")
            del self.links[process]
            self._fences.drop(process)
        for process in book.processes:
            self._fences.pardon(process)
            if process not in self.links or self.links[process].lost:
                self._begin(process)

    def convict(self, process: str, reason: str) -> None:
        """The peer did what no honest end does: put it out, and keep its incarnation out."""
        self._news.tell(process, "refused", reason)
        self.lose(process, reason, code="conduct")

    def forget(self, process: str, *, current: bool) -> None:
        """Refuse for good what was given up of a peer; if `current`, drop the link too and refuse whoever it is with."""
        link = self.links.get(process)
        if link is None:
            return
        self._fences.condemn(process)
        if not current:
            return
        if link.peer_token:
            self._fences.forget(process, link.peer_incarnation)
        self._close_ways(process, "fenced", f"{self.book.me.process} has given up this incarnation of {process}; start it anew")
        self._begin(process).lost = True

    def is_current(self, link: Link) -> bool:
        """Whether this session goes on."""
        return self.links.get(link.peer) is link

    # -- one session -----------------------------------------------------------------------------------------------------

    def _begin(self, process: str) -> Link:
        old = self.links.get(process)
        self._serial += 1
        tally = old.tally if old is not None else Tally()
        me = self.book.me.process
        link = Link(me, process, self._incarnation, self._serial, self._options, tally, time.monotonic())
        self.links[process] = link
        return link

    def lose(self, process: str, reason: str, *, code: Code | None = "fenced", fence: bool = True) -> None:
        """Give a session up: what was on its way is gone, and the peer's incarnation stays out until `know`.

        Unless `code` is None, the peer is told so by it.
        """
        link = self.links[process]
        if link.lost:
            return
        if fence and link.peer_token:
            self._fences.give_up(process, link.peer_incarnation)
        self._close_ways(process, code, f"{link.me} has given up this incarnation of {process}: {reason}")
        self._begin(process).lost = True
        if link.was_up:
            self._news.tell(process, "lost", reason)

    def _close_ways(self, process: str, code: Code | None, reason: str) -> None:
        link = self.links[process]
        for path in paths_of(link):
            link.streams[path.kind].detach(path)
            if code is not None:
                path.say(packet.refused(code, reason))
            path.end(reason)
        self.ways.forget(process)

    # -- its ways --------------------------------------------------------------------------------------------------------

    def hello(self, link: Link, kind: StreamKind) -> bytes:
        """The packet by which this end begins a way."""
        return packet.hello(link.hello(self._run, kind))

    def admit(self, path: Path, greeting: Hello) -> Link:
        """The session that a hello goes on with or begins. Raises Refused."""
        me, peer = self.book.me.process, path.peer
        if greeting.run != self._run:
            raise Refused("run", f"{me} takes part in run {self._run!r}, not {greeting.run[:80]!r}; join the right one")
        if greeting.process != peer or greeting.stream != path.kind:
            raise Refused("conduct", f"{peer} calls itself {greeting.process[:80]!r} on stream {greeting.stream}")
        if peer not in self.links:
            raise Refused("stranger", f"{peer} is not in the address book of {me}; it must be admitted first")
        incarnation = greeting.token[:INCARNATION_BYTES]
        if self._fences.keeps_out(peer, incarnation):
            raise Refused("fenced", f"{me} has given up this incarnation of {peer}; start it anew")
        verdict = self.links[peer].judge(greeting)
        if isinstance(verdict, Refusal):
            raise Refused(verdict.code, verdict.reason)
        if verdict == "new session":
            anew = incarnation != self.links[peer].peer_incarnation
            self.lose(peer, "it started anew" if anew else "it had given this end up", fence=anew)
        link = self.links[peer]
        if link.lost:
            link.lost = False  # it was begun when its forerunner was given up, and has never been used
        if greeting.knows not in (b"", link.token):
            raise Refused("stale", "the session that this hello goes on with is over")
        if not link.prefers(path.kind, path):
            raise Refused("duplicate", "the two ends are connected already")
        link.peer_token = greeting.token
        self._fences.let_in(peer, incarnation)
        return link

    def attach(self, path: Path, link: Link, greeting: Hello) -> None:
        """Go on over `path`."""
        old = link.streams[path.kind].attach(path, greeting)
        if isinstance(old, Path):
            old.end("another connection took its place")
            if path.way == "direct":
                self.ways.release((path.peer, path.kind))
        path.link = link
        path.greeted = True
        self.ways.add(path)
        now = time.monotonic()
        link.heard(path, now)
        for event in link.settle(now):
            self._news.tell(link.peer, event, path.way if event == "up" else f"through {self.book.relay}")
        path.kick()

    def detach(self, path: Path, reason: str) -> None:
        """`path` has ended."""
        link = path.link
        path.drop()
        path.link = None
        if link is None or not link.streams[path.kind].detach(path) or not self.is_current(link):
            return
        log.info("%s: the %s way to %s (%s) ended: %s", link.me, path.way, link.peer, path.kind, reason)
        if link.left:
            self.lose(link.peer, GOODBYE, code=None)
        else:
            link.settle(time.monotonic())
            self._broken(link.peer)
