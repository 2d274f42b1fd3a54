"""Upkeep of links, many times a second: heartbeats, who is lost, and the way through the relay where there is none without."""

from __future__ import annotations

import asyncio
import time

from holdfast.transport import packet
from holdfast.transport.endpoint import WireOptions
from holdfast.transport.link import Key, Link, StreamKind
from holdfast.transport.path import Path, paths_of
from holdfast.transport.sessions import Sessions

ASK_AGAIN_S = 0.3
"""After how long the relay is asked again for somebody whom it could not reach."""

STALL_S = 0.5
"""A process that stood still for longer (stopped, or suspended) does not count that time as the silence of others."""


class Upkeep:
    """`run` goes on until it is cancelled."""

    def __init__(self, sessions: Sessions, options: WireOptions) -> None:
        self._sessions = sessions
        self._options = options
        self._asked_s: dict[Key, float] = {}

    async def run(self) -> None:
        """Heartbeats, and what did not happen in time."""
        options = self._options
        pause_s = min(0.25, options.heartbeat_s / 4, options.silence_s / 8, options.reconnect_s / 8)
        last = time.monotonic()
        while True:
            await asyncio.sleep(pause_s)
            now = time.monotonic()
            stood_still_s = now - last - pause_s
            last = now
            for link in list(self._sessions.links.values()):
                if stood_still_s > STALL_S:
                    link.forgive(stood_still_s)
                self._look_after(link, now)

    def _look_after(self, link: Link, now_s: float) -> None:
        reason = link.overdue(now_s)
        if reason is not None:
            self._sessions.lose(link.peer, reason)
            return
        for silent in link.silent(now_s):
            assert isinstance(silent, Path)
            if silent.way == "direct":
                silent.carrier.abort("silence")
            self._sessions.detach(silent, "silence")
        for path in paths_of(link):
            if now_s - path.pinged_s >= self._options.heartbeat_s:
                path.pinged_s = now_s
                path.say(packet.number(packet.PING, time.monotonic_ns()))
        book = self._sessions.book
        if book.opens_circuits(link.peer) and link.wants_relay(book.direct(link.peer), now_s):
            for kind, stream in link.streams.items():
                if stream.active is None:
                    self._open_circuit(link, kind, now_s)

    def _open_circuit(self, link: Link, kind: StreamKind, now_s: float) -> None:
        key, ways = (link.peer, kind), self._sessions.ways
        hop = ways.connections.get((self._sessions.book.relay or "", kind))
        if hop is None or now_s - self._asked_s.get(key, 0.0) < ASK_AGAIN_S:
            return
        self._asked_s[key] = now_s
        ways.drop_circuit(key, "asked anew")
        circuit = ways.circuits[key] = Path(hop, "relayed", link.me, link.peer, now_s)
        circuit.say(self._sessions.hello(link, kind))
