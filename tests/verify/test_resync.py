"""A claimed update must follow from one gradient, and that gradient be one's own in all but rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from holdfast.claim import StageState
from holdfast.config import OptimizerConfig
from holdfast.implied import implied_by
from holdfast.optimizer import AdamW, Moments
from holdfast.verify.resync import ULPS, Budget, Candidate, UpdateDistance, compare_updates, judge_update
from holdfast.verify.tolerance import EQUAL, UNLIKE, Agreement, Bound, Distance

CONFIG = OptimizerConfig(weight_decay=0.1)
RATE = 3e-3
BOUND = Bound(Distance(1e-4, 1e-3), Distance(3e-4, 3e-3))
COARSE = Bound(Distance(8e-3, 0.24), Distance(1e-2, 0.3))
DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"w": draw(8, 16, seed=seed, dtype=dtype), "b": draw(8, seed=seed + 1, dtype=dtype)}


def sealed(steps: int = 3, dtype: torch.dtype = torch.float32) -> StageState:
    """A state that has been trained for some steps, with a frozen parameter."""
    weights = {
        "w": draw(8, 16, seed=0, dtype=dtype) / 8,
        "b": torch.zeros(8, dtype=dtype),
        "frozen": torch.ones(2, dtype=dtype),
    }
    state = StageState(1, 0, 0, weights, Moments.zeros({name: weights[name] for name in ("w", "b")}).named())
    for step in range(steps):
        state = updated(state, gradients(10 * step + 1, dtype))
    return state


def updated(before: StageState, gradient: Mapping[str, Tensor]) -> StageState:
    moments = Moments.from_named(before.moments, before.updates)
    new, after = AdamW(CONFIG).step(before.weights, gradient, moments, RATE)
    return StageState(before.stage, before.version + 1, after.updates, {**before.weights, **new}, after.named())


def compared(before: StageState, claimed: StageState, gradient: Mapping[str, Tensor]) -> UpdateDistance:
    """`claimed` against what one computes oneself from `gradient`."""
    own = Candidate(updated(before, gradient) if gradient else before, gradient)
    return compare_updates(before, claimed, own, implied_by(CONFIG, RATE))


def with_moment(state: StageState, name: str, change: Callable[[Tensor], Tensor]) -> StageState:
    return replace(state, moments={**state.moments, name: change(state.moments[name])})


def with_weight(state: StageState, name: str, change: Callable[[Tensor], Tensor]) -> StageState:
    return replace(state, weights={**state.weights, name: change(state.weights[name])})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 30])
def test_an_honest_update_of_a_gradient_that_was_rounded_otherwise_is_within(steps: int, dtype: torch.dtype) -> None:
    before = sealed(steps, dtype)
    truth = gradients(99, dtype)
    nudge = 1 + (2.0**-22 if dtype is torch.float32 else 2.0**-8)
    other = {name: torch.where(draw(*g.shape, seed=5, dtype=torch.float32) > 1.5, g * nudge, g) for name, g in truth.items()}
    claimed = updated(before, other)
    found = compared(before, claimed, truth)
    assert found.follows
    assert 0 < found.gradient.overall < 1e-2
    assert 0 < found.drift < 1e-2
    assert judge_update(found, BOUND if dtype is torch.float32 else COARSE) is Agreement.WITHIN
    assert compared(before, updated(before, truth), truth) == UpdateDistance(EQUAL, 0.0, 0.0, dtype)


@given(st.integers(0, 10_000), st.integers(0, 20), st.sampled_from(DTYPES), st.floats(-6, 6))
def test_every_honest_update_follows_from_its_own_gradient(seed: int, steps: int, dtype: torch.dtype, decades: float) -> None:
    before = sealed(steps, dtype)
    own, other = ({name: g * 10**decades for name, g in gradients(seed + k, dtype).items()} for k in (0, 50))
    assert compared(before, updated(before, other), own).follows, "though it is another's"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_that_is_not_ones_own_is_seen_though_all_follows_from_it(dtype: torch.dtype) -> None:
    before = sealed(dtype=dtype)
    truth = gradients(99, dtype)
    for forged in (
        {name: -g for name, g in truth.items()},
        truth | {"w": truth["w"].roll(1, 0)},
        {n: 1.2 * g for n, g in truth.items()},
    ):
        found = compared(before, updated(before, forged), truth)
        assert found.follows
        assert judge_update(found, COARSE) is Agreement.GUILTY


def test_one_row_of_the_gradient_is_seen_in_the_rows() -> None:
    before, truth = sealed(), gradients(99, torch.float32)
    forged = {name: gradient.clone() for name, gradient in truth.items()}
    forged["w"][3] *= 1.5
    found = compared(before, updated(before, forged), truth)
    assert 0.2 < found.gradient.worst_row < 0.6


def consistent(before: StageState, claimed: StageState) -> StageState:
    """The weights that follow from the moments that are claimed: only the moments are forged."""
    formula = implied_by(CONFIG, RATE)
    return replace(claimed, weights={**claimed.weights, **{name: formula(name, before, claimed).weight for name in ("w", "b")}})


FORGERIES: Mapping[str, Callable[[StageState, StageState], StageState]] = {
    "weights moved": lambda own, before: with_weight(own, "w", lambda w: w + 1e-3),
    "one weight moved": lambda own, before: with_weight(own, "w", lambda w: w.index_fill(0, torch.tensor([0]), 0.5)),
    "weights kept": lambda own, before: with_weight(own, "w", lambda w: before.weights["w"]),
    "no decay": lambda own, before: with_weight(own, "w", lambda w: w + RATE * CONFIG.weight_decay * before.weights["w"] * 100),
    "twice the step": lambda own, before: with_weight(own, "w", lambda w: 2 * w - before.weights["w"]),
    "second moment gone": lambda own, before: with_moment(own, "w.exp_avg_sq", torch.zeros_like),
    "second moment kept": lambda own, before: with_moment(own, "b.exp_avg_sq", lambda v: 4 * before.moments["b.exp_avg_sq"]),
    "second moment of nothing, and weights that follow": lambda own, before: consistent(
        before, with_moment(own, "w.exp_avg_sq", lambda v: torch.full_like(v, 1e-12))
    ),
    "one second moment, and weights that follow": lambda own, before: consistent(
        before, with_moment(own, "w.exp_avg_sq", lambda v: torch.cat([v[:1] * 0.9, v[1:]]))
    ),
    "second moment negative": lambda own, before: with_moment(own, "w.exp_avg_sq", torch.neg),
    "first moment alone": lambda own, before: with_moment(own, "w.exp_avg", lambda m: 2 * m),
    "NaN": lambda own, before: with_weight(own, "b", lambda w: w * math.nan),
    "NaN moment": lambda own, before: with_moment(own, "b.exp_avg", lambda m: m * math.nan),
    "frozen weights moved": lambda own, before: with_weight(own, "frozen", lambda w: w + 1e-7),
    "a name more": lambda own, before: replace(own, weights={**own.weights, "more": torch.ones(1)}),
    "a moment less": lambda own, before: replace(own, moments={n: t for n, t in own.moments.items() if n != "b.exp_avg"}),
    "another shape": lambda own, before: with_weight(own, "w", torch.t),
    "another dtype": lambda own, before: with_moment(own, "w.exp_avg", Tensor.double),
    "another number of updates": lambda own, before: replace(own, updates=own.updates + 1),
    "another version": lambda own, before: replace(own, version=own.version + 1),
    "another stage": lambda own, before: replace(own, stage=2),
}


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_does_not_follow_is_guilty_however_near_it_is(name: str, dtype: torch.dtype) -> None:
    before = sealed(dtype=dtype)
    truth = gradients(99, dtype)
    own = updated(before, truth)
    claimed = FORGERIES[name](own, before)
    if name == "frozen weights moved" and dtype is torch.bfloat16:
        claimed = with_weight(own, "frozen", lambda w: w + 0.01)
    assert judge_update(compared(before, claimed, truth), COARSE) is Agreement.GUILTY


def test_a_second_moment_that_is_a_little_too_small_is_no_rounding() -> None:
    """Where gradients were tiny, exp_avg_sq is lost in every norm; AdamW divides by its root."""
    before = sealed()
    small = {name: 1e-6 * gradient for name, gradient in gradients(99, torch.float32).items()}
    truth = {name: torch.cat([small[name][:1], g[1:]]) for name, g in gradients(99, torch.float32).items()}
    own = updated(before, truth)
    second = own.moments["w.exp_avg_sq"].clone()
    second[0] *= 0.9
    claimed = consistent(before, with_moment(own, "w.exp_avg_sq", lambda _: second))
    found = compared(before, claimed, truth)
    assert found.gradient == EQUAL
    assert not found.follows


def test_nothing_but_a_few_ulps_is_forgiven() -> None:
    before = sealed()
    own = updated(before, gradients(99, torch.float32))
    eps = torch.finfo(torch.float32).eps
    within, beyond = (
        compared(before, with_weight(own, "w", lambda w, u=ulps: w * (1 + u * eps)), gradients(99, torch.float32))
        for ulps in (1, 2 * ULPS[torch.float32])
    )
    assert within.follows
    assert within.drift > 0, "but the budget counts it"
    assert not beyond.follows


def test_an_own_overflow_excuses_nobody() -> None:
    before = sealed()
    truth = gradients(99, torch.float32)
    overflown = {name: gradient * math.nan for name, gradient in truth.items()}
    assert judge_update(compared(before, updated(before, overflown), overflown), COARSE) is Agreement.WITHIN, "the same bytes"
    assert judge_update(compared(before, updated(before, truth), overflown), COARSE) is Agreement.GUILTY


def test_of_the_gradients_that_round_to_a_moment_the_nearest_counts() -> None:
    """In bf16 the last place of a moment is worth ten times as much of the gradient; an honest one is not charged with it."""
    before = sealed(30, torch.bfloat16)
    before = with_moment(before, "w.exp_avg", lambda m: 50 * m)
    truth = gradients(99, torch.bfloat16)
    nudged = {name: gradient * (1 + 2.0**-8) for name, gradient in truth.items()}
    own = updated(before, truth)
    found = compared(before, updated(before, nudged), truth)
    assert found.follows
    assert 0 < found.gradient.overall <= 1.01 * 2.0**-8
    shifted = with_moment(own, "w.exp_avg", lambda m: torch.nextafter(m, 9 * m))
    assert compared(before, shifted, truth).gradient.overall > 0.1, "a last place that no gradient near one's own explains"


def test_a_stage_of_which_nothing_is_trained() -> None:
    frozen = StageState(1, 0, 0, {"w": torch.ones(2)}, {})
    assert compared(frozen, frozen, {}).gradient == EQUAL
    assert compared(frozen, replace(frozen, weights={"w": torch.zeros(2)}), {}).gradient == UNLIKE


# -- the budget ----------------------------------------------------------------------------------------------------------


@given(st.floats(1e-9, 10), st.lists(st.tuples(st.integers(1, 3), st.floats(allow_nan=True, allow_infinity=True)), max_size=30))
def test_what_was_accepted_never_comes_to_more_than_the_limit(limit: float, drifts: list[tuple[int, float]]) -> None:
    budget = Budget(limit)
    accepted = dict.fromkeys((1, 2, 3), 0.0)
    for stage, drift in drifts:
        before = budget.left(stage)
        if budget.accept(stage, drift):
            accepted[stage] += drift
            assert drift >= 0
        else:
            assert budget.left(stage) == before
            assert not (drift >= 0) or accepted[stage] + drift > limit
    assert all(accepted[stage] <= limit and budget.left(stage) == pytest.approx(limit - accepted[stage]) for stage in accepted)


def test_a_patient_liar_is_stopped_by_the_budget_of_his_stage_alone() -> None:
    budget = Budget(1e-3)
    creeping = [budget.accept(2, 1e-4) for _ in range(20)]
    assert sum(creeping) in (9, 10)
    assert creeping == sorted(creeping, reverse=True)
    assert budget.accept(3, 9e-4)
    assert Budget(1e-3, dict(budget.spent)).left(2) == budget.left(2), "it can be kept in a checkpoint"


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_has_a_limit(limit: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Budget(limit)
