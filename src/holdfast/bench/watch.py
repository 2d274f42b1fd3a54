"""The watch sees and overhears a run: its events, what is claimed in it, who says so too, and in which of its lives.

Trainer ──events──> Watch <──headers, findings── every cluster's network
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.attacks import Ledger
from holdfast.claim import ClaimKey, Header, Role
from holdfast.cluster import Cluster
from holdfast.config import RunConfig
from holdfast.engine import names_of_workers
from holdfast.event import Alert, Event, RolledBack, Ruling, StagesSkipped, StepRestarted, StepSealed
from holdfast.launch import InProcess
from holdfast.message import Envelope, Finding

Word = tuple[int, str, ClaimKey]
"""In which life of the run, by whom, about what."""


class Told(NamedTuple):
    """An alert, in which life of the run it came, and the step that was running then."""

    alert: Alert
    life: int
    step: int


@dataclass
class Watch:
    """Sees every event of a run and every message about a claim.

    A rollback begins another life of the run, in which a claim of the same name may be told by somebody else. Wall time runs
    from the first claim (modules are built by then) to the last seal.
    """

    untrusted: range
    ledger: Ledger
    clusters: list[Cluster] = field(default_factory=list)
    alerts: list[Told] = field(default_factory=list)
    convictions: set[Word] = field(default_factory=set)
    lies: dict[tuple[str, ClaimKey], int] = field(default_factory=dict)
    claimed: set[ClaimKey] = field(default_factory=set)
    seconded: set[ClaimKey] = field(default_factory=set)
    steps_lost: int = 0
    began: float = 0.0
    ended: float = 0.0
    _step: int = 0

    def observe(self, event: Event, _seconds: float) -> None:
        match event:
            case Alert():
                self.alerts.append(Told(event, self._life, self._step))
            case Ruling(key, culprits):
                self.convictions |= {(self._life, worker, key) for worker in culprits}
            case StepRestarted() | StagesSkipped():
                self.steps_lost += 1
            case RolledBack(step, version):
                self.remember_lies()
                self.steps_lost += step - version
                self._step = version
            case StepSealed(step):
                self._step = step + 1
                self.ended = time.perf_counter()

    @property
    def _life(self) -> int:
        return len(self.clusters)

    def remember_lies(self) -> None:
        """Note in which life each lie was first told."""
        for worker, key, _ in self.ledger.lies:
            self.lies.setdefault((worker, key), self._life)

    def attach(self, cluster: Cluster) -> None:
        """Overhear what is sent in `cluster`: who claims something of an untrusted stage, and who says so too."""
        self.clusters.append(cluster)
        send = cluster.transport.send

        def overheard(envelope: Envelope) -> None:
            message = envelope.message
            self.began = self.began or (time.perf_counter() if isinstance(message, Header) else 0.0)
            if isinstance(message, (Header, Finding)) and message.key.stage in self.untrusted:
                second = isinstance(message, Finding) or message.role is Role.SHADOW
                (self.seconded if second else self.claimed).add(message.key)
            send(envelope)

        cluster.transport.send = overheard

    @property
    def checked(self) -> set[ClaimKey]:
        """The claims that the defence has looked at: those with a second account, by a shadow or by re-execution."""
        return self.claimed & self.seconded

    def passes(self, config: RunConfig) -> float:
        """Forward passes (a backward one counts two) computed by whoever is no worker: the referee, a checker."""
        workers = names_of_workers(config.pipeline.stages)
        busy = [seconds for c in self.clusters for (name, _), seconds in _in_memory(c).busy_s.items() if name not in workers]
        return sum(busy) / config.cluster.seconds_per_forward


def _in_memory(cluster: Cluster) -> InProcess:
    assert isinstance(cluster.launcher, InProcess), "passes are counted on the virtual clock"
    return cluster.launcher
