"""How much traffic varies with the data: what the micro-batches of one step have in common, and what each has for itself.

    mean      x = 1/M sum x_j            shared by all data: of weight gradients this is the update, the rest is noise
    cosine    mean of cos(x_j, x_k) over pairs
    spread    rms |x_j - x| / |x|
    signal to noise    (|x|^2 - s^2/M) / s^2,  s^2 = 1/(M-1) sum |x_j - x|^2: what is shared, against what is not

Aggregation keeps the mean. Of weight gradients that is all that anybody wants; of activations it is all that says nothing about
the sample.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from holdfast.bench.outliers import TINY, VIEWS, view
from holdfast.bench.traffic import WEIGHTS, Window


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one stage in one step; `kind` is forward (activations), backward (their gradients) or weight gradient."""

    seed: int
    kind: str
    view: str
    stage: int
    step: int
    cosine: float
    spread: float
    signal_to_noise: float


@dataclass(frozen=True, slots=True)
class SpreadRow:
    """Medians over steps and seeds, with the quartiles of the cosine."""

    kind: str
    view: str
    stage: str
    windows: int
    cosine: float
    cosine_low: float
    cosine_high: float
    spread: float
    signal_to_noise: float


def spreads(window: Window, seed: int) -> list[Spread]:
    """One for each view; a weight gradient has no rows of samples, so only the whole."""
    views = VIEWS[:1] if window.kind == WEIGHTS else VIEWS
    stacks = {name: view(window.honest, window.shape, name) for name in views}
    return [Spread(seed, window.kind, name, window.stage, window.step, *_measure(stack)) for name, stack in stacks.items()]


def spread_rows(found: Sequence[Spread]) -> list[SpreadRow]:
    """By kind, view and stage, and over all stages."""
    groups: dict[tuple[str, str, str], list[Spread]] = {}
    for one in found:
        groups.setdefault((one.kind, one.view, "all"), []).append(one)
    for one in sorted(found, key=lambda one: one.stage):
        groups.setdefault((one.kind, one.view, str(one.stage)), []).append(one)
    return [_row(*key, group) for key, group in groups.items()]


def _row(kind: str, name: str, stage: str, group: Sequence[Spread]) -> SpreadRow:
    cosines = [one.cosine for one in group]
    low, middle, high = statistics.quantiles(cosines, n=4) if len(cosines) > 1 else cosines * 3
    return SpreadRow(
        kind,
        name,
        stage,
        len(group),
        middle,
        low,
        high,
        statistics.median(one.spread for one in group),
        statistics.median(one.signal_to_noise for one in group),
    )


def _measure(stack: Tensor) -> tuple[float, float, float]:
    """Cosine, spread and signal to noise of a stack [M, d].

    >>> import torch
    >>> _measure(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    (0.0, 1.0, 0.0)
    """
    count = len(stack)
    stack = stack.double()
    mean = stack.mean(0)
    unit = functional.normalize(stack, dim=1)
    cosine = float((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1)))
    around, own = float((stack - mean).square().sum()), float(mean.square().sum())
    noise = max(around / (count - 1), TINY)
    return cosine, float((around / count / max(own, TINY)) ** 0.5), max(0.0, own - noise / count) / noise
