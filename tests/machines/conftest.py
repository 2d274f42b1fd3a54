"""Machines without sockets: stations in threads of this process, joined by queues that behave as the wire does."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from holdfast.cast import Troupe
from holdfast.config import RunConfig
from holdfast.engine import described_memory, names_of_workers
from holdfast.errors import NetworkError
from holdfast.evidence.envelope import sign_header
from holdfast.evidence.identity import derived
from holdfast.machines import HOST, TRUSTED, Machines, Patience
from holdfast.message import Actor, Envelope, Present
from holdfast.stage import COORDINATOR
from holdfast.station import ANYTIME, Part, Station
from holdfast.transport import Traffic, wire_bytes
from holdfast.transport.endpoint import Endpoint, Notice

from .hosted import PATIENCE_S, Visitor, wait_for


class Hub:
    """Where all ends meet. A process that is `cut` off says and hears nothing; `change` may put another message for one."""

    def __init__(self) -> None:
        self.change: Callable[[Envelope], Envelope | None] = lambda envelope: envelope
        self.ends: dict[str, End] = {}
        self.cut: set[str] = set()

    def end(self, process: str, names: Sequence[str]) -> End:
        found = End(self, Endpoint(process, tuple(names), f"{process}:1"))
        self.ends[process] = found
        for other in list(self.ends.values()):
            other.stir()
        return found

    def carry(self, sender: End, envelope: Envelope) -> None:
        changed = self.change(envelope)
        if changed is None:
            return
        envelope = changed
        for process, end in list(self.ends.items()):  # others may come meanwhile
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

    def forget(self, process: str, *, current: bool = True) -> None:
        self.known.discard(process)

    def links(self) -> dict[str, Any]:
        return {}

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
    """A `Crew` whose machines are threads; `kill` lets one vanish, as if its plug were pulled.

    The first machine of who `stumbles` says that it is there and vanishes (for good if it `stays_away`); who is in `ready` is
    deployed when that has come true of the engine. `memory` is what machines tell of theirs; with an `open_door` anybody may
    still come, but who is `unplugged`.
    """

    def __init__(
        self,
        config: RunConfig,
        hub: Hub,
        ended: Callable[[str, str], None],
        troupe: Troupe | None,
        engine: Callable[[], Machines],
    ) -> None:
        self.starts: list[str] = []
        self.fenced: list[str] = []
        self.stumbles: set[str] = set()
        self.stays_away: set[str] = set()
        self.unplugged: set[str] = set()
        self.ready: dict[str, Callable[[Machines], bool]] = {}
        self.memory: dict[str, int] = {}
        self.open_door = False
        self._config = config
        self._hub = hub
        self._ended = ended
        self._troupe = troupe
        self._engine = engine
        self._stations: dict[str, tuple[Station, threading.Thread]] = {}

    def gather(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in {*self._stations, *self.unplugged}:
                self.start(name)

    def start(self, name: str) -> None:
        self.starts.append(name)
        end = self._hub.end(name, (name,))
        self._hub.cut.discard(name)
        if name in self.stumbles:
            self.stumbles.discard(name)
            end.send(Envelope(name, COORDINATOR, Present(end.me.address, "cpu", "native")))
            threading.Thread(target=self._stumble, args=(name,), daemon=True).start()
            return
        sign = partial(sign_header, identity=derived(self._config.training.seed, name))
        played: Callable[[Actor], Actor] = (lambda actor: actor) if self._troupe is None else self._troupe.play

        def play(actor: Actor) -> Actor:
            wait_for(lambda: self.ready.get(name, lambda _: True)(self._engine()))
            return played(actor)

        present = Present(end.me.address, "cpu", "native", self.memory.get(name, 0))
        part = Part(name, present, sign=sign, play=play, die=partial(self.kill, name))
        station = Station(part, end)
        thread = threading.Thread(target=station.run, name=name, daemon=True)
        self._stations[name] = station, thread
        thread.start()

    def _stumble(self, name: str) -> None:
        wait_for(lambda: name in self._engine()._present)
        self._hub.cut.add(name)
        self._ended(name, "its process ended by SIGKILL")
        if name not in self.stays_away:
            self.start(name)

    def kill(self, name: str) -> None:
        station, _ = self._stations.pop(name)
        self._hub.cut.add(name)
        station.stop("killed")
        self._ended(name, "its process ended by SIGKILL")

    def freeze(self, name: str) -> None:
        """It hears and says nothing any more, and nobody notices but by the clock."""
        self._hub.cut.add(name)

    def expect(self) -> list[Endpoint]:
        return [Endpoint(name, (name,), None) for name in list(self._stations)]  # others may come meanwhile

    def key(self, name: str) -> bytes | None:
        """Of a stranger it is not known before it comes."""
        known = name in names_of_workers(self._config.pipeline.stages)
        return None if known else derived(self._config.training.seed, name).public

    def awaits(self, name: str) -> bool:
        return self.open_door or name in self._stations

    def left(self, name: str, *, banned: bool) -> None:
        self.fenced.append(name)
        found = self._stations.pop(name, None)
        if found is not None:
            found[0].stop("fenced")

    def close(self) -> None:
        for station, _ in list(self._stations.values()):
            station.stop("closed")
        deadline = time.monotonic() + PATIENCE_S
        for _, thread in list(self._stations.values()):
            thread.join(max(0.0, deadline - time.monotonic()))


class InThreads:
    """Opens the engine, and keeps its crew at hand."""

    def __init__(
        self, config: RunConfig, troupe: Troupe | None = None, prepare: Callable[[Threads], None] | None = None
    ) -> None:
        self.hub = Hub()
        self.prepare = prepare
        self.patience = Patience(PATIENCE_S, PATIENCE_S, 2.0, PATIENCE_S)
        self.config = config
        self.troupe = troupe
        self.crew: Threads | None = None

    def open(self) -> Machines:
        def crew(ended: Callable[[str, str], None]) -> Threads:
            self.crew = Threads(self.config, self.hub, ended, self.troupe, lambda: self.machines)
            if self.prepare is not None:
                self.prepare(self.crew)
            return self.crew

        memory = partial(described_memory, self.config)
        self.machines = Machines(self.hub.end(HOST, TRUSTED), crew, self.patience, memory)
        return self.machines


@pytest.fixture
def in_threads() -> type[InThreads]:
    return InThreads


@pytest.fixture
def visitors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Visitor]]:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    came: list[Visitor] = []
    yield came
    for visitor in came:
        visitor.end()
