"""Sealed states of one cut put together again for another: names are those of the whole model, so nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.claim import StageState
from holdfast.partition import Plan

KINDS = ("exp_avg", "exp_avg_sq")


def recut(states: Mapping[int, StageState], plan: Plan) -> dict[int, StageState] | None:
    """One state for each stage of `plan`; None where a stage would unite parameters that were updated unlike often (`skip`)."""
    weights = {name: tensor for state in states.values() for name, tensor in state.weights.items()}
    moments = {name: tensor for state in states.values() for name, tensor in state.moments.items()}
    updates = {name.rpartition(".")[0]: state.updates for state in states.values() for name in state.moments}
    version = next(iter(states.values())).version
    found = {}
    for stage, names in enumerate(plan.stage_parameters):
        trainable = plan.trainable_of(stage)
        counts = {updates[name] for name in trainable}
        if len(counts) > 1:
            return None
        own = {f"{name}.{kind}": moments[f"{name}.{kind}"] for name in trainable for kind in KINDS}
        count = counts.pop() if counts else 0
        found[stage] = StageState(stage, version, count, {name: weights[name] for name in names}, own)
    return found
