"""A whole model's weights and moments cut into the states of stages: names are those of the model, so nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from holdfast.claim import StageState, version_in
from holdfast.partition import Plan

KINDS = ("exp_avg", "exp_avg_sq")


class UnlikeAge(ValueError):
    """`stage` would unite parameters that took these numbers of updates, because `skip` left stages out of some."""

    def __init__(self, stage: int, updates: list[int]) -> None:
        super().__init__(f"stage {stage} would unite parameters with {updates} updates (stages were skipped)")


def staged(
    plan: Plan, version: int, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], updates: Mapping[str, int]
) -> dict[int, StageState]:
    """One state for each stage of `plan`, of tensors by their names in the whole model; `updates` by trainable parameter.

    Raises UnlikeAge where a stage cannot count its updates.
    """
    found = {}
    for stage, names in enumerate(plan.stage_parameters):
        trainable = plan.trainable_of(stage)
        counts = {updates[name] for name in trainable}
        if len(counts) > 1:
            raise UnlikeAge(stage, sorted(counts))
        own = {f"{name}.{kind}": moments[f"{name}.{kind}"] for name in trainable for kind in KINDS}
        count = counts.pop() if counts else 0
        found[stage] = StageState(stage, version, count, {name: weights[name] for name in names}, own)
    return found


def recut(states: Mapping[int, StageState], plan: Plan) -> dict[int, StageState] | None:
    """Sealed states of one cut put together again for another; None where ages forbid it."""
    weights = {name: tensor for state in states.values() for name, tensor in state.weights.items()}
    moments = {name: tensor for state in states.values() for name, tensor in state.moments.items()}
    updates = {name.rpartition(".")[0]: state.updates for state in states.values() for name in state.moments}
    version = version_in(states)
    try:
        return staged(plan, version, weights, moments, updates)
    except UnlikeAge:
        return None
