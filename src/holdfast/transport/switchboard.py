"""All links of one process on the event loop: its parts put together, and conversations over connections, to their end.

dialling --> connection <-- door        who is called, and who calls
                 |
             reception                  who is let in, and what goes through the relay
                 |
    sessions, ways    flow              with whom there is a session, over what;  frames in and out of it
                 |
              upkeep                    heartbeats, and who is lost
"""

from __future__ import annotations

import asyncio
import time

from holdfast.transport.connection import Connection, Dialler, Door
from holdfast.transport.dialling import Dialling
from holdfast.transport.endpoint import AddressBook, Credentials, LinkStats, WireOptions
from holdfast.transport.flow import Flow
from holdfast.transport.mailbox import Mailbox
from holdfast.transport.news import News
from holdfast.transport.path import Path, paths_of
from holdfast.transport.reception import Reception
from holdfast.transport.sessions import Sessions
from holdfast.transport.upkeep import Upkeep

HELLO_S = 5.0
"""How long somebody who is connected may take to say hello."""

LONGEST_TURN_S = 0.05
"""Of a turn of the loop that took longer only this counts as lingering: who stood still could not send."""


class Switchboard:
    """Called on its event loop only, but for the mailbox that it fills. `sessions` and `flow` are for the transport, too."""

    def __init__(self, run: str, book: AddressBook, credentials: Credentials, options: WireOptions, mailbox: Mailbox) -> None:
        self._me = book.me.process
        self._options = options
        self._news = News(self._me, mailbox)
        self.sessions = Sessions(run, book, options, self._news, self._broken)
        self.flow = Flow(self.sessions, mailbox)
        self.reception = Reception(self.sessions, self.flow, self._news)
        most_s = min(2.0, options.reconnect_s / 3)
        self.dialling = Dialling(self._me, Dialler(credentials), self.sessions.ways.connections, self._call, most_s)
        self._upkeep = Upkeep(self.sessions, options)
        self._door = Door(credentials, self._accept)
        self._open = False
        self._closing = False
        self._conversations: set[asyncio.Task[None]] = set()
        self._clock: asyncio.Task[None] | None = None

    # -- from outside ----------------------------------------------------------------------------------------------------

    async def start(self, listen: str | None) -> str | None:
        """Begin; the address that was bound, if `listen` says to."""
        address = None
        if listen is not None:
            address = await self._door.open(listen)
            self._open = True
        self._clock = asyncio.create_task(self._upkeep.run())
        return address

    def know(self, book: AddressBook) -> None:
        """Go by another address book."""
        self._news.forget()
        self.sessions.know(book)
        self.dialling.go_by(book)

    def stats(self) -> dict[str, LinkStats]:
        now = time.monotonic()
        return {process: link.stats(now) for process, link in self.sessions.links.items()}

    async def close(self) -> None:
        """Say goodbye after what is queued, for at most the lingering time, and close everything."""
        self._closing = True
        tasks = self.dialling.close(self._conversations)
        left_s = self._options.linger_s
        paths = [path for link in self.sessions.links.values() for path in paths_of(link)]
        for way in ("relayed", "direct"):  # through the relay first, while it still listens
            leaving = [path for path in paths if path.way == way]
            for path in leaving:
                path.leaving = True
                path.kick()
            while left_s > 0 and any(path.leaving for path in leaving if path.link is not None):
                before = time.monotonic()
                await asyncio.sleep(0.005)
                left_s -= min(LONGEST_TURN_S, time.monotonic() - before)
        for connection in list(self.sessions.ways.connections.values()):
            connection.finish("left")
        if self._conversations:
            await asyncio.wait(self._conversations, timeout=max(0.1, left_s))
        tasks += [self._clock] if self._clock else []
        for task in [*tasks, *self._conversations]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._open:
            await self._door.close()

    # -- connections -----------------------------------------------------------------------------------------------------

    async def _accept(self, connection: Connection) -> None:
        """Talk to somebody who has dialled this process."""
        if not self._closing and self.reception.has_room(connection.peer):
            path = Path(connection, "direct", self._me, connection.peer, time.monotonic())
            self.reception.strangers.add(path)
            await self._converse(connection, path)

    async def _call(self, connection: Connection) -> bool:
        """Talk to somebody whom this process has dialled; whether it was let in."""
        path = Path(connection, "direct", self._me, connection.peer, time.monotonic())
        path.say(self.sessions.hello(self.sessions.links[connection.peer], connection.kind))
        await self._converse(connection, path)
        return path.greeted

    async def _converse(self, connection: Connection, path: Path) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        patience = asyncio.get_running_loop().call_later(HELLO_S, _lose_patience, path)
        try:
            await connection.run(lambda data: self.reception.heard(path, data))
        finally:
            patience.cancel()
            self._conversations.discard(task)
            self.reception.strangers.discard(path)
            self.sessions.ways.is_over(connection)
            self.sessions.detach(path, connection.reason)

    def _broken(self, process: str) -> None:
        self.dialling.nudge(process)


def _lose_patience(path: Path) -> None:
    if not path.greeted:
        path.carrier.abort(f"no hello within {HELLO_S:g} s")
