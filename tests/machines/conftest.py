"""Machines without sockets: stations in threads of this process, joined by queues that behave as the wire does."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pytest

from holdfast.cast import Troupe
from holdfast.config import RunConfig
from holdfast.errors import NetworkError
from holdfast.evidence.envelope import sign_header
from holdfast.evidence.identity import derived
from holdfast.machines import HOST, TRUSTED, Machines, Patience
from holdfast.message import Actor, Envelope, Present
from holdfast.station import ANYTIME, Part, Station
from holdfast.transport import Traffic, wire_bytes
from holdfast.transport.endpoint import Endpoint, Notice


class Hub:
    """Where all ends meet. A process that is `cut` off says nothing any more and hears nothing."""

    def __init__(self) -> None:
        self.ends: dict[str, End] = {}
        self.cut: set[str] = set()

    def end(self, process: str, names: Sequence[str]) -> End:
        found = End(self, Endpoint(process, tuple(names), f"{process}:1"))
        self.ends[process] = found
        for other in self.ends.values():
            other.stir()
        return found

    def carry(self, sender: End, envelope: Envelope) -> None:
        for process, end in self.ends.items():
            if envelope.recipient in end.me.names and not {process, sender.me.process} & self.cut:
                end.queue.put((sender.generation, envelope))


class End:
    def __init__(self, hub: Hub, me: Endpoint) -> None:
        self.me = me
        self.generation = 0
        self.traffic = Traffic()
        self.queue: queue.Queue[Any] = queue.Queue()
        self.known: set[str] = set()
        self.told: list[Notice] = []
        self._hub = hub
        self._closed = False

    def stir(self) -> None:
        self.queue.put(None)

    def know(self, endpoints: Iterable[Endpoint]) -> None:
        self.known = {endpoint.process for endpoint in endpoints}

    def forget(self, process: str) -> None:
        self.known.discard(process)

    def notices(self) -> list[Notice]:
        told, self.told = self.told, []
        return told

    def send(self, envelope: Envelope) -> None:
        if self._closed:
            raise NetworkError("closed")
        self.traffic.add(envelope.sender, wire_bytes(envelope))
        self._hub.carry(self, envelope)

    def receive(self, timeout_s: float) -> Envelope | None:
        if self._closed:
            raise NetworkError("closed")
        with contextlib.suppress(queue.Empty):
            item = self.queue.get(timeout=timeout_s)
            if item is not None and (item[0] == self.generation or isinstance(item[1].message, tuple(ANYTIME))):
                found: Envelope = item[1]
                return found
        return None

    def close(self) -> None:
        self._closed = True


class Threads:
    """A `Crew` whose machines are threads; `kill` lets one vanish, as if its plug were pulled."""

    def __init__(self, config: RunConfig, hub: Hub, ended: Callable[[str, str], None], troupe: Troupe | None) -> None:
        self.starts: list[str] = []
        self._config = config
        self._hub = hub
        self._ended = ended
        self._troupe = troupe
        self._stations: dict[str, tuple[Station, threading.Thread]] = {}

    def gather(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._stations:
                self.start(name)

    def start(self, name: str) -> None:
        self.starts.append(name)
        end = self._hub.end(name, (name,))
        self._hub.cut.discard(name)
        sign = partial(sign_header, identity=derived(self._config.training.seed, name))
        play: Callable[[Actor], Actor] = (lambda actor: actor) if self._troupe is None else self._troupe.play
        part = Part(name, Present(end.me.address, "cpu", "native"), sign=sign, play=play, die=partial(self.kill, name))
        station = Station(part, end)
        thread = threading.Thread(target=station.run, name=name, daemon=True)
        self._stations[name] = station, thread
        thread.start()

    def kill(self, name: str) -> None:
        station, _ = self._stations.pop(name)
        self._hub.cut.add(name)
        station.stop("killed")
        self._ended(name, "its process ended by SIGKILL")

    def freeze(self, name: str) -> None:
        """It hears and says nothing any more, and nobody notices but by the clock."""
        self._hub.cut.add(name)

    def expect(self) -> list[Endpoint]:
        return [Endpoint(name, (name,), None) for name in self._stations]

    def left(self, name: str, *, banned: bool) -> None:
        found = self._stations.pop(name, None)
        if found is not None:
            found[0].stop("fenced")

    def close(self) -> None:
        for station, _ in list(self._stations.values()):
            station.stop("closed")
        deadline = time.monotonic() + 10
        for _, thread in list(self._stations.values()):
            thread.join(max(0.0, deadline - time.monotonic()))


class InThreads:
    """Opens the engine, and keeps its crew at hand."""

    def __init__(self, config: RunConfig, troupe: Troupe | None = None) -> None:
        self.hub = Hub()
        self.config = config
        self.troupe = troupe
        self.crew: Threads | None = None

    def open(self) -> Machines:
        def crew(ended: Callable[[str, str], None]) -> Threads:
            self.crew = Threads(self.config, self.hub, ended, self.troupe)
            return self.crew

        return Machines(self.hub.end(HOST, TRUSTED), crew, Patience(20.0, 20.0, 2.0, 20.0))


@pytest.fixture
def in_threads() -> type[InThreads]:
    return InThreads
