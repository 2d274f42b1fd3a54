"""Dialling: one task for each stream of who is to be called, which connects whenever there is no connection."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Mapping

from holdfast.transport.connection import Connection, Dialler
from holdfast.transport.endpoint import AddressBook
from holdfast.transport.link import STREAMS, Key
from holdfast.transport.news import log


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


class Dialling:
    """Done by the process `me`. `connections` are those there are. `talk` speaks over a new one until it ends, and says whether
    this end was let in; without that, the next try waits longer, at most `most_s`.
    """

    def __init__(
        self,
        me: str,
        dialler: Dialler,
        connections: Mapping[Key, Connection],
        talk: Callable[[Connection], Awaitable[bool]],
        most_s: float,
    ) -> None:
        self._me = me
        self._dialler = dialler
        self._connections = connections
        self._talk = talk
        self._most_s = most_s
        self._calls: dict[Key, tuple[str, asyncio.Task[None]]] = {}
        self._nudges: dict[Key, asyncio.Event] = {}
        self._closing = False

    def go_by(self, book: AddressBook) -> None:
        """Call who is to be called by this book, at the address that it gives, and nobody else; at once."""
        wanted = {(p, kind): e.address for p, e in book.processes.items() if book.dials(p) for kind in STREAMS}
        for key in [key for key, (address, _) in self._calls.items() if wanted.get(key) != address]:
            del self._calls[key]  # its task finds that out by itself
            if wanted.get(key) is not None and key in self._connections:
                self._connections[key].abort("the peer has another address")
        for key, address in wanted.items():
            if address is not None and key not in self._calls:
                self._nudges[key] = asyncio.Event()
                self._calls[key] = (address, asyncio.create_task(self._keep_calling(key, address)))
        for nudge in self._nudges.values():
            nudge.set()

    def nudge(self, process: str) -> None:
        """A way to the process has ended: do not wait for the next try."""
        for kind in STREAMS:
            if (process, kind) in self._nudges:
                self._nudges[process, kind].set()

    def close(self, talking: Collection[asyncio.Task[None]]) -> list[asyncio.Task[None]]:
        """Connect no more; who is still `talking` ends by itself. All tasks, to be waited for."""
        self._closing = True
        tasks = [task for _, task in self._calls.values()]
        for task in tasks:
            if task not in talking:
                task.cancel()
        return tasks

    async def _keep_calling(self, key: Key, address: str) -> None:
        """Connect whenever there is no connection, until the address book says otherwise."""
        process, kind = key
        backoff, nudge = Backoff(most_s=self._most_s), self._nudges[key]
        while not self._closing and self._calls.get(key, ("",))[0] == address:
            if key not in self._connections:
                async with self._dialler.dial(process, address, kind) as connection:
                    if await self._talk(connection):
                        backoff.reset()
                    else:
                        log.debug("%s cannot reach %s at %s: %s", self._me, process, address, connection.reason)
            nudge.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(nudge.wait(), backoff.next_s())
