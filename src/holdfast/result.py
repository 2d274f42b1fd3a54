"""What a run comes to: the numbers of `train --json`, counted from its events and held against what really was forged."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from holdfast.claim import ClaimKey
from holdfast.evaluate import Evaluation
from holdfast.event import (
    VIRTUAL,
    Alert,
    ClaimReplaced,
    Event,
    RolledBack,
    Ruling,
    SpotChecked,
    StagesSkipped,
    StepRestarted,
    StepSealed,
)


class GroundTruth(Protocol):
    """What only the cast knows: the claims that were really forged, those of them that no rollback has undone (`standing`), and
    whether an alert has a lie behind it.
    """

    @property
    def keys(self) -> Collection[ClaimKey]: ...

    @property
    def standing(self) -> Collection[ClaimKey]: ...

    def explains(self, key: ClaimKey) -> bool: ...


@dataclass(frozen=True)
class RunResult:
    """The fields of `train --json`; all counts are of claims.

    `attacked_claims` = `detected` + `missed` + claims that were dropped with their step before anybody had to rule on them, or
    that a rollback took out of the weights again. Perplexity and losses are of tokens in nats; `weights_digest` is defined in
    `holdfast.digest`. `certified` says that every step that is left in the weights was checked, or escaped the draw of the spot
    checks fairly; `claims_checked` counts what those computed again. `checkpoint_step` are the steps after
    which the newest checkpoint on the disk was taken (None: there is none); it is less than `steps` where a later one failed.
    `step_seconds` is what the middle one of the last clean steps took on the engine's clock, `predicted_step_seconds` what was
    predicted for the placement that they ran on. `training_seconds` is the part of `seconds` in which steps were made: without
    what comes before the first one, the waits for machines, and the end; `tokens_per_second` counts by it. `clock` says whose
    seconds the `virtual_seconds` are: `virtual` ones of a described cluster, or those of a real `run`; where a run has gone on
    with another engine, both words.
    """

    run_id: str
    steps: int
    tokens: int
    seconds: float
    training_seconds: float
    clock: str
    virtual_seconds: float
    tokens_per_second: float
    train_loss: float
    validation_perplexity: float
    validation_bits_per_byte: float
    weights_digest: str
    attacked_claims: int
    detected: int
    missed: int
    false_alarms: int
    alerts: int
    blamed_stages: dict[str, int]
    blamed_workers: dict[str, int]
    steps_restarted: int
    stages_skipped: int
    claims_replaced: int
    rollbacks: int
    claims_checked: int
    bytes_sent: int
    verify_seconds: float
    referee_seconds: float
    check_seconds: float
    certified: bool
    interrupted: bool
    out: str | None
    checkpoint_step: int | None = None
    predicted_step_seconds: float = math.nan
    step_seconds: float = math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite (a poisoned run) becomes null, as JSON has no word for it."""
        values = dataclasses.asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


@dataclass
class Counts:
    """Counts the events of a run as they come."""

    alerted: dict[ClaimKey, set[str]] = field(default_factory=dict)
    undone: dict[ClaimKey, set[str]] = field(default_factory=dict)
    blamed_stages: Counter[str] = field(default_factory=Counter)
    blamed_workers: Counter[str] = field(default_factory=Counter)
    sealed: dict[int, int] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    skipped: dict[tuple[int, int | None], set[int]] = field(default_factory=dict)
    steps_restarted: int = 0
    stages_skipped: int = 0
    claims_replaced: int = 0
    rollbacks: int = 0
    checked: dict[tuple[int, int], int] = field(default_factory=dict)
    claims_checked: int = 0

    def __call__(self, event: Event, _seconds: float) -> None:
        match event:
            case Alert(key, reason):
                self.alerted.setdefault(key, set()).add(reason)
            case Ruling(_, culprits, stage):
                for worker in culprits:
                    self.blamed_workers[worker] += 1
                    self.blamed_stages[str(stage)] += 1
            case StepRestarted():
                self.steps_restarted += 1
            case StagesSkipped():
                known = self.skipped.setdefault((event.step, self.sealed.get(event.step)), set())
                self.stages_skipped += len(set(event.bypassed) - known)  # a second alert in one step names the first's again
                known.update(event.bypassed)
            case ClaimReplaced():
                self.claims_replaced += 1
            case SpotChecked(step, stage, claims):
                self.claims_checked += claims - self.checked.get((step, stage), 0)
                self.checked[step, stage] = claims
            case RolledBack(_, version):
                for key in [key for key in self.alerted if key.step >= version]:
                    self.undone.setdefault(key, set()).update(self.alerted.pop(key))
                self.checked = {moment: count for moment, count in self.checked.items() if moment[0] < version}
            case StepSealed(step, attempt, loss):
                self.sealed[step] = attempt
                self.losses[step] = loss

    def missed(self, forged: Collection[ClaimKey]) -> int:
        """Forged claims of attempts that were sealed, without an alert: they are in the weights."""
        return sum(self.sealed.get(key.step) == key.attempt and key not in self.alerted for key in forged)

    def detected(self, forged: Collection[ClaimKey]) -> int:
        return sum(key in self.alerted or key in self.undone for key in forged)

    def false_alarms(self, truth: GroundTruth | None) -> int:
        """Alerts about honest claims. That a delivery never came accuses nobody, so it is none."""
        alerts = [*self.alerted.items(), *self.undone.items()]
        checked = {key for key, reasons in alerts if reasons - {"withheld"}}
        return sum(truth is None or not truth.explains(key) for key in checked)


@dataclass
class Meter:
    """What the clusters of a run have used, over all rollbacks; `latest_s` is the time in the present one."""

    virtual_s: float = 0.0
    latest_s: float = 0.0
    bytes_sent: int = 0
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, virtual_s: float, bytes_sent: int, seconds_by_kind: Mapping[str, float]) -> None:
        """One cluster has ended."""
        self.virtual_s += virtual_s
        self.latest_s = 0.0
        self.bytes_sent += bytes_sent
        self.seconds.update(seconds_by_kind)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the trainer itself knows of its run."""

    run_id: str
    steps: int
    tokens: int
    seconds: float
    training_seconds: float
    weights_digest: str
    certified: bool
    interrupted: bool
    out: str | None
    checkpoint_step: int | None = None
    clock: str = VIRTUAL


def rate(tokens: float, seconds: float) -> float:
    """Tokens a second; 0 where no step was made."""
    return tokens / seconds if seconds > 0 else 0.0


def summarise(run: RunFacts, score: Evaluation, counts: Counts, meter: Meter, truth: GroundTruth | None) -> RunResult:
    """Put together what was counted, what was measured and what was really forged."""
    forged = truth.keys if truth is not None else ()
    return RunResult(
        run_id=run.run_id,
        steps=run.steps,
        tokens=run.tokens,
        seconds=run.seconds,
        training_seconds=run.training_seconds,
        clock=run.clock,
        virtual_seconds=meter.virtual_s,
        tokens_per_second=rate(run.tokens, run.training_seconds),
        train_loss=counts.losses.get(run.steps - 1, math.nan),
        validation_perplexity=score.perplexity,
        validation_bits_per_byte=score.bits_per_byte,
        weights_digest=run.weights_digest,
        attacked_claims=len(forged),
        detected=counts.detected(forged),
        missed=counts.missed(truth.standing if truth is not None else ()),
        false_alarms=counts.false_alarms(truth),
        alerts=len(counts.alerted | counts.undone),
        blamed_stages=dict(counts.blamed_stages),
        blamed_workers=dict(counts.blamed_workers),
        steps_restarted=counts.steps_restarted,
        stages_skipped=counts.stages_skipped,
        claims_replaced=counts.claims_replaced,
        rollbacks=counts.rollbacks,
        claims_checked=counts.claims_checked,
        bytes_sent=meter.bytes_sent,
        verify_seconds=sum(seconds for kind, seconds in meter.seconds.items() if kind.startswith("shadow")),
        referee_seconds=meter.seconds["referee"],
        check_seconds=meter.seconds["checker"],
        certified=run.certified,
        interrupted=run.interrupted,
        out=run.out,
        checkpoint_step=run.checkpoint_step,
    )
