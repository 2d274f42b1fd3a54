"""An engine starts the members of a cluster and carries what they say: in one process, or each worker in a process of its own.

cluster --> Ensemble (the trusted actors, the names of the workers, how one is built) --> Engine --> Launcher

An engine lives as long as the run; a cluster is deployed on it at the start, and again after each rollback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast.blueprint import Builder, Sign
from holdfast.config import RunConfig
from holdfast.event import REAL, VIRTUAL
from holdfast.job import Job
from holdfast.launch import Glance, Hooks, InProcess, Timing
from holdfast.message import Actor, Envelope
from holdfast.placement.place import Machine
from holdfast.stage import INITIATOR
from holdfast.transport import Cluster as Described
from holdfast.transport import Link, MemoryTransport


class Company(Protocol):
    """Who plays the untrusted workers: adversaries and faults enter a run only here, as wrappers from outside."""

    def play(self, actor: Actor) -> Actor: ...


@dataclass(frozen=True)
class Ensemble:
    """Whom an engine brings together: `trusted` actors of this machine, and the untrusted `workers` by name.

    `builder` builds them (or is sent along as its blueprint), `sign(name)` is the hand of each in a simulation; where they have
    keys of their own, `enroll(name, key)` is told before anything that they sign can come.
    """

    trusted: Sequence[Actor]
    workers: Sequence[str]
    builder: Builder
    sign: Callable[[str], Sign]
    enroll: Callable[[str, bytes], None] = lambda _name, _key: None


@dataclass(frozen=True)
class Survey:
    """What machines there are, the initiator first, each by its own word; at speed 1 a forward pass of average cost takes
    `unit_s` seconds. Where the initiator has one device, its two stages take turns on it.
    """

    unit_s: float
    machines: Sequence[Machine]
    initiator_devices: int = 2


class Launcher(Protocol):
    """What a cluster needs of the engine that runs it; `now` are seconds of its clock, `bytes_sent` those of all members.

    `glance` may be called from any thread, and waits for nobody.
    """

    @property
    def now(self) -> float: ...

    @property
    def seconds_by_kind(self) -> Mapping[str, float]: ...

    @property
    def bytes_sent(self) -> int: ...

    def glance(self) -> Glance: ...

    def inject(self, envelopes: Iterable[Envelope]) -> None: ...

    def run_until(self, done: Callable[[], bool]) -> None: ...


class Engine(Protocol):
    """See the module. `may_come` says whether a machine that is not there may still come; `introduce` what one has told of its
    speed and its memory. Where a deployment had no room and another one is waited for, `look_around` ends it, hears for a
    moment what comes, and says whose machines are there. After `interrupt`, which any thread or signal handler may call, nobody
    is waited for: what would wait raises StoppedWaiting. `clock` is what its time is called, VIRTUAL or REAL.
    """

    @property
    def clock(self) -> str: ...

    @property
    def may_come(self) -> bool: ...

    def survey(self, job: Job, workers: Sequence[str], /) -> Survey: ...

    def introduce(self, worker: str, /) -> Machine: ...

    def look_around(self) -> Sequence[str]: ...

    def deploy(self, ensemble: Ensemble, hooks: Hooks, /) -> Launcher: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


def clock_of(config: RunConfig) -> str:
    """What the clock of a run is called that has no host."""
    return VIRTUAL if config.pipeline.engine == "memory" else REAL


class MemoryEngine:
    """All members in this process, with the virtual clock of the cluster that the config describes."""

    clock = VIRTUAL

    def __init__(self, config: RunConfig, company: Company | None = None) -> None:
        self._config = config
        self._company = company

    def survey(self, job: Job, workers: Sequence[str]) -> Survey:
        """The described cluster."""
        machines = [self.introduce(name) for name in (INITIATOR, *workers)]
        return Survey(self._config.cluster.seconds_per_forward, machines)

    @property
    def may_come(self) -> bool:
        """Nobody can whose coming is not on the agenda already."""
        return False

    def introduce(self, worker: str) -> Machine:
        speeds, names = self._config.cluster.speeds, names_of_workers(self._config.pipeline.stages)
        speed = 1.0 if speeds is None or worker not in names else speeds[names.index(worker)]
        last = speeds[-1] if speeds is not None and worker == INITIATOR else None
        return Machine(worker, speed, described_memory(self._config, worker), last)

    def look_around(self) -> Sequence[str]:
        return names_of_workers(self._config.pipeline.stages)[1:-1]

    def deploy(self, ensemble: Ensemble, hooks: Hooks) -> InProcess:
        config = self._config.cluster
        link = Link(config.latency_s, config.bandwidth_bytes_per_s)
        described = Described(
            link,
            jitter_s=config.jitter_s,
            loss=config.loss,
            seed=config.seed,
            tensor_bytes=config.tensor_bytes,
            state_bytes=config.state_bytes,
        )
        transport = MemoryTransport(described, wire_check=config.wire_check)
        speeds = config.speeds or (1.0,) * self._config.pipeline.stages
        names = names_of_workers(len(speeds))
        by_device = {(name, 0): speed for name, speed in zip(names, speeds, strict=True)}
        by_device |= {(INITIATOR, 0): speeds[0], (INITIATOR, 1): speeds[-1]}
        timing = Timing(config.seconds_per_forward, by_device, config.detection_s)
        initiator, *others = ensemble.trusted
        workers = [self._play(ensemble.builder.worker(name, ensemble.sign(name))) for name in ensemble.workers]
        return InProcess([initiator, *workers, *others], transport, timing, hooks)

    def interrupt(self) -> None:
        """Nobody is waited for here."""

    def close(self) -> None:
        pass

    def _play(self, worker: Actor) -> Actor:
        return worker if self._company is None else self._company.play(worker)


def described_memory(config: RunConfig, worker: str) -> int | None:
    """What the described cluster gives a worker, in bytes; None where it sets no limit."""
    described, names = config.cluster, names_of_workers(config.pipeline.stages)
    if described.memories is not None and worker in names:
        return described.memories[names.index(worker)]
    return None if worker == INITIATOR else described.memory_bytes


def names_of_workers(stages: int) -> tuple[str, ...]:
    """Who is primary of each stage at the start: the initiator of the first and the last, `w1`, `w2`, ... between."""
    return (INITIATOR, *(f"w{i}" for i in range(1, stages - 1)), INITIATOR)
