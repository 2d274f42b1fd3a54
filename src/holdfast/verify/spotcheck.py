"""Spot checks: which claims and whole steps of a stage are computed again, drawn from a secret seed after they were signed.

    what was forged                                       escapes its own draws with probability
    n claims, each drawn with p                           (1-p)^n
    whatever a stage did in one step, drawn with q        1-q            one draw for each forged update
    something in each of the W steps that are kept        ((1-p)^n (1-q))^W

Draws are independent, so nobody learns from a check when the next one comes. The last line is the chance that, when a lie is
found, its author's first one is older than what can still be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.claim import ClaimKey
from holdfast.seeds import derive

_RANGE = 2**63


@dataclass(frozen=True, slots=True)
class Sampling:
    """`seed` is the coordinator's secret; `claims` is p, `steps` is q, both probabilities.

    >>> from holdfast.claim import Direction
    >>> Sampling(1, claims=1.0).draws_claim(ClaimKey(0, 0, Direction.FORWARD, 1, 0)), Sampling(1).draws_step(0, 0, 1)
    (True, False)
    """

    seed: int
    claims: float = 0.0
    steps: float = 0.0

    @property
    def active(self) -> bool:
        return self.claims > 0 or self.steps > 0

    def draws_claim(self, key: ClaimKey) -> bool:
        """Whether the claim is computed again for itself."""
        where = (key.step, key.attempt, str(key.direction), key.stage, key.micro_batch)
        return derive(self.seed, "claim", *where) < self.claims * _RANGE

    def draws_step(self, step: int, attempt: int, stage: int, rate: float | None = None) -> bool:
        """Whether everything that the stage did in the step is computed again; `rate` replaces q where it is raised."""
        chance = self.steps if rate is None else max(rate, self.steps)
        return derive(self.seed, "step", step, attempt, stage) < chance * _RANGE


def escape(claims: int, p: float, q: float = 0.0, updates: int = 0) -> float:
    """The probability that none of `claims` forged claims (drawn with p) and `updates` forged stage-steps (q) is drawn.

    >>> round(escape(8, 0.1), 3), round(escape(0, 0.0, 0.1, updates=8), 3)
    (0.43, 0.43)
    """
    return (1 - p) ** claims * (1 - q) ** updates


def seats(names: tuple[str, ...], trusted: tuple[str, ...], seed: int, *labels: int) -> tuple[str, ...]:
    """The untrusted among `names` (primaries by stage) in a drawn order, the trusted where they were.

    >>> seats(("i", "w1", "w2", "w3", "i"), ("i",), 7, 10)
    ('i', 'w3', 'w1', 'w2', 'i')
    """
    places = [stage for stage, name in enumerate(names) if name not in trusted]
    order = sorted(places, key=lambda stage: derive(seed, "seat", *labels, stage))
    drawn = dict(zip(places, (names[stage] for stage in order), strict=True))
    return tuple(drawn.get(stage, name) for stage, name in enumerate(names))
