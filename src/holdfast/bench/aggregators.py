"""The robust aggregators of federated learning, by their definitions: n vectors in, one out, up to f of them anybody's.

    name               of x_1 .. x_n, [n, d]                                              from
    mean               1/n sum x_j                                                        (no defence: the reference)
    median             middle of each coordinate; the mean of both middles for even n     Yin et al. 2018
    trimmed-mean       each coordinate's mean without its f least and f greatest          Yin et al. 2018
    krum               the x_i nearest to its n-f-2 nearest others, squared distances     Blanchard et al. 2017
    bucketing          the median of the means of buckets of two, drawn at random         Karimireddy et al. 2022
    centred-clipping   v + 1/n sum clip(x_j - v, tau), three times                        Karimireddy et al. 2021
    voting             the x that more than half of them are, to the byte; or none        (replicated computing)

They are written out here because the library that has them, byzfl, cannot be imported without torchvision: see
docs/aggregation.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from holdfast.digest import tensor_digest

Aggregator = Callable[[Tensor, int], Tensor]
"""From vectors [n, d] and the number f of liars to allow for, one vector [d]. Raises ValueError where n is too small."""

BUCKET = 2
CLIPPING_ROUNDS = 3


def mean(stack: Tensor, liars: int = 0) -> Tensor:
    """
    >>> mean(torch.tensor([[1.0], [2.0], [9.0]]))
    tensor([4.])
    """
    return stack.mean(0)


def median(stack: Tensor, liars: int = 0) -> Tensor:
    """
    >>> median(torch.tensor([[1.0], [2.0], [9.0]])), median(torch.tensor([[1.0], [2.0], [4.0], [9.0]]))
    (tensor([2.]), tensor([3.]))
    """
    ordered = stack.sort(0).values
    low, high = ordered[(len(stack) - 1) // 2], ordered[len(stack) // 2]
    return low + (high - low) / 2


def trimmed_mean(stack: Tensor, liars: int) -> Tensor:
    """
    >>> trimmed_mean(torch.tensor([[0.0], [2.0], [4.0], [99.0]]), 1)
    tensor([3.])
    """
    _need(stack, 2 * liars + 1, "trimmed-mean", liars)
    return stack.sort(0).values[liars : len(stack) - liars].mean(0)


def krum(stack: Tensor, liars: int) -> Tensor:
    """
    >>> krum(torch.tensor([[0.0], [1.0], [2.5], [3.0], [99.0]]), 1)
    tensor([2.5000])
    """
    return stack[krum_scores(stack, liars).argmin()]


def krum_scores(stack: Tensor, liars: int) -> Tensor:
    """The sum of the squared distances of each vector to its n-f-2 nearest others, [n].

    >>> krum_scores(torch.tensor([[0.0], [1.0], [2.5], [3.0], [99.0]]), 1)[:4]
    tensor([7.2500, 3.2500, 2.5000, 4.2500])
    """
    _need(stack, 2 * liars + 3, "krum", liars)
    distances = squared_distances(stack)
    return distances.sort(1).values[:, 1 : len(stack) - liars - 1].sum(1)


def squared_distances(stack: Tensor) -> Tensor:
    """Of every pair, [n, n]; by differences, not products, which would cancel where vectors are close."""
    return torch.cdist(stack, stack, compute_mode="donot_use_mm_for_euclid_dist").square()


def bucketing(stack: Tensor, liars: int = 0, order: Tensor | None = None) -> Tensor:
    """The median of the bucket means; `order` is the permutation [n] that fills the buckets (None: one from a fixed seed).

    >>> bucketing(torch.tensor([[0.0], [2.0], [3.0], [5.0], [9.0], [99.0]]), order=torch.arange(6))
    tensor([4.])
    """
    return median(buckets(stack, _order(len(stack)) if order is None else order))


def buckets(stack: Tensor, order: Tensor) -> Tensor:
    """The means of buckets of BUCKET vectors in that order, the last of what is left, [ceil(n / BUCKET), d]."""
    return torch.stack([part.mean(0) for part in torch.split(stack[order], BUCKET)])


def centred_clipping(stack: Tensor, liars: int = 0, centre: Tensor | None = None, radius: float | None = None) -> Tensor:
    """Move `centre` by the mean of what is clipped to `radius`, CLIPPING_ROUNDS times.

    The paper starts from the aggregate of the last step and leaves the radius to its user; without them the coordinate-wise
    median and the median distance from it are taken, which is kinder than a guess.

    >>> centred_clipping(torch.tensor([[0.0], [1.0], [101.0]]), centre=torch.tensor([0.0]), radius=3.0).round(decimals=3)
    tensor([1.9260])
    """
    centre = median(stack) if centre is None else centre
    if radius is None:
        radius = float(torch.linalg.vector_norm(stack - centre, dim=1).median())
    for _ in range(CLIPPING_ROUNDS):
        moves = stack - centre
        lengths = torch.linalg.vector_norm(moves, dim=1, keepdim=True)
        centre = centre + (moves * (radius / lengths.clamp(min=torch.finfo(stack.dtype).tiny)).clamp(max=1.0)).mean(0)
    return centre


def voting(stack: Tensor, liars: int = 0) -> Tensor:
    """Raises NoMajority where no vector has more than half of the votes.

    >>> voting(torch.tensor([[1.0], [7.0], [1.0]]))
    tensor([1.])
    """
    digests = [tensor_digest(vector.contiguous()) for vector in stack]
    winner, votes = Counter(digests).most_common(1)[0]
    if 2 * votes <= len(stack):
        raise NoMajority(f"of {len(stack)} votes the most equal are {votes}")
    return stack[digests.index(winner)]


class NoMajority(ValueError):
    """Voting elects nobody."""


AGGREGATORS: Mapping[str, Aggregator] = {
    "mean": mean,
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "bucketing": bucketing,
    "centred-clipping": centred_clipping,
    "voting": voting,
}


def most_liars(count: int) -> int:
    """The most liars among `count` that Krum, the most demanding, is defined for: 2f + 2 < n.

    >>> most_liars(8), most_liars(3)
    (2, 0)
    """
    return max(0, (count - 3) // 2)


def _order(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))


def _need(stack: Tensor, count: int, name: str, liars: int) -> None:
    if len(stack) < count:
        raise ValueError(f"{name} against {liars} liars needs {count} vectors, got {len(stack)}")
