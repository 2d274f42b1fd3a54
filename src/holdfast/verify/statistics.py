"""Statistics of traffic: what a receiver sees of a tensor without computing anything again. They accuse nobody.

    statistic   of x [B, S, D], m the mean of its rows [D], M the moving average of m       seen by it
    norm        log |x|                                                                     scaling, zeros, noise
    cosine      cos(m, M)                                                                   sign flips, noise
    flips       share of features in which m and M have unlike signs                        sign flips

A value is odd outside [Q1 - width * IQR, Q3 + width * IQR] of the last ones (Tukey's fences). Odd tensors do not enter the
history, or an attacker would teach it; after `patience` odd ones in a row the history begins anew, because honest traffic moves
on too. An honest run on another input, a replay or one replaced row is never seen: a first line, no verdict.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

MOMENTUM = 0.8
LEAST_SPREAD = {"norm": 0.05, "cosine": 0.02, "flips": 0.02}
"""Interquartile ranges are taken for at least this: a history that happens to be narrow would call everything odd."""


@dataclass(frozen=True, slots=True)
class Odd:
    """`statistic` came out as `value`, outside its fences."""

    statistic: str
    value: float


@dataclass(slots=True)
class _Stream:
    mean: Tensor | None = None
    values: dict[str, deque[float]] = field(default_factory=dict)
    in_a_row: int = 0


class Monitor:
    """Watches streams of tensors by name, one a (direction, stage); keeps one mean row and `history` numbers of each."""

    def __init__(self, history: int = 32, warmup: int = 8, width: float = 3.0, patience: int = 16) -> None:
        self._history = history
        self._warmup = warmup
        self._width = width
        self._patience = patience
        self._streams: dict[Hashable, _Stream] = {}

    def observe(self, name: Hashable, tensor: Tensor) -> Odd | None:
        """Take the next tensor [B, S, D] of a stream; what is odd about it, if anything is."""
        stream = self._streams.setdefault(name, _Stream())
        rows = tensor.detach().float().flatten(0, -2)
        mean = rows.mean(0)
        values = _statistics(rows, mean, stream.mean)
        odd = next((Odd(name, value) for name, value in values.items() if self._is_odd(name, value, stream)), None)
        if odd is not None:
            stream.in_a_row += 1
            if stream.in_a_row < self._patience:
                return odd
            self._streams[name] = stream = _Stream()
        stream.in_a_row = 0
        for statistic, value in values.items():
            stream.values.setdefault(statistic, deque(maxlen=self._history)).append(value)
        stream.mean = mean if stream.mean is None else MOMENTUM * stream.mean + (1 - MOMENTUM) * mean
        return odd

    def _is_odd(self, statistic: str, value: float, stream: _Stream) -> bool:
        if not math.isfinite(value):
            return True
        known = stream.values.get(statistic, ())
        if len(known) < self._warmup:
            return False
        q1, q3 = torch.quantile(torch.tensor(tuple(known), dtype=torch.float64), torch.tensor([0.25, 0.75]).double()).tolist()
        reach = self._width * max(q3 - q1, LEAST_SPREAD[statistic])
        return not q1 - reach <= value <= q3 + reach


def _statistics(rows: Tensor, mean: Tensor, before: Tensor | None) -> dict[str, float]:
    norm = float(torch.linalg.vector_norm(rows))
    values = {"norm": math.log(norm) if 0 < norm < math.inf else math.inf}
    if before is not None:
        values["cosine"] = float(torch.nn.functional.cosine_similarity(mean, before, dim=0))
        values["flips"] = float((mean.sign() != before.sign()).float().mean())
    return values
