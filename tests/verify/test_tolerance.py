"""Distances: zero for equal bytes, never a number that lets NaN pass, and one replaced row is not lost among thousands."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from holdfast.verify.tolerance import (
    CAP,
    EQUAL,
    FLOOR,
    ROW_CAP,
    UNLIKE,
    Agreement,
    Bound,
    Distance,
    distance,
    distance_of_gradients,
    distance_of_norms,
    relative,
    units,
    verdict,
)

NAN, INF = math.nan, math.inf
BOUND = Bound(Distance(1e-6, 1e-5), Distance(3e-6, 3e-5))
SEEDS = st.integers(0, 2**31)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# -- hidden states and input gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 0.0])
def test_equal_bytes_are_at_no_distance_whatever_they_say(dtype: torch.dtype, value: float) -> None:
    tensor = draw(2, 3, 4, dtype=dtype)
    tensor[1, 2, 3] = value
    assert distance(tensor.clone(), tensor) == EQUAL
    assert verdict(distance(tensor.clone(), tensor), BOUND) is Agreement.WITHIN


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("whose", ["claimed", "own", "both", "both, elsewhere"])
def test_what_is_not_finite_never_passes(value: float, whose: str) -> None:
    own = draw(2, 3, 4)
    claimed = own.clone()
    if whose != "own":
        claimed[0, 0, 0] = value
    if whose != "claimed":
        own[(0, 0, 0) if whose != "both, elsewhere" else (1, 2, 3)] = value
    claimed[0, 1, 0] *= 1 + 1e-6  # another byte, and nothing that would be seen by itself
    assert verdict(distance(claimed, own), BOUND) is Agreement.GUILTY


@pytest.mark.parametrize(
    "claimed", [draw(2, 3, 5), draw(2, 12), draw(2, 3, 4, dtype=torch.bfloat16), draw(1, 2, 3, 4), torch.zeros(0)]
)
def test_another_shape_or_dtype_is_no_rounding_error(claimed: Tensor) -> None:
    assert distance(claimed, draw(2, 3, 4)) == UNLIKE
    assert verdict(UNLIKE, BOUND) is Agreement.GUILTY


@given(SEEDS, st.floats(1e-6, 1.0), st.sampled_from([1e-30, 1.0, 1e30]))
def test_a_tensor_moved_by_a_share_of_its_length_is_that_far_away(seed: int, share: float, scale: float) -> None:
    own = draw(3, 5, 8, seed=seed).double()
    noise = draw(3, 5, 8, seed=seed + 1).double()
    claimed = own + share * own.norm() * noise / noise.norm()
    found = distance(scale * claimed, scale * own)
    assert found.overall == pytest.approx(share, rel=1e-6)
    assert found.worst_row >= found.overall * FLOOR, "the worst row cannot be better than what all rows come to"


@given(SEEDS, st.integers(0, 14), st.floats(1e-4, 2.0))
def test_a_moved_row_is_seen_as_far_as_it_was_moved(seed: int, row: int, share: float) -> None:
    own = draw(3, 5, 8, seed=seed).double()
    flat = own.view(-1, 8).clone()
    typical = own.view(-1, 8).norm(dim=1).median()
    size = max(flat[row].norm().item(), FLOOR * typical.item())
    flat[row, 0] += share * size
    found = distance(flat.view_as(own), own)
    assert found.worst_row == pytest.approx(share, rel=1e-9)
    assert found.overall < found.worst_row


def test_a_replaced_row_among_thousands_hides_overall_but_not_in_the_rows() -> None:
    own = draw(16, 256, 8)
    claimed = own.clone()
    claimed[3, 100] = draw(8, seed=9)
    found = distance(claimed, own)
    assert found.overall < 0.05
    assert found.worst_row > 0.3


def test_a_tiny_row_is_measured_by_its_neighbours_and_a_huge_one_does_not_hide_them() -> None:
    own = draw(1, 100, 8)
    own[0, 0] *= 1e-12
    claimed = own.clone()
    claimed[0, 0, 0] += 1e-7
    assert distance(claimed, own).worst_row < 1e-6, "rounding errors of a tiny row come from its neighbours"
    claimed[0, 0] = own[0, 1]
    assert distance(claimed, own).worst_row > 1, "a tiny row cannot be filled"
    own[0, 2] *= 1e6
    claimed = own.clone()
    claimed[0, 3] *= 1.5
    assert distance(claimed, own).worst_row == pytest.approx(0.5, rel=0.5), "an attention sink moves no median"


def test_nothing_is_at_any_distance_from_zero_but_zero() -> None:
    zero = torch.zeros(2, 3, 4)
    assert distance(-zero, zero) == EQUAL, "the bytes differ, the numbers do not"
    assert distance(zero + 1e-30, zero) == UNLIKE


def test_small_and_large_dtypes_do_not_overflow() -> None:
    own = draw(2, 3, 4, dtype=torch.bfloat16) * 1e37
    found = distance(own * 1.5, own)
    assert found.overall == pytest.approx(0.5, rel=1e-2)


# -- norms and weight gradients ------------------------------------------------------------------------------------------


def test_a_unit_in_the_last_place_of_a_norm_says_nothing() -> None:
    own = (1.0, 3.0, 100.0)
    step = 2.0**-7
    assert distance_of_norms((1.0 + step, 3.0, 100.0), own, torch.bfloat16) == Distance(0.0, 0.0)
    assert distance_of_norms((1.0 + step, 3.0, 100.0), own, torch.float32).worst_row == pytest.approx(step, rel=1e-4)
    assert distance_of_norms((1.0 + 3 * step, 3.0, 100.0), own, torch.bfloat16).worst_row == pytest.approx(2 * step)
    assert distance_of_norms(own, own, torch.float32) == EQUAL
    assert distance_of_norms((NAN,), (NAN,), torch.float32) == EQUAL
    assert not distance_of_norms((NAN, 3.0, 100.0), own, torch.float32).fits(UNLIKE)
    assert distance_of_norms((1.0, 3.0), own, torch.float32) == UNLIKE


def test_gradients_are_measured_over_all_parameters_and_by_row() -> None:
    own = {"w": draw(16, 32), "b": draw(16, seed=1)}
    assert distance_of_gradients({}, own) == EQUAL
    errors = torch.zeros(16, 32)
    errors[5] = own["w"][5]
    found = distance_of_gradients({"w": errors}, own)
    assert found.worst_row == pytest.approx(1.0)
    assert found.overall == pytest.approx(own["w"][5].norm().item() / torch.cat([own["w"].flatten(), own["b"]]).norm().item())
    errors[5, 0] = NAN
    assert not distance_of_gradients({"w": errors}, own).fits(UNLIKE)


def test_a_parameter_without_a_gradient_to_speak_of_accuses_nobody() -> None:
    own = {"weight": draw(64, 64), "key_bias": 1e-9 * draw(64, seed=1)}
    assert distance_of_gradients({"key_bias": own["key_bias"]}, own).worst_row < 1e-7


def test_relative_over_several_tensors() -> None:
    own = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "c": torch.tensor([NAN])}
    assert relative({"a": torch.tensor([3.0]), "b": torch.tensor([4.5])}, own, ["a", "b"]) == pytest.approx(0.1)
    assert math.isnan(relative({"a": torch.tensor([NAN])}, own, ["a"]))
    assert relative(own, own, ["a", "b"]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", [1.0, 1.5, 2.0, 3e-5, -7.0, 1e30])
def test_units_in_the_last_place(dtype: torch.dtype, number: float) -> None:
    here = torch.tensor(number, dtype=dtype).abs()
    following = torch.nextafter(here, torch.tensor(INF, dtype=dtype))
    assert units(here, dtype).item() == pytest.approx((following.double() - here.double()).item())


# -- bounds and verdicts -------------------------------------------------------------------------------------------------


@given(*[st.floats(allow_nan=True, allow_infinity=True, min_value=None)] * 2)
def test_a_distance_is_within_or_beyond_and_never_both(overall: float, row: float) -> None:
    found = verdict(Distance(overall, row), BOUND)
    within = overall <= BOUND.alarm.overall and row <= BOUND.alarm.worst_row
    explained = overall <= BOUND.guilty.overall and row <= BOUND.guilty.worst_row
    assert found is (Agreement.WITHIN if within else Agreement.ALARM if explained else Agreement.GUILTY)
    if math.isnan(overall) or math.isnan(row):
        assert found is Agreement.GUILTY


@pytest.mark.parametrize(
    ("alarm", "guilty"),
    [
        (Distance(1e-6, 1e-5), Distance(1e-6, 3e-5)),
        (Distance(1e-6, 4e-5), Distance(3e-6, 3e-5)),
        (Distance(0.0, 1e-5), Distance(3e-6, 3e-5)),
        (Distance(1e-3, 1e-5), Distance(CAP * 1.01, 3e-5)),
        (Distance(1e-3, 1e-2), Distance(CAP, ROW_CAP * 1.01)),
        (Distance(NAN, 1e-5), Distance(3e-6, 3e-5)),
        (Distance(1e-6, 1e-5), Distance(3e-6, INF)),
    ],
)
def test_a_bound_out_of_order_or_above_the_cap_is_none(alarm: Distance, guilty: Distance) -> None:
    with pytest.raises(ValueError, match="needed is 0 < alarm < guilty"):
        Bound(alarm, guilty)


def test_the_largest_of_distances_keeps_a_nan() -> None:
    assert Distance.largest([Distance(1.0, 5.0), Distance(2.0, 3.0)]) == Distance(2.0, 5.0)
    largest = Distance.largest([Distance(1.0, NAN), Distance(2.0, 3.0)])
    assert largest.overall == 2.0
    assert math.isnan(largest.worst_row)


def test_beside_a_gradient_that_has_overflowed_nothing_is_small() -> None:
    """One parameter's own gradient is infinite: another's may not be forged under its cover, nor drift for nothing."""
    own = {"a": torch.tensor([INF, 1.0]), "b": torch.ones(3)}
    found = distance_of_gradients({"b": torch.full((3,), 2.0)}, own)
    assert verdict(found, BOUND) is Agreement.GUILTY
    assert math.isnan(relative({"a": own["a"], "b": torch.zeros(3)}, own, own))


@pytest.mark.parametrize("size", [1e200, 1.7e308, INF, NAN])
def test_numbers_beyond_the_squares_of_floats_raise_nothing(size: float) -> None:
    own = {"w": torch.full((2, 2), size, dtype=torch.float64), "none": torch.zeros(0, 4)}
    errors = {name: tensor.abs() for name, tensor in own.items()}
    assert verdict(distance_of_gradients(errors, own), BOUND) is Agreement.GUILTY
