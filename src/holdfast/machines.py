"""The engine whose workers live elsewhere: each in a process of its own, reached over the wire, wherever a crew has it from.

    crew.gather --> Present --> Peers, Deploy --> Deployed --> the cluster runs --> Dismiss
                       ^                                            |
                       |                     a link breaks, a process ends, silence: the coordinator is told
                       +-- who comes back, or comes late, is deployed, and is a spare until the next step

The trusted members stay here. Nothing that a station says is believed beyond its own name: it may be slow, or gone, or lie.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from holdfast.coordinator import Coordinator
from holdfast.engine import Ensemble, Survey
from holdfast.errors import HoldfastError, NetworkError, StoppedWaiting
from holdfast.event import REAL, Banned, Event, WorkerLost
from holdfast.job import Job
from holdfast.launch import Hooks
from holdfast.message import Actor, Deploy, Deployed, Dismiss, Envelope, Message, Peers, Present, Tally
from holdfast.placement.load import seconds_of_a_pass
from holdfast.placement.place import Machine
from holdfast.remote import Remote
from holdfast.route import Route
from holdfast.speed import measure_speed
from holdfast.stage import ARCHIVE, CHECKER, COORDINATOR, INITIATOR, REFEREE
from holdfast.tallies import Tallies
from holdfast.transport import Endpoint, LinkStats, Notice, Traffic

HOST = "host"
"""The process of the trusted members, by which machines know it."""

TRUSTED = (INITIATOR, COORDINATOR, REFEREE, CHECKER, ARCHIVE)
POLL_S = 0.1

MOST_SPEED = 1e9
MOST_KEPT = 1000
"""States that a machine may say it keeps: twice its seats, and no pipeline has so many."""


class Exchange(Protocol):
    """What this engine needs of its transport (`holdfast.transport.GrpcTransport`)."""

    generation: int
    traffic: Traffic

    @property
    def me(self) -> Endpoint: ...

    def know(self, endpoints: Iterable[Endpoint]) -> None: ...

    def forget(self, process: str, *, current: bool = True) -> None: ...

    def notices(self) -> Sequence[Notice]: ...

    def links(self) -> Mapping[str, LinkStats]: ...

    def send(self, envelope: Envelope) -> None: ...

    def receive(self, timeout_s: float) -> Envelope | None: ...

    def close(self) -> None: ...


class Crew(Protocol):
    """Where the machines of the workers come from.

    `gather` has those of these names come, and asks no one twice who is there; `left` is told of one that is gone or fenced;
    `expect` are the endpoints that may connect now, `key` is the public key of one that has its own (None: it follows from the
    seed), `awaits` says whether one that is not there may still come (the empty name: one that nobody knows yet).
    """

    def gather(self, names: Sequence[str]) -> None: ...

    def expect(self) -> Sequence[Endpoint]: ...

    def key(self, name: str) -> bytes | None: ...

    def awaits(self, name: str) -> bool: ...

    def left(self, name: str, *, banned: bool) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds until a worker must be there, must be deployed, must answer; and until nothing at all is a deadlock."""

    start_s: float = 120.0
    deploy_s: float = 120.0
    answer_s: float = 5.0
    deadlock_s: float = 120.0


class Machines:
    """An `Engine`. `open_crew` is called once with a function to call when a process ended: (name, why).

    `memory(worker)` is what the settings give a worker or the initiator, in bytes; what a machine tells of itself may be less.
    `over` is asked at the end whether nobody is needed any more: else nobody is dismissed, and who can come back later will.
    """

    clock = REAL

    def __init__(
        self,
        transport: Exchange,
        open_crew: Callable[[Callable[[str, str], None]], Crew],
        patience: Patience = Patience(),  # frozen
        memory: Callable[[str], int | None] = lambda _worker: None,
        over: Callable[[], bool] = lambda: True,
    ) -> None:
        self._memory = memory
        self._mine = 0.0
        self._transport = transport
        self._patience = patience
        self._over = over
        self._lock = threading.RLock()
        self._generation = secrets.randbelow(1 << 30)
        self._present: dict[str, Endpoint] = {}
        self._kept: dict[str, frozenset[tuple[int, bytes]]] = {}
        self._start_s = patience.start_s
        self._gathered = False
        self._told: dict[str, Present] = {}
        self._order_names: Sequence[str] = ()
        self._deployed: set[str] = set()
        self._gone: dict[str, str] = {}
        self._told_lost: set[str] = set()
        self._banned: set[str] = set()
        self._tallies = Tallies(self._deployed, self._send, self._lock, patience.answer_s)
        self._closed = False
        self._interrupted = False
        self._links: Mapping[str, LinkStats] = {}
        self._order = Deploy(0, b"")
        self._hooks = Hooks()
        self._enroll: Callable[[str, bytes], None] = lambda _name, _key: None
        self._expected: list[Endpoint] = []
        self._trusted: Sequence[Actor] = ()
        self._launcher: Remote | None = None
        self.crew = open_crew(self._ended)

    # -- an engine ---------------------------------------------------------------------------------------------------

    def survey(self, job: Job, workers: Sequence[str]) -> Survey:
        """Who is there, by its own word, and this machine; where the placement follows from that, all `workers` are waited for.

        Who has not said how fast it is counts as fast as this machine. Raises NetworkError where nobody comes at all.
        """
        measured = job.config.cluster.placement == "measured"
        if measured:
            self._gather(workers)
        self._mine = measure_speed(job.config.model.device)
        with self._lock:
            names = dict.fromkeys((INITIATOR, *workers, *self._told))
        links = self._transport.links() if measured else {}
        machines = [replace(self.introduce(name), latency_s=_one_way(links.get(name))) for name in names]
        return Survey(seconds_of_a_pass(job, self._mine), machines, initiator_devices=1)

    @property
    def may_come(self) -> bool:
        """Who was there and is not, or (the empty name) somebody new."""
        with self._lock:
            missing = {*self._told, *self._order_names} - self._present.keys() - self._banned
        return any(self.crew.awaits(name) for name in sorted({*missing, ""}))

    def introduce(self, worker: str) -> Machine:
        """By its own word; its memory is the least of what it has told and what the settings give it."""
        with self._lock:
            told = self._told.get(worker)
        speed, memory = (0.0, 0) if told is None else (told.speed, told.memory_bytes)
        limits = [limit for limit in (self._memory(worker), memory or None) if limit is not None]
        relative = speed / self._mine if self._mine and 0 < speed < MOST_SPEED else 1.0
        return Machine(worker, relative, min(limits, default=None))

    def look_around(self) -> Sequence[str]:
        """While nothing is deployed: who is there, after what comes within a moment."""
        self._shut()
        self.receive(POLL_S)
        with self._lock:
            return sorted(self._present)

    def deploy(self, ensemble: Ensemble, hooks: Hooks) -> Remote:
        """Gather the workers and build the cluster on them; who does not come in time is lost as soon as it runs.

        Once a cluster has been deployed a gap is filled by others, and nobody is waited for longer than for an answer. Raises
        NetworkError where nobody comes to the first one, and nobody else may; StoppedWaiting after `interrupt`, where somebody
        is not there yet.
        """
        self._shut()
        wanted = list(ensemble.workers)
        with self._lock:
            self._order_names = wanted
            self._generation += 1
            self._order = Deploy(self._generation, ensemble.builder.blueprint.encode())
            self._hooks = replace(hooks, observe=partial(self._observe, hooks.observe))
            self._enroll = ensemble.enroll
            self._trusted = ensemble.trusted
            self._deployed.clear()
            self._tallies.clear()
            self._told_lost.clear()
            self._gone = {}
            for name in self._present:
                self._instruct(name)
        self._gather(wanted)
        self._start_s, self._gathered = min(self._patience.start_s, self._patience.deploy_s), True
        self._await(lambda name: name in self._deployed or name in self._gone, wanted, self._patience.deploy_s)
        self._transport.generation = self._generation
        desk = [actor for actor in ensemble.trusted if actor.name in (COORDINATOR, ARCHIVE)]
        bench = sorted((actor for actor in ensemble.trusted if actor not in desk), key=lambda actor: actor.name == INITIATOR)
        with self._lock:
            self._launcher = Remote(self, desk, bench, self._hooks, deadlock_s=self._patience.deadlock_s)
            for name in wanted:
                if name not in self._deployed:
                    self._tell_lost(name, self._gone.get(name, f"it was not ready within {self._patience.deploy_s:g} s"))
            for name in sorted(self._deployed):  # who has a seat already is told of in vain, but its key counts from now on
                self._tell_joined(name)
        return self._launcher

    def reunite(self, names: Sequence[str], settled: Callable[[Mapping[str, frozenset[tuple[int, bytes]]]], bool]) -> None:
        """Before the first deployment: let machines come, above all these, until `settled` is content with what those who are
        there say that they keep (stage and digest, by name). If any came, nobody is waited for longer than for an answer now.
        Raises StoppedWaiting after `interrupt`.
        """
        self.crew.gather(names)
        self._meet()
        while not settled(dict(self._kept)):
            self._wait_for(names)
        if self._present:
            self._start_s = min(self._patience.start_s, self._patience.deploy_s)

    def _gather(self, wanted: Sequence[str]) -> None:
        self.crew.gather(wanted)
        self._meet()
        self._await(lambda name: name in self._present or self._has_given_up(name), wanted, self._start_s)
        with self._lock:
            lacking = [name for name in wanted if name not in self._present]
            why = "; ".join(f"{name}: {reason}" for name, reason in self._gone.items()) or "none has connected"
            for name in lacking:
                self._gone.setdefault(name, f"it did not come within {self._start_s:g} s")
        if lacking and lacking == list(wanted) and not self._gathered and not self.crew.awaits(""):
            raise NetworkError(f"none of {', '.join(wanted)} came within {self._start_s:g} s ({why})")

    def interrupt(self) -> None:
        """Nobody is waited for any more; may be called from any thread, or from a signal handler."""
        self._interrupted = True

    def close(self) -> None:
        """Dismiss everybody, if the run is over, and leave. A second call does nothing."""
        with self._lock:
            self._closed = True  # who looks at the links from another thread must not meet a transport that closes
            for name in list(self._present) if self._over() else ():
                self._send(name, Dismiss("the run is over"))
            self._present.clear()
        self._shut()
        self.crew.close()
        self._transport.close()

    @property
    def traffic(self) -> Traffic:
        """Of this process."""
        return self._transport.traffic

    @property
    def launcher(self) -> Remote | None:
        """Of the cluster that is deployed now."""
        return self._launcher

    @property
    def deployed(self) -> frozenset[str]:
        """Whose machines are there and play their part."""
        with self._lock:
            return frozenset(self._deployed)

    # -- what comes --------------------------------------------------------------------------------------------------

    def receive(self, timeout_s: float) -> Envelope | None:
        """The next envelope for a member here; what stations say is taken care of first."""
        envelope = self._transport.receive(timeout_s)
        if list(self.crew.expect()) != self._expected:
            self._meet()
        for notice in self._transport.notices():
            if notice.kind == "lost" and notice.process in self._present:
                self._leave(notice.process, notice.reason, current=False)
        if envelope is None or not isinstance(envelope.message, (Present, Deployed, Tally)):
            return envelope
        self._hear(envelope.sender, envelope.message)
        return None

    def send(self, envelope: Envelope) -> None:
        self._transport.send(envelope)

    def release(self, name: str, reason: str) -> None:
        """Part with a machine that is there; may be called from any thread."""
        with self._lock:
            if name in self._present:
                self._send(name, Dismiss(reason))
                self._leave(name, reason)

    def refresh(self) -> None:
        """Somebody may connect now who might not before; may be called from any thread."""
        self._meet()

    @property
    def route(self) -> Route | None:
        """Who holds what now; None before the first deployment."""
        desk = next((actor for actor in self._trusted if isinstance(actor, Coordinator)), None)
        return None if desk is None else desk.membership.route

    def glance(self) -> tuple[Mapping[str, Tally], Mapping[str, LinkStats]]:
        """What workers last said that they have used, and the links now; has them say it again, and waits for nobody."""
        with self._lock:
            if self._closed:
                return self._tallies.known(), self._links
            self._links = self._transport.links()
            return self._tallies.latest(), self._links

    def tally(self) -> Mapping[str, Tally]:
        """What every worker that answers in time says that it has used in this deployment."""
        return self._tallies.collect()

    def _hear(self, name: str, message: Present | Deployed | Tally) -> None:
        with self._lock:
            match message:
                case Present(address, kept=kept):
                    self._told[name] = message
                    if name in self._banned:
                        self._send(name, Dismiss("it has lied, and is banned"))
                        return
                    if name in self._present:
                        self._leave(name, "it came back without having left")
                    self._present[name] = Endpoint(name, (name,), address)
                    self._kept[name] = frozenset(kept[:MOST_KEPT])
                    self._gone.pop(name, None)
                    self._meet()
                    self._instruct(name)
                case Deployed(generation, refusal) if generation == self._generation and name in self._present:
                    if refusal:
                        self._leave(name, f"it cannot play its part: {refusal}")
                        return
                    self._deployed.add(name)
                    if self._launcher is not None:
                        self._tell_joined(name)
                case Tally():
                    self._tallies.hear(name, message)

    def _observe(self, observe: Callable[[Event, float], None], event: Event, seconds: float) -> None:
        observe(event, seconds)
        match event:
            case Banned(worker):
                with self._lock:
                    self._banned.add(worker)
                    self._send(worker, Dismiss("it has lied, and is banned"))
                    self._drop(worker, banned=True)
            case WorkerLost(worker) if worker not in self._told_lost:  # the coordinator has lost patience with it
                with self._lock:
                    self._drop(worker, banned=False)

    # -- who goes ----------------------------------------------------------------------------------------------------

    def _ended(self, name: str, why: str) -> None:
        self._leave(name, why)

    def _leave(self, name: str, reason: str, *, current: bool = True) -> None:
        """A machine is gone: its connection is fenced, and the coordinator is told. Not `current`: the transport has given it
        up already, and who is connected now has come in its place.
        """
        with self._lock:
            known = name in self._present
            self._gone.setdefault(name, reason)
            self._drop(name, banned=False, current=current)
            if known and self._launcher is not None:
                self._tell_lost(name, reason)

    def _drop(self, name: str, *, banned: bool, current: bool = True) -> None:
        self._present.pop(name, None)
        self._kept.pop(name, None)
        self._deployed.discard(name)
        self._transport.forget(name, current=current)
        self.crew.left(name, banned=banned)
        self._meet()

    def _tell_lost(self, name: str, reason: str) -> None:
        assert self._launcher is not None
        self._launcher.call(partial(self._on_lost, name, reason))

    def _tell_joined(self, name: str) -> None:
        assert self._launcher is not None
        self._launcher.call(partial(self._on_joined, name))

    def _on_lost(self, name: str, reason: str) -> Sequence[Envelope]:
        self._told_lost.add(name)
        return self._hooks.on_lost(name, reason)

    def _on_joined(self, name: str) -> Sequence[Envelope]:
        """At the desk: the worker is deployed, its key counts, and if it has no seat it is a spare."""
        self._told_lost.discard(name)
        key = self.crew.key(name)
        if key is not None:
            self._enroll(name, key)
        return self._hooks.on_joined(name)

    # -- small things ------------------------------------------------------------------------------------------------

    def _meet(self) -> None:
        """Who may connect is known here, and everybody who is there is told of all the others."""
        with self._lock:
            self._expected = list(self.crew.expect())
            expected = {endpoint.process: endpoint for endpoint in self._expected}
            book = [self._transport.me, *{**expected, **self._present}.values()]
            self._transport.know(book)
            there = [self._transport.me, *self._present.values()]
            peers = Peers(tuple((end.process, end.names, end.address) for end in there))
            for name in self._present:
                self._send(name, peers)

    def _instruct(self, name: str) -> None:
        if self._order.blueprint:
            self._send(name, self._order)

    def _send(self, name: str, message: Message) -> None:
        try:
            self._transport.send(Envelope(COORDINATOR, name, message))
        except HoldfastError:  # a machine that cannot be reached is lost by its own notice
            return

    def _has_given_up(self, name: str) -> bool:
        return name in self._gone and not self.crew.awaits(name)

    def _await(self, settled: Callable[[str], bool], wanted: Sequence[str], patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and (lacking := [name for name in wanted if not settled(name)]):
            self._wait_for(lacking)

    def _wait_for(self, names: Sequence[str]) -> None:
        """For a moment."""
        if self._interrupted:
            raise StoppedWaiting(f"stopped while the run waited for {', '.join(names) or 'machines'}")
        self.receive(POLL_S)

    def _shut(self) -> None:
        with self._lock:
            launcher, self._launcher = self._launcher, None
        if launcher is not None:
            launcher.close()


def _one_way(link: LinkStats | None) -> float | None:
    return None if link is None or link.rtt_s is None else link.rtt_s / 2
