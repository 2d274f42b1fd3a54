"""1F1B: after a warm-up each stage alternates one forward and one backward pass, then drains (Narayanan et al., 2019).

K = 3, M = 4; a column is the time of a forward pass, a backward pass takes two:

    stage 0   F0 F1 F2             B0 B0 F3 B1 B1    B2 B2    B3 B3
    stage 1      F0 F1       B0 B0 F2 B1 B1 F3 B2 B2    B3 B3
    stage 2         F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3

Stage i holds at most K-i micro-batches between their forward and backward pass, so memory does not grow with M. Where
claims are verified before use it may hold twice as many: a tensor takes up to two slots a hop, the shadow's after the
stage's, and that is the slack. The order stays the same; starting the step with twice as many forward passes was slower.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.schedule.action import Action, Kind


def held(stages: int, stage: int, micro_batches: int, *, verified: bool = False) -> int:
    """How many micro-batches `stage` holds between their forward and backward pass, at most."""
    hops = stages - stage
    return min(micro_batches, 2 * hops if verified else hops)


def one_f_one_b(stages: int, stage: int, micro_batches: int) -> Iterator[Action]:
    """Warm-up, steady state and drain of `stage`.

    >>> print(*one_f_one_b(3, 0, 4))
    F0 F1 F2 B0 F3 B1 B2 B3
    >>> print(*one_f_one_b(3, 2, 4))
    F0 B0 F1 B1 F2 B2 F3 B3
    """
    assert 0 <= stage < stages, f"stage {stage} of {stages}"
    warm_up = held(stages, stage, micro_batches) - 1
    for m in range(warm_up):
        yield Action(Kind.FORWARD, m)
    for m in range(warm_up, micro_batches):
        yield Action(Kind.FORWARD, m)
        yield Action(Kind.BACKWARD, m - warm_up)
    for m in range(micro_batches - warm_up, micro_batches):
        yield Action(Kind.BACKWARD, m)
