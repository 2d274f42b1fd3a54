"""One cell run and measured: what the run said about lies, held against what its liars wrote down themselves.

Trainer ──events──> Watch <──headers, findings── every cluster's network
                      │
Troupe.ledger ────────┴──> Measurement: plain numbers, all counts of claims unless a name says otherwise
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from holdfast.attacks import Ledger
from holdfast.bench.watch import Watch, Word
from holdfast.cast import Troupe
from holdfast.claim import WHOLE_STEP, ClaimKey
from holdfast.config import RunConfig
from holdfast.job import Job, memory_needs
from holdfast.result import RunResult
from holdfast.trainer import Trainer

WITHHELD = "withheld"
"""The reason of an alert that accuses nobody: a delivery never came."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run came to; `docs/detection.md` defines each figure.

    `forged` = `detected` + `missed` + claims dropped with their step before anybody had to rule on them, or undone unseen by a
    rollback. `drawable_claims` and `drawable_steps` are what spot checks may draw: forged claims about a micro-batch, and pairs
    of a step and a stage with any forged claim. `lies` are pairs of a liar and a forged claim with an alert,
    `lies_named` those whose liar was convicted. `alert_after` counts steps from the first lie to the first alert with a lie
    behind it (None: there was none), `inside_window` says whether the first lie could still be undone then.
    """

    forged: int
    drawable_claims: int
    drawable_steps: int
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


def measure(config: RunConfig, job: Job) -> Measurement:
    """Run `config` on the prepared `job` (its own settings give way) and measure it. What ends the run is raised."""
    troupe = Troupe(config)
    job = replace(job, config=config)
    watch = Watch(range(1, config.pipeline.stages - 1), troupe.ledger)
    result = Trainer(config, observers=(watch.observe, troupe.observe), cast=troupe, job=job, deployed=watch.attach).run()
    watch.remember_lies()
    return _measurement(config, job, watch, troupe.ledger, result)


def _measurement(config: RunConfig, job: Job, watch: Watch, ledger: Ledger, result: RunResult) -> Measurement:
    forged = ledger.keys
    alarms = {told.alert.key for told in watch.alerts if told.alert.reason != WITHHELD and not ledger.explains(told.alert.key)}
    after = _alert_after(watch)
    lies = _detected_lies(watch)
    return Measurement(
        forged=len(forged),
        drawable_claims=sum(key.micro_batch != WHOLE_STEP for key in forged),
        drawable_steps=len({(key.step, key.stage) for key in forged}),
        detected=result.detected,
        missed=result.missed,
        honest_checks=len(alarms | {key for key in watch.checked if not ledger.explains(key)}),
        false_alarms=len(alarms),
        alert_after=after,
        inside_window=after <= config.window if after is not None and config.window else None,
        suspects=_first_suspects(watch, forged),
        lies=len(lies),
        lies_named=len(lies & watch.convictions),
        innocents_named=_innocents_named(watch, config.training.steps),
        digest=result.weights_digest,
        steps_lost=watch.steps_lost,
        rollbacks=result.rollbacks,
        virtual_s=result.virtual_seconds,
        wall_s=watch.ended - watch.began,
        bytes_sent=result.bytes_sent,
        memory_bytes=max(need.total_bytes for need in memory_needs(job) if need.stage in watch.untrusted),
        referee_passes=watch.passes(config),
    )


def _alert_after(watch: Watch) -> int | None:
    """Steps between the first lie and the one that was running when the first alert with a lie behind it came."""
    ledger = watch.ledger
    lied = [key.step for key in ledger.keys] + [taint.step for taint in ledger.taints]
    step = next((told.step for told in watch.alerts if ledger.explains(told.alert.key)), None)
    return max(0, step - min(lied)) if lied and step is not None else None


def _first_suspects(watch: Watch, forged: Collection[ClaimKey]) -> tuple[int, ...]:
    """How many each forged claim's first alert names."""
    first: dict[ClaimKey, int] = {}
    for alert, _, _ in watch.alerts:
        first.setdefault(alert.key, len(alert.suspects))
    return tuple(count for key, count in first.items() if key in forged)


def _detected_lies(watch: Watch) -> set[Word]:
    """Whoever lied about a claim that had an alert in the same life of the run."""
    alerted = {(life, alert.key) for alert, life, _ in watch.alerts}
    return {(life, worker, key) for (worker, key), life in watch.lies.items() if (life, key) in alerted}


def _innocents_named(watch: Watch, steps: int) -> tuple[str, ...]:
    """Who was convicted, having told no lie in that step or the one that it starts from, and holding nothing spoilt."""
    lied = {(worker, key.step + later) for worker, key in watch.lies for later in (0, 1)}
    spoilt = {(taint.worker, step) for taint in watch.ledger.taints for step in range(taint.step - taint.weights, steps)}
    guilty = lied | spoilt | {(worker, key.step) for worker, key in watch.ledger.misdeeds}
    return tuple(sorted({worker for _, worker, key in watch.convictions if (worker, key.step) not in guilty}))
