"""GPipe: every stage runs all forward passes of the step, then all backward passes in index order (Huang et al., 2019).

K = 3, M = 4; a column is the time of a forward pass, a backward pass takes two:

    stage 0   F0 F1 F2 F3                   B0 B0 B1 B1 B2 B2 B3 B3
    stage 1      F0 F1 F2 F3          B0 B0 B1 B1 B2 B2 B3 B3
    stage 2         F0 F1 F2 F3 B0 B0 B1 B1 B2 B2 B3 B3

Backward passes go in index order, not in reverse: gradients are added in index order, and another order gives other bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.schedule.action import Action, Kind


def gpipe(stages: int, stage: int, micro_batches: int) -> Iterator[Action]:
    """The order of `stage`: the same for all.

    >>> print(*gpipe(3, 0, 4))
    F0 F1 F2 F3 B0 B1 B2 B3
    """
    assert 0 <= stage < stages, f"stage {stage} of {stages}"
    for m in range(micro_batches):
        yield Action(Kind.FORWARD, m)
    for m in range(micro_batches):
        yield Action(Kind.BACKWARD, m)
