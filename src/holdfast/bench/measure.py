"""One cell run and measured: what the run said about lies, held against what its liars wrote down themselves.

Trainer ──events──> Watch <──headers, findings── every cluster's network
                      │
Troupe.ledger ────────┴──> Measurement: plain numbers, all counts of claims unless a name says otherwise
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from holdfast.attacks import Ledger
from holdfast.cast import Troupe
from holdfast.claim import WHOLE_STEP, ClaimKey, Header, Role
from holdfast.cluster import Cluster, names_of_workers
from holdfast.config import RunConfig
from holdfast.event import Alert, Event, RolledBack, Ruling, StagesSkipped, StepRestarted, StepSealed
from holdfast.job import Job, memory_needs
from holdfast.message import Envelope, Finding
from holdfast.result import RunResult
from holdfast.trainer import Trainer

WATCHES_TRAFFIC = ("statistics",)
"""Defences that look at every tensor without a second account of it: each claim about a micro-batch counts as checked."""

WITHHELD = "withheld"
"""The reason of an alert that accuses nobody: a delivery never came."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run came to; `docs/detection.md` defines each figure.

    `forged` = `detected` + `missed` + claims dropped with their step before anybody had to rule on them. `drawable` are the
    forged ones about a micro-batch, which spot checks draw from. `lies` are pairs of a liar and a forged claim with an alert,
    `lies_named` those whose liar was convicted. `alert_after` counts steps from the first lie to the first alert with a lie
    behind it (None: there was none), `inside_window` says whether the first lie could still be undone then.
    """

    forged: int
    drawable: int
    detected: int
    missed: int
    honest_checks: int
    false_alarms: int
    alert_after: int | None
    inside_window: bool | None
    suspects: tuple[int, ...]
    lies: int
    lies_named: int
    innocents_named: tuple[str, ...]
    digest: str
    steps_lost: int
    rollbacks: int
    virtual_s: float
    wall_s: float
    bytes_sent: int
    memory_bytes: int
    referee_passes: float

    @property
    def named_rightly(self) -> bool:
        """Every detected lie is proven against its liar, and nobody else is convicted of anything."""
        return self.lies_named == self.lies and not self.innocents_named


@dataclass
class Watch:
    """Sees every event of a run and every message about a claim; `told` are alerts with the step that was running then.

    Wall time runs from the first claim (modules are built by then) to the last seal.
    """

    untrusted: range
    clusters: list[Cluster] = field(default_factory=list)
    told: list[tuple[Alert, int]] = field(default_factory=list)
    rulings: list[Ruling] = field(default_factory=list)
    claimed: set[ClaimKey] = field(default_factory=set)
    seconded: set[ClaimKey] = field(default_factory=set)
    steps_lost: int = 0
    began: float = 0.0
    ended: float = 0.0
    _step: int = 0

    def observe(self, event: Event, _seconds: float) -> None:
        match event:
            case Alert():
                self.told.append((event, self._step))
            case Ruling():
                self.rulings.append(event)
            case StepRestarted() | StagesSkipped():
                self.steps_lost += 1
            case RolledBack(step, version):
                self.steps_lost += step - version
                self._step = version
            case StepSealed(step):
                self._step = step + 1
                self.ended = time.perf_counter()

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

        cluster.transport.send = overheard  # type: ignore[method-assign]

    def checked(self, config: RunConfig) -> set[ClaimKey]:
        """The claims that the defence has looked at: those with a second account, by a shadow or by re-execution."""
        if config.defence_name in WATCHES_TRAFFIC:
            return {key for key in self.claimed if key.micro_batch != WHOLE_STEP} | (self.claimed & self.seconded)
        return self.claimed & self.seconded

    def passes(self, config: RunConfig) -> float:
        """Forward passes (a backward one counts two) computed by whoever is no worker: the referee, a checker."""
        workers = names_of_workers(config.pipeline.stages)
        busy = [seconds for c in self.clusters for (name, _), seconds in c.launcher.busy_s.items() if name not in workers]
        return sum(busy) / config.cluster.seconds_per_forward


def measure(config: RunConfig, job: Job) -> Measurement:
    """Run `config` on the prepared `job` (its own settings give way) and measure it. What ends the run is raised."""
    troupe = Troupe(config)
    job = replace(job, config=config)
    watch = Watch(range(1, config.pipeline.stages - 1))
    result = Trainer(config, observers=(watch.observe,), cast=troupe, job=job, deployed=watch.attach).run()
    return _measurement(config, job, watch, troupe.ledger, result)


def _measurement(config: RunConfig, job: Job, watch: Watch, ledger: Ledger, result: RunResult) -> Measurement:
    forged = ledger.keys
    alarms = {alert.key for alert, _ in watch.told if alert.reason != WITHHELD and not ledger.explains(alert.key)}
    after = _alert_after(watch, ledger)
    lies = _detected_lies(watch, ledger)
    convicted = {(worker, ruling.key) for ruling in watch.rulings for worker in ruling.culprits}
    window = config.defence.model_dump().get("window")
    return Measurement(
        forged=len(forged),
        drawable=sum(key.micro_batch != WHOLE_STEP for key in forged),
        detected=result.detected,
        missed=result.missed,
        honest_checks=len(alarms | {key for key in watch.checked(config) if not ledger.explains(key)}),
        false_alarms=len(alarms),
        alert_after=after,
        inside_window=None if after is None or window is None else after <= window,
        suspects=_first_suspects(watch, forged),
        lies=len(lies),
        lies_named=len(lies & convicted),
        innocents_named=tuple(sorted({worker for worker, key in convicted if not _is_guilty(ledger, worker, key)})),
        digest=result.weights_digest,
        steps_lost=watch.steps_lost,
        rollbacks=result.rollbacks,
        virtual_s=result.virtual_seconds,
        wall_s=watch.ended - watch.began,
        bytes_sent=result.bytes_sent,
        memory_bytes=max(need.total_bytes for need in memory_needs(job) if need.stage in watch.untrusted),
        referee_passes=watch.passes(config),
    )


def _alert_after(watch: Watch, ledger: Ledger) -> int | None:
    """Steps between the first lie and the one that was running when the first alert with a lie behind it came."""
    lied = [key.step for key in ledger.keys] + [taint.step for taint in ledger.taints]
    told = [step for alert, step in watch.told if ledger.explains(alert.key)]
    return max(0, told[0] - min(lied)) if lied and told else None


def _first_suspects(watch: Watch, forged: Collection[ClaimKey]) -> tuple[int, ...]:
    """How many each forged claim's first alert names."""
    first: dict[ClaimKey, int] = {}
    for alert, _ in watch.told:
        first.setdefault(alert.key, len(alert.suspects))
    return tuple(count for key, count in first.items() if key in forged)


def _detected_lies(watch: Watch, ledger: Ledger) -> set[tuple[str, ClaimKey]]:
    alerted = {alert.key for alert, _ in watch.told}
    return {(worker, key) for worker, key, _ in ledger.lies if key in alerted}


def _is_guilty(ledger: Ledger, worker: str, key: ClaimKey) -> bool:
    """Whether a conviction of `worker` for `key` is just: its own lie, or its word from a state that it had spoilt."""
    if any(slot[:2] == (worker, key) for slot in ledger.lies):
        return True
    spoilt = any(taint.worker == worker and taint.step <= key.step for taint in ledger.taints)
    return spoilt and ledger.explains(key)
