"""How sure a measured share is, and what share a lottery of checks should give.

`proportion` is the exact interval of Clopper and Pearson (1934): it covers the true share in at least 95 of 100 experiments,
at 0 of n and n of n too, where the interval of the normal approximation has no width.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.sweep.frame import require_scipy
from holdfast.verify.spotcheck import escape

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
    beta = require_scipy().beta
    tail = (1 - confidence) / 2
    failures = trials - successes
    low = float(beta.ppf(tail, successes, failures + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, failures)) if failures else 1.0
    return low, high


def expected_share(claims: float, steps: float, runs: Sequence[tuple[int, int]]) -> float | None:
    """The share of `runs` that a lottery should catch: the mean of 1 - (1-p)^n (1-q)^u; None without runs.

    Each run has n forged claims, drawn with probability p = `claims`, in u steps of a stage, drawn with q = `steps`.

    >>> round(expected_share(0.1, 0.0, [(2, 1), (0, 0)]), 3)
    0.095
    """
    return sum(1 - escape(n, claims, steps, u) for n, u in runs) / len(runs) if runs else None
