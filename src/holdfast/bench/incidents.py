"""One run on the virtual clock in which something goes wrong at a known moment, and what that costs: steps, seconds, weights.

    crash     workers go in step CRASHED, at a moment of it; the run had a checkpoint at step KEPT
    lie       a stage lies once, in the last step

The protocol runs as it is, on small tensors that count for large ones (`bench.described`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

from holdfast.bench.described import Setting, Size, config_of
from holdfast.cast import Troupe
from holdfast.config import RunConfig, resolve
from holdfast.event import Event, RolledBack, StepSealed
from holdfast.faults import Fault, Moment
from holdfast.settings import merge
from holdfast.sweep.jobs import job_of
from holdfast.trainer import Trainer

STAGES, MICRO_BATCHES = 6, 4
EVERY, CRASHED, STEPS = 6, 8, 12
"""Steps between checkpoints; the step in which a worker goes, two after one; steps of the run."""
LIED, STEPS_WITH_A_LIE = 2, 3

TAKEOVER = "duplicate"
CHECKPOINT = "none"
MOMENTS: tuple[Moment, ...] = get_args(Moment)


@dataclass(frozen=True)
class Incident:
    """What one run came to, against the same run in which nothing happened.

    `steps_lost` are steps that had been sealed and were computed again, `extra_s` the seconds by which the step in question
    ended later, `shadows_s` what the next two took longer than those after them, because new shadows were seated, `slower` the
    last step over that before the incident (nobody came in the lost one's place). `formula_s` is what a rollback should cost
    by arithmetic (None: there was none).
    """

    way: str
    what: str
    stages: tuple[int, ...]
    moment: str
    steps_lost: int
    rollbacks: int
    restarted: int
    skipped: int
    replaced: int
    extra_s: float
    extra_steps: float
    shadows_s: float
    slower: float
    formula_s: float | None
    equal: bool
    step_s: float


@dataclass(frozen=True)
class _Told:
    """A run, by its events: when each step was sealed first, and the result."""

    sealed_s: dict[int, float]
    steps_lost: int
    rolled_back_s: float | None
    total_s: float
    digest: str
    result: Any


def comes(stage: int, moment: Moment) -> bool:
    """Whether the worker of `stage` ever comes to that moment: that of stage 1 shadows nobody."""
    return stage > 1 or not moment.startswith("shadow")


def crash(network: str, size: Size, way: str, stages: Sequence[int], moment: Moment) -> Incident:
    """The workers of `stages` go at the same moment of step CRASHED; `way` is the defence: what is done about it.

    Who goes at the seal goes after the step: all of the loss is in the next two then.
    """
    calm, told = _calm(network, size, way, STEPS), _told(crash_config(network, size, way, stages, moment))
    step_s = _lasted(calm, CRASHED)
    extra_s = _lasted(told, CRASHED) - step_s
    after_s = _lasted(told, STEPS - 1)
    shadows_s = sum(_lasted(told, step) - after_s for step in (CRASHED + 1, CRASHED + 2))
    return _incident(way, "crash", tuple(stages), moment, calm, told, extra_s, step_s, shadows_s, after_s / step_s)


def lie(network: str, size: Size, way: str, stage: int, direction: str) -> Incident:
    """The worker of `stage` lies about all its micro-batches in the last step; whoever comes in its place is honest."""
    calm = _calm(network, size, way, STEPS_WITH_A_LIE)
    told = _told(lie_config(network, size, way, stage, direction))
    step_s = _lasted(calm, LIED)
    return _incident(way, "lie", (stage,), direction, calm, told, told.total_s - calm.total_s, step_s, 0.0, 1.0)


def crash_config(network: str, size: Size, way: str, stages: Sequence[int], moment: Moment) -> RunConfig:
    """The run in which they go."""
    faults = tuple(str(Fault("crash", CRASHED, stage, at=moment)) for stage in stages)
    return incident_config(network, size, way, STEPS, faults=faults)


def lie_config(network: str, size: Size, way: str, stage: int, direction: str) -> RunConfig:
    """The run in which it lies."""
    attack = {"spec": f"sign-flip,direction={direction}", "worker": f"w{stage}", "first_step": LIED}
    return incident_config(network, size, way, STEPS_WITH_A_LIE, attack=(attack,))


def _incident(
    way: str,
    what: str,
    stages: tuple[int, ...],
    moment: str,
    calm: _Told,
    told: _Told,
    extra_s: float,
    step_s: float,
    shadows_s: float,
    slower: float,
) -> Incident:
    return Incident(
        way=way,
        what=what,
        stages=stages,
        moment=moment,
        steps_lost=told.steps_lost,
        rollbacks=told.result.rollbacks,
        restarted=told.result.steps_restarted,
        skipped=told.result.stages_skipped,
        replaced=told.result.claims_replaced,
        extra_s=extra_s,
        extra_steps=extra_s / step_s,
        shadows_s=shadows_s,
        slower=slower,
        formula_s=_formula(calm, told, step_s),
        equal=told.digest == calm.digest,
        step_s=step_s,
    )


def _formula(calm: _Told, told: _Told, step_s: float) -> float | None:
    """Of a rollback: what the step had taken when it was given up, a new deployment, and the steps since the checkpoint."""
    if told.rolled_back_s is None or CRASHED - 1 not in told.sealed_s:
        return None
    deployment_s = calm.sealed_s[0] - step_s
    return told.rolled_back_s - told.sealed_s[CRASHED - 1] + deployment_s + told.steps_lost * step_s


def _lasted(told: _Told, step: int) -> float:
    """From the seal of the step before to this one's."""
    return told.sealed_s[step] - told.sealed_s[step - 1]


@lru_cache(maxsize=32)
def _calm(network: str, size: Size, way: str, steps: int) -> _Told:
    return _told(incident_config(network, size, way, steps))


def incident_config(network: str, size: Size, way: str, steps: int, **more: Any) -> RunConfig:
    """The configuration of a run of `steps` steps with a checkpoint every EVERY; `more` are sections and whole settings.

    The deadline of the coordinator grows with the steps: nobody is silent here, and they may be described as very long.
    """
    setting = Setting(network, STAGES, MICRO_BATCHES, "gpipe", way)
    tables = merge(config_of(setting, size).model_dump(exclude_none=True), {"steps": steps, "checkpoint_every": EVERY, **more})
    tables["defence"] = {**tables["defence"], "deadline_s": max(30.0, 400 * size.seconds_per_forward)}
    return resolve(tables)


def _told(config: RunConfig) -> _Told:
    troupe = Troupe(config)
    sealed: dict[int, float] = {}
    lost, fell, latest = 0, None, 0.0

    def observe(event: Event, seconds: float) -> None:
        nonlocal lost, fell, latest
        latest = max(latest, seconds)
        match event:
            case StepSealed(step):
                sealed.setdefault(step, seconds)
            case RolledBack(step, version):
                lost += step - version
                fell = latest if fell is None else fell

    result = Trainer(config, observers=(observe, troupe.observe), cast=troupe, job=job_of(config)).run()
    return _Told(sealed, lost, fell, result.virtual_seconds, result.weights_digest, result)
