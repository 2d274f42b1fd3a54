"""The aggregators against cases worked by hand, against what they promise, and against the library that has them too."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from holdfast.bench.aggregators import (
    AGGREGATORS,
    NoMajority,
    bucketing,
    buckets,
    centred_clipping,
    krum,
    krum_scores,
    mean,
    median,
    most_liars,
    squared_distances,
    trimmed_mean,
    voting,
)

ROBUST = [name for name in AGGREGATORS if name not in ("mean", "bucketing")]


def points(*values: float) -> Tensor:
    return torch.tensor([[value] for value in values]).float()


def test_in_the_plane_by_hand() -> None:
    stack = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [100.0, -100.0]])
    assert median(stack).tolist() == [2.0, 0.0]
    assert trimmed_mean(stack, 1).tolist() == pytest.approx([4 / 3, 2 / 3])
    assert krum_scores(stack, 1).tolist()[:4] == pytest.approx([8.0, 8.0, 8.0, 8.0])
    assert krum(stack, 1).tolist() == [0.0, 0.0]
    assert mean(stack).tolist() == pytest.approx([20.8, -19.2])


def test_krum_counts_the_nearest_without_itself() -> None:
    """Of 6 with 1 liar: three neighbours each. The middle of five close points wins over its edges."""
    stack = points(0, 1, 2, 3, 4, 50)
    assert krum_scores(stack, 1).tolist() == pytest.approx(
        [1 + 4 + 9, 1 + 1 + 4, 1 + 1 + 4, 1 + 1 + 4, 1 + 4 + 9, 46**2 + 47**2 + 48**2]
    )
    assert krum(stack, 1).item() == 1.0


def test_distances_of_close_vectors_do_not_cancel() -> None:
    base = torch.full((1000,), 1000.0)
    stack = torch.stack([base, base + 0.01])
    assert squared_distances(stack)[0, 1].item() == pytest.approx(0.1, rel=0.1)


def test_buckets_are_means_in_the_order_given() -> None:
    order = torch.tensor([4, 0, 1, 2, 3])
    assert buckets(points(0, 2, 4, 6, 10), order).flatten().tolist() == [5.0, 3.0, 6.0]
    assert bucketing(points(0, 2, 4, 6, 10), order=order).item() == 5.0


def test_clipping_limits_what_one_vector_can_move() -> None:
    centre = torch.zeros(3)
    stack = torch.stack([torch.zeros(3), torch.zeros(3), torch.tensor([0.0, 0.0, 1e6])])
    moved = centred_clipping(stack, centre=centre, radius=1.0)
    assert moved[2].item() <= 3 * 1.0 / 3 + 1e-6
    assert torch.equal(centred_clipping(torch.zeros(3, 3)), torch.zeros(3))


def test_a_vote_needs_more_than_half() -> None:
    assert voting(points(1, 1, 5)).item() == 1
    for tied in (points(1, 1, 5, 5), points(1, 2, 3), points(1, 5)):
        with pytest.raises(NoMajority):
            voting(tied)


@pytest.mark.parametrize(("name", "liars", "count"), [("trimmed-mean", 2, 4), ("krum", 1, 4), ("krum", 2, 6)])
def test_too_few_for_the_definition_are_refused(name: str, liars: int, count: int) -> None:
    with pytest.raises(ValueError, match=rf"{name} against {liars} liars needs {count + 1} vectors, got {count}"):
        AGGREGATORS[name](torch.zeros(count, 2), liars)
    AGGREGATORS[name](torch.zeros(count + 1, 2), liars)


def test_most_liars_is_what_krum_is_defined_for() -> None:
    for count in range(3, 12):
        krum(torch.zeros(count, 1), most_liars(count))
        with pytest.raises(ValueError, match="krum"):
            krum(torch.zeros(count, 1), most_liars(count) + 1)


@pytest.mark.parametrize("name", ROBUST)
def test_a_minority_far_away_moves_a_robust_aggregate_little(name: str) -> None:
    """With 7 equal honest ones of 9 the answer is theirs, or near it; the mean goes wherever the liars want."""
    generator = torch.Generator().manual_seed(3)
    honest = torch.randn(20, generator=generator)
    stack = torch.stack([honest] * 7 + [honest + 1e6] * 2)
    assert torch.linalg.vector_norm(AGGREGATORS[name](stack, 2) - honest) < 1e-3
    assert torch.linalg.vector_norm(mean(stack) - honest) > 1e5


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name not in ("bucketing", "krum")])
def test_the_order_of_the_vectors_does_not_matter(name: str) -> None:
    stack = points(3, 1, 1, 1, 7)
    answers = {round(AGGREGATORS[name](stack[list(order)], 1).item(), 5) for order in itertools.permutations(range(5))}
    assert len(answers) == 1


def test_the_library_says_the_same() -> None:
    """byzfl counts one neighbour more in Krum (n-f-1) than the paper (n-f-2)."""
    byzfl = pytest.importorskip("byzfl", exc_type=ImportError, reason="byzfl is not here, or not what it needs: torchvision")
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        stack = torch.randn(9, 40, generator=generator)
        centre = torch.randn(40, generator=generator)
        clipping = byzfl.CenteredClipping(None, 3, 2.0)
        clipping.m = centre.clone()
        assert torch.allclose(mean(stack), byzfl.Average()(stack))
        assert torch.allclose(median(stack), byzfl.Median()(stack))
        assert torch.allclose(trimmed_mean(stack, 2), byzfl.TrMean(2)(stack))
        assert torch.equal(krum(stack, 1), byzfl.Krum(2)(stack))
        assert torch.allclose(centred_clipping(stack, centre=centre, radius=2.0), clipping(stack))
