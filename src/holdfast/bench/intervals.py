"""How sure a measured share is, and what share a lottery of checks should give.

`proportion` is the exact interval of Clopper and Pearson (1934): it covers the true share in at least 95 of 100 experiments,
at 0 of n and n of n too, where the interval of the normal approximation has no width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.errors import MissingExtra

CONFIDENCE = 0.95


def proportion(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The interval of the share that `successes` of `trials` stand for; None without trials.

    >>> low, high = proportion(100, 100)
    >>> round(low, 4), high
    (0.9638, 1.0)
    """
    assert 0 <= successes <= trials, f"{successes} of {trials}"
    if trials == 0:
        return None
    beta = _beta()
    tail = (1 - confidence) / 2
    failures = trials - successes
    low = float(beta.ppf(tail, successes, failures + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, failures)) if failures else 1.0
    return low, high


def chance_of_detection(probability: float, claims: int) -> float:
    """1-(1-p)^n: that at least one of n forged claims is drawn, where each is drawn with probability p.

    >>> chance_of_detection(0.1, 2)
    0.19
    """
    return round(1 - (1 - probability) ** claims, 12)


def expected_share(probability: float, claims: Sequence[int]) -> float | None:
    """The share of runs that should be caught, where each has its own number of forged claims; None without runs."""
    return sum(chance_of_detection(probability, n) for n in claims) / len(claims) if claims else None


def _beta() -> Any:
    try:
        from scipy.stats import beta
    except ImportError:
        raise MissingExtra("scipy", extra="bench", purpose="`holdfast bench`") from None
    return beta
