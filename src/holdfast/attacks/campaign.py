"""A campaign says when an attack strikes: one draw a step with probability `rate`, then one stage, all its micro-batches.

With K = 6, rate 0.5 and seed 7 (X: every micro-batch of that stage in that step):

    step       0   1   2   3   4   5   6   7
    stage 1                X   X
    stage 2    X   X
    stage 3
    stage 4                            X

It is a pure function of (seed, step): neither the schedule, nor the order of delivery, nor a restart changes it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.claim import WHOLE_STEP, ClaimKey
from holdfast.errors import ConfigError
from holdfast.seeds import derive

if TYPE_CHECKING:
    from holdfast.config import AttackConfig

_RANGE = 2**63


@dataclass(frozen=True)
class Campaign:
    """When, where and how often: see the drawing above.

    `stages` are the attackable ones (1..K-2, or some of them). Only first attempts of a step are struck, unless `persistent`.
    `micro_batches` narrows (None: all). With `worker`, that worker is the liar, and what it strikes is any stage that it is
    primary of then (one of `stages`), which after a takeover may be two.
    """

    stages: tuple[int, ...]
    rate: float = 1.0
    seed: int = 0
    first_step: int = 0
    persistent: bool = False
    micro_batches: tuple[int, ...] | None = None
    worker: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"the rate of a campaign is a probability between 0 and 1, got {self.rate}")
        if not self.stages:
            raise ConfigError("a campaign needs at least one stage to strike, got none; stages 1 to K-2 are attackable")

    def strike(self, step: int) -> int | None:
        """The stage that is struck in `step`, or None.

        >>> [Campaign((1, 2, 3, 4), rate=0.5, seed=7).strike(step) for step in range(8)]
        [2, 2, None, 1, 1, None, 4, None]
        """
        if step < self.first_step or derive(self.seed, "strike", step) >= self.rate * _RANGE:
            return None
        return self.stages[derive(self.seed, "stage", step) % len(self.stages)]

    def strikes(self, key: ClaimKey, worker: str) -> bool:
        """Whether `worker`, who makes the claim `key`, lies about it."""
        if key.attempt > 0 and not self.persistent:
            return False
        if self.micro_batches is not None and key.micro_batch not in (WHOLE_STEP, *self.micro_batches):
            return False
        stage = self.strike(key.step)
        if stage is None or self.worker is None:
            return stage is not None and key.stage == stage
        return worker == self.worker and key.stage in self.stages

    def generator_seed(self, key: ClaimKey) -> int:
        """The seed of the random numbers that forge `key`."""
        return derive(self.seed, "forge", key.step, key.attempt, str(key.direction), key.stage, key.micro_batch)

    @classmethod
    def from_config(
        cls,
        config: AttackConfig,
        *,
        stages: int,
        seed: int,
        index: int = 0,
        micro_batches: int | None = None,
        workers: Collection[str] = (),
    ) -> Campaign:
        """The campaign of the `index`-th attack of a run of `stages` stages and `micro_batches` a step, with the run's `seed`.

        Raises ConfigError for a stage that belongs to the initiator or does not exist, for such a micro-batch, and for a
        worker that is none of the untrusted `workers` (where they are given).
        """
        attackable = range(1, stages - 1)
        chosen = tuple(config.stages) if config.stages is not None else tuple(attackable)
        for stage in chosen:
            if stage not in attackable:
                raise ConfigError(f"attack {config.spec!r} names stage {stage}; attackable are {_span(attackable)}")
        if not chosen:
            raise ConfigError(f"attack {config.spec!r} has no stage to strike; attackable are {_span(attackable)}")
        for micro_batch in config.micro_batches or ():
            if micro_batch < 0 or (micro_batches is not None and micro_batch >= micro_batches):
                known = "0 and up" if micro_batches is None else f"0 to {micro_batches - 1}"
                raise ConfigError(f"attack {config.spec!r} names micro-batch {micro_batch}; there are {known}")
        if config.worker is not None and workers and config.worker not in workers:
            raise ConfigError(f"attack {config.spec!r} names worker {config.worker!r}; untrusted are {', '.join(workers)}")
        return cls(
            stages=chosen,
            rate=config.rate,
            seed=derive(seed, "campaign", index) if config.seed is None else config.seed,
            first_step=config.first_step,
            persistent=config.persistent,
            micro_batches=config.micro_batches,
            worker=config.worker,
        )


def _span(stages: range) -> str:
    if not stages:
        return "none with 2 stages: both are the initiator's; use --stages 3 or more"
    return f"stages {stages[0]} to {stages[-1]}; the first and the last are the initiator's"
