"""A shadow of another class takes the primary's new weights over, if they follow from its own gradient in all but rounding.

    exp_avg'     =  b1 exp_avg    + (1 - b1) g          the claim leaves one thing open: the gradient g that it implies
    exp_avg_sq'  =  b2 exp_avg_sq + (1 - b2) g^2        must follow from that g        to within ULPS units in the last place
    weights'     =  AdamW(weights, exp_avg', exp_avg_sq')   must follow from both      likewise

    g against one's own gradient   a Distance, judged by the calibrated bound of updates; of all g that round to the claimed
                                   exp_avg' the nearest counts, or the rounding of bf16 moments would drown everything
    the state against one's own    `drift`, which a budget adds up: a patient liar who stays inside every bound still creeps

Comparing weights alone would not do: AdamW divides by sqrt(exp_avg_sq), so a second moment that is too small by an amount
that no tolerance notices moves a weight as far as one likes, some steps later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from holdfast.claim import StageState
from holdfast.digest import same_bytes
from holdfast.verify.tolerance import (
    EQUAL,
    UNLIKE,
    Agreement,
    Bound,
    Distance,
    distance_of_gradients,
    relative,
    units,
    verdict,
)

ULPS: Mapping[torch.dtype, float] = {torch.float32: 4.0, torch.bfloat16: 2.0}
"""How far elementwise operations of unlike machines may be apart: fused or not, square root or its reciprocal."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A new state with the accumulated, clipped gradient that it was made of: what one computes oneself, and nobody sends."""

    state: StageState
    gradient: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Implied:
    """What a claimed first moment leaves of one parameter: the gradient (fp64), and what the formula makes of it.

    Gradients up to `rounding` away round to the same moment. `second` is given in fp64 with the `slack` that this leaves;
    `weight` in the parameter's dtype.
    """

    gradient: Tensor
    rounding: Tensor
    second: Tensor
    slack: Tensor
    weight: Tensor


Formula = Callable[[str, StageState, StageState], Implied]
"""(name, sealed state, claimed state) -> what must stand beside the claimed `NAME.exp_avg`; see holdfast.implied."""


@dataclass(frozen=True, slots=True)
class UpdateDistance:
    """How a claimed state differs from one's own: by its gradient, from the formula (in ulps, inf: not at all), and as a whole.

    `drift` is the greatest relative L2 among weights, first and second moments.
    """

    gradient: Distance
    ulps: float
    drift: float
    dtype: torch.dtype

    @property
    def follows(self) -> bool:
        """Whether moments and weights are what AdamW makes of the implied gradient; NaN does not."""
        return self.ulps <= ULPS[self.dtype]


def compare_updates(before: StageState, claimed: StageState, own: Candidate, formula: Formula) -> UpdateDistance:
    """Hold a primary's new state against one's own, both made from the sealed state `before`. No bad claim makes it raise."""
    mine = own.state
    trained = [name.removesuffix(".exp_avg") for name in mine.moments if name.endswith(".exp_avg")]
    dtype = mine.weights[trained[0]].dtype if trained else torch.float32
    if not _alike(claimed, mine) or not _untouched(before, claimed, set(mine.weights) - set(trained)):
        return UpdateDistance(UNLIKE, math.inf, math.inf, dtype)
    differing = [name for name in trained if not all(same_bytes(*pair) for pair in _parts(name, claimed, mine))]
    if not differing:
        return UpdateDistance(EQUAL, 0.0, 0.0, dtype)
    implied = {name: formula(name, before, claimed) for name in differing}
    errors = {name: _beyond_rounding(implied[name], own.gradient[name]) for name in differing}
    departures = [_departure(name, before, claimed, implied[name]) for name in differing]
    drifts = [relative(claimed.weights, mine.weights, trained)]
    for end in (".exp_avg", ".exp_avg_sq"):
        drifts.append(relative(claimed.moments, mine.moments, [f"{name}{end}" for name in trained]))
    return UpdateDistance(distance_of_gradients(errors, own.gradient), _greatest(departures), _greatest(drifts), dtype)


def judge_update(found: UpdateDistance, bound: Bound) -> Agreement:
    """The formula leaves no tolerance but a few ulps; the gradient has its bound. The budget is asked by who resynchronises."""
    return verdict(found.gradient, bound) if found.follows else Agreement.GUILTY


@dataclass(slots=True)
class Budget:
    """The sum of accepted drifts per stage may not pass `limit`. Not even rounding errors add up beyond what was planned for.

    Once it would, `accept` says False and adds nothing: from there on this stage is no longer checked by tolerance. The referee
    must re-execute its steps in the primary's class, or both holders be given one class.
    """

    limit: float
    spent: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"the limit of a budget is a positive number, got {self.limit}")

    def accept(self, stage: int, drift: float) -> bool:
        """Whether a resynchronisation of `stage` by `drift` is still inside the budget; if so it is booked.

        >>> budget = Budget(1.0)
        >>> [budget.accept(1, drift) for drift in (0.75, 0.5, 0.25, float("nan"))]
        [True, False, True, False]
        """
        total = self.spent.get(stage, 0.0) + drift
        if not 0 <= drift <= math.inf or not total <= self.limit:
            return False
        self.spent[stage] = total
        return True

    def left(self, stage: int) -> float:
        return self.limit - self.spent.get(stage, 0.0)


def _alike(claimed: StageState, own: StageState) -> bool:
    """Same stage, version, number of updates, names, shapes and dtypes."""
    if (claimed.stage, claimed.version, claimed.updates) != (own.stage, own.version, own.updates):
        return False
    pairs = ((claimed.weights, own.weights), (claimed.moments, own.moments))
    return all(
        one.keys() == other.keys()
        and all(one[name].shape == other[name].shape and one[name].dtype == other[name].dtype for name in one)
        for one, other in pairs
    )


def _untouched(before: StageState, claimed: StageState, frozen: set[str]) -> bool:
    return all(same_bytes(claimed.weights[name], before.weights[name]) for name in frozen)


def _parts(name: str, one: StageState, other: StageState) -> list[tuple[Tensor, Tensor]]:
    moments = [(one.moments[f"{name}{end}"], other.moments[f"{name}{end}"]) for end in (".exp_avg", ".exp_avg_sq")]
    return [(one.weights[name], other.weights[name]), *moments]


def _beyond_rounding(implied: Implied, own: Tensor) -> Tensor:
    """How far the nearest gradient that explains the claimed moment is from one's own, elementwise."""
    return ((implied.gradient - own.to(implied.gradient.device).double()).abs() - implied.rounding).clamp(min=0)


def _departure(name: str, before: StageState, claimed: StageState, implied: Implied) -> float:
    """In ulps of the numbers that were added: where a weight passes zero, its own ulp says nothing of the sum's rounding."""
    weight, old = claimed.weights[name], before.weights[name].to(implied.weight.device)
    here = weight.to(implied.weight.device)
    of_weights = _ulps((here.double() - implied.weight.double()).abs(), [here, implied.weight, old], weight.dtype)
    second = claimed.moments[f"{name}.exp_avg_sq"].to(implied.second.device)
    missing = ((second.double() - implied.second).abs() - implied.slack).clamp(min=0)
    return _greatest([of_weights, _ulps(missing, [second, implied.second], second.dtype)])


def _ulps(errors: Tensor, sizes: list[Tensor], dtype: torch.dtype) -> float:
    """The greatest of `errors` (fp64, not negative) in units of the last place of the largest of `sizes`, elementwise."""
    if errors.numel() == 0:
        return 0.0
    largest = torch.stack([size.double().abs() for size in sizes]).amax(dim=0)
    return (errors / units(largest, dtype)).max().item()


def _greatest(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)
