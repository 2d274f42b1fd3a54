"""Tests for a lie that look at values alone: how far one micro-batch's tensor is from the others of its step, or from the past.

    test               score of x_j among x_1 .. x_M, [M, d]; larger is odder
    voting             1 where no more than half of them are x_j, to the byte; nothing to calibrate
    median             |x_j - a| / |a|, a their coordinate-wise median                 likewise trimmed-mean, centred-clipping
    krum               its sum of squared distances, divided by the median one
    bucketing          |b - a| / |a|, b the mean of its bucket, a the median of those
    cosine             1 - cos(x_j, mean of the others)
    norm               | log |x_j| - median of the last steps |                        of the past
    cosine-past        1 - cos(x_j, moving average)                                    of the past

Two views: the whole tensor, as a federated server would take it, and the mean of its B*S rows, which forgets the sample as far
as possible. The past is what honest steps left: no liar ever gets into it here, which is kinder than real.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.bench.aggregators import BUCKET, buckets, centred_clipping, krum_scores, median, most_liars, trimmed_mean

HISTORY = 16
"""Steps whose norms are remembered."""
MOMENTUM = 0.8
TINY = 1e-30

VIEWS = ("whole", "mean row")


@dataclass
class Past:
    """What a receiver keeps of one stage and direction in one view: norms of the last steps, a moving average, a centre."""

    norms: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    average: Tensor | None = None
    centre: Tensor | None = None

    def learn(self, stack: Tensor) -> None:
        """Take an honest step in, [M, d]."""
        self.norms.append(float(_log_norms(stack).median()))
        mean = stack.mean(0)
        self.average = mean if self.average is None else MOMENTUM * self.average + (1 - MOMENTUM) * mean
        self.centre = centred_clipping(stack, centre=self.centre)


Test = Callable[[Tensor, Past], Tensor]
"""Scores [M] of a stack [M, d]."""


def view(stack: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """[M, B*S*D] as it is, or the means of rows [M, D]; `shape` is [B, S, D]."""
    return stack if name == "whole" else stack.reshape(len(stack), -1, shape[-1]).mean(1)


def _voting(stack: Tensor, past: Past) -> Tensor:
    equal = torch.tensor([[torch.equal(one, other) for other in stack] for one in stack]).sum(1)
    return (2 * equal <= len(stack)).float()


def _from_median(stack: Tensor, past: Past) -> Tensor:
    return _relative(stack, median(stack))


def _from_trimmed_mean(stack: Tensor, past: Past) -> Tensor:
    return _relative(stack, trimmed_mean(stack, most_liars(len(stack))))


def _from_centre(stack: Tensor, past: Past) -> Tensor:
    return _relative(stack, centred_clipping(stack, centre=past.centre))


def _krum(stack: Tensor, past: Past) -> Tensor:
    scores = krum_scores(stack, most_liars(len(stack)))
    return scores / scores.median().clamp(min=TINY)


def _bucketing(stack: Tensor, past: Past) -> Tensor:
    """Buckets are drawn anew in each step, from how many were seen before."""
    order = torch.randperm(len(stack), generator=torch.Generator().manual_seed(len(past.norms)))
    means = buckets(stack, order)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return _relative(means, median(means))[places // BUCKET]


def _cosine(stack: Tensor, past: Past) -> Tensor:
    others = (stack.sum(0) - stack) / (len(stack) - 1)
    return 1 - functional.cosine_similarity(stack, others, dim=1)


def _norm(stack: Tensor, past: Past) -> Tensor:
    if not past.norms:
        return torch.zeros(len(stack))
    return (_log_norms(stack) - torch.tensor(sorted(past.norms)).median()).abs()


def _cosine_past(stack: Tensor, past: Past) -> Tensor:
    if past.average is None:
        return torch.zeros(len(stack))
    return 1 - functional.cosine_similarity(stack, past.average.unsqueeze(0), dim=1)


TESTS: Mapping[str, Test] = {
    "voting": _voting,
    "median": _from_median,
    "trimmed-mean": _from_trimmed_mean,
    "krum": _krum,
    "bucketing": _bucketing,
    "centred-clipping": _from_centre,
    "cosine": _cosine,
    "norm": _norm,
    "cosine-past": _cosine_past,
}
ABSOLUTE = {"voting": 0.5}
"""Tests whose threshold is part of them."""


def scores(stack: Tensor, past: Past) -> dict[str, Tensor]:
    """Every test's scores of one stack; what is no number is as odd as can be."""
    return {name: torch.nan_to_num(test(stack, past), nan=math.inf) for name, test in TESTS.items()}


def _relative(stack: Tensor, centre: Tensor) -> Tensor:
    distances: Tensor = torch.linalg.vector_norm(stack - centre, dim=1) / torch.linalg.vector_norm(centre).clamp(min=TINY)
    return distances


def _log_norms(stack: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(stack, dim=1)
    return norms.clamp(min=TINY).log()
