"""Cuts for machines in a given order, by dynamic programming: the busiest device of a step has as little to do as can be.

    worker of stage i      its own layers [lo, hi)  +  those that it shadows, [before, lo)  of stage i-1

A state is the range of one stage, since what the next worker computes depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from holdfast.partition import Range

if TYPE_CHECKING:
    from holdfast.placement.place import Layers, Load

COARSE = 40
"""Layers beyond which boundaries are looked for at every second, third, ... layer only."""


def best_cut(load: Load, speeds: Sequence[float], limits: Sequence[int | None]) -> Layers:
    """One range a stage; `speeds[i]` and `limits[i]` (bytes) are those of its worker. Where nothing fits, the best without
    limits. Of equally busy ones the least work in sum.
    """
    found = _search(load, speeds, limits)
    return found if found is not None else _search(load, speeds, [None] * len(limits)) or ()


def _search(load: Load, speeds: Sequence[float], limits: Sequence[int | None]) -> Layers | None:
    count, stages = len(load.layer_s), len(speeds)
    total = [0.0]
    for seconds in load.layer_s:
        total.append(total[-1] + seconds)
    stride = max(1, min(-(-count // COARSE), count // stages))
    ends = sorted({*range(stride, count, stride), count})
    best: dict[Range, tuple[float, float, Layers]] = {}
    for stage in range(stages):
        fresh: dict[Range, tuple[float, float, Layers]] = {}
        befores = best if stage else {(0, 0): (0.0, 0.0, ())}
        extra = (load.before_s if stage == 0 else 0.0) + (load.after_s if stage == stages - 1 else 0.0)
        for (before, lo), (busiest, work, ranges) in befores.items():
            for hi in ends:
                if hi <= lo or (hi == count) != (stage == stages - 1):
                    continue
                shadowed = load.shadowed and stage >= 2
                seconds = (total[hi] - total[lo] + extra + (total[lo] - total[before]) * shadowed) / speeds[stage]
                found = (max(busiest, seconds), work + seconds)
                if found >= fresh.get((lo, hi), (math.inf, 0.0, ()))[:2]:
                    continue
                held = ((lo, hi), (before, lo)) if shadowed else ((lo, hi),)
                limit = limits[stage]
                if limit is None or load.memory(held) <= limit:
                    fresh[lo, hi] = (*found, (*ranges, (lo, hi)))
        best = fresh
    return min(best.values(), default=(0.0, 0.0, None), key=lambda found: found[:2])[2]
