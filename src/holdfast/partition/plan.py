"""A plan says which stage holds which layers and parameters: a pure function of the model's shape, costs and speeds.

    layers   0 1 2 | 3 4 5 6 | 7 8          K stages, ranges [lo, hi), every stage at least one layer
    stage        0 |       1 |   2          the largest stage time is as small as it can be

Parameters keep their whole-model names and order. A tensor shared by embedding and head is listed once, under stage 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from holdfast.errors import PartitionError
from holdfast.partition.families import Family, family_of
from holdfast.partition.lora import Lora
from holdfast.partition.skeleton import causal_family, skeleton

if TYPE_CHECKING:
    from holdfast.partition.costs import Costs

Range = tuple[int, int]


def layer_words(layers: Range) -> str:
    """A range [lo, hi) for people, who count to the last one.

    >>> layer_words((0, 1)), layer_words((1, 3))
    ('layer 0', 'layers 1 to 2')
    """
    lo, hi = layers
    return f"layer {lo}" if hi - lo == 1 else f"layers {lo} to {hi - 1}"


@dataclass(frozen=True, slots=True)
class Plan:
    """How one model is cut into K stages.

    `costs` are relative forward times of the stages, their mean 1. `tied` is the head's name and the name of the tensor that
    stage 0 owns (None: untied). `trainable` are the parameters that an optimizer updates: all of them, but for LoRA.
    """

    model_type: str
    layers: tuple[Range, ...]
    costs: tuple[float, ...]
    model_order: tuple[str, ...]
    stage_parameters: tuple[tuple[str, ...], ...]
    shapes: dict[str, tuple[int, ...]]
    trainable: frozenset[str]
    tied: tuple[str, str] | None
    width: int
    vocabulary: int
    lora: Lora | None = None

    @property
    def stages(self) -> int:
        return len(self.layers)

    @property
    def parameter_counts(self) -> tuple[int, ...]:
        """Parameters that each stage owns; the last stage's copy of a tied head is not counted."""
        return tuple(sum(math.prod(self.shapes[name]) for name in names) for names in self.stage_parameters)

    @property
    def parameters(self) -> int:
        return sum(self.parameter_counts)

    def trainable_of(self, stage: int) -> tuple[str, ...]:
        """The parameters of `stage` that are updated, in model order."""
        return tuple(name for name in self.stage_parameters[stage] if name in self.trainable)

    def stage_of(self, name: str) -> int:
        return next(stage for stage, names in enumerate(self.stage_parameters) if name in names)

    def parameter_bytes(self, dtype: torch.dtype) -> tuple[int, ...]:
        return tuple(count * dtype.itemsize for count in self.parameter_counts)


def cut(
    layer_costs: Sequence[float],
    cost_before: float = 0.0,
    cost_after: float = 0.0,
    stages: int = 2,
    speeds: Sequence[float] | None = None,
) -> tuple[Range, ...]:
    """Ranges [lo, hi) of layers for each stage, so that the slowest stage is as fast as can be.

    Among the cuts with that bottleneck it takes the most even one (least sum of squared times).

    >>> cut([1, 1, 1, 1, 1, 1], cost_after=3, stages=3)
    ((0, 2), (2, 5), (5, 6))
    """
    count = len(layer_costs)
    speeds = tuple(speeds) if speeds is not None else (1.0,) * stages
    if stages < 1 or stages > count:
        most = f"2 to {count} stages" if count > 2 else "2 stages" if count == 2 else "a model of at least 2 layers"
        raise PartitionError(f"{stages} stages for a model of {count} layers; give {most}, one layer each at least")
    if len(speeds) != stages or not all(math.isfinite(speed) and speed > 0 for speed in speeds):
        raise PartitionError(f"speeds {speeds}: one positive number for each of {stages} stages is needed")
    if not all(math.isfinite(cost) and cost >= 0 for cost in (*layer_costs, cost_before, cost_after)):
        raise PartitionError("layer costs must be finite and not negative")
    total = [0.0]
    for cost in layer_costs:
        total.append(total[-1] + cost)

    def time(stage: int, lo: int, hi: int) -> float:
        extra = (cost_before if stage == 0 else 0.0) + (cost_after if stage == stages - 1 else 0.0)
        return (total[hi] - total[lo] + extra) / speeds[stage]

    bottleneck = _best(count, stages, lambda so_far, stage, lo, hi: max(so_far, time(stage, lo, hi)))[0]

    def squares(so_far: float, stage: int, lo: int, hi: int) -> float:
        spent = time(stage, lo, hi)
        return so_far + spent * spent if spent <= bottleneck else math.inf

    return _best(count, stages, squares)[1]


def _best(count: int, stages: int, extend: Any) -> tuple[float, tuple[Range, ...]]:
    """Dynamic programming over prefixes: best[hi] is the best cut of layers [0, hi) into the stages so far."""
    best: dict[int, tuple[float, tuple[Range, ...]]] = {0: (0.0, ())}
    for stage in range(stages):
        left = stages - stage - 1
        ends = (count,) if left == 0 else range(stage + 1, count - left + 1)
        best = {
            hi: min(
                ((extend(value, stage, lo, hi), (*ranges, (lo, hi))) for lo, (value, ranges) in best.items() if lo < hi),
                key=lambda found: found[0],
            )
            for hi in ends
        }
    return best[count]


def make_plan(
    config: Any,
    stages: int,
    *,
    sequence_length: int = 64,
    speeds: Sequence[float] | None = None,
    lora: Lora | None = None,
    measure: bool = False,
) -> Plan:
    """Cut the model of a prepared config into `stages`. Raises PartitionError where that cannot be done.

    Costs are estimated in floating-point operations of one forward pass, or (`measure`) timed on this machine.
    """
    costs = costs_of(config, sequence_length, measure=measure)
    return planned(config, cut(costs.layers, costs.before, costs.after, stages, speeds), costs, lora)


def costs_of(config: Any, sequence_length: int, *, measure: bool = False) -> Costs:
    """What each layer costs: floating-point operations a token, or (`measure`) seconds for one sequence on this machine."""
    from holdfast.partition.costs import estimate_costs, measure_costs

    family_of(config)
    if measure:
        return measure_costs(config, sequence_length)
    model = skeleton(config)
    return estimate_costs(config, model, causal_family(config, model), sequence_length)


def planned(config: Any, ranges: Sequence[Range], costs: Costs, lora: Lora | None = None) -> Plan:
    """The plan with the given cut. Raises PartitionError where it does not cover the model's layers in order."""
    spent = [sum(costs.layers[lo:hi]) for lo, hi in ranges]
    spent[0] += costs.before
    spent[-1] += costs.after
    mean = sum(spent) / len(spent) or 1.0
    return plan_from(config, ranges, [cost / mean for cost in spent], lora)


def plan_from(config: Any, layers: Sequence[Range], costs: Sequence[float], lora: Lora | None = None) -> Plan:
    """The plan whose cut is given: stage i holds layers [lo, hi) and costs `costs[i]`; all else follows from the model.

    Raises PartitionError where the ranges do not cover the model's layers in order, or a cost is no finite positive number.
    """
    ends = [0, *(hi for _, hi in layers)]
    count = int(config.num_hidden_layers)
    if [lo for lo, _ in layers] != ends[:-1] or ends[-1] != count or any(lo >= hi for lo, hi in layers):
        raise PartitionError(f"the ranges {tuple(layers)} do not cover the {count} layers of this model in order")
    if len(costs) != len(layers) or not all(math.isfinite(cost) and cost >= 0 for cost in costs):
        raise PartitionError(f"costs {tuple(costs)}: one finite number for each of {len(layers)} stages is needed")
    model = skeleton(config)
    return _plan(config, model, causal_family(config, model), tuple(layers), tuple(costs), lora)


def _plan(
    config: Any, model: Any, family: Family, layers: tuple[Range, ...], costs: tuple[float, ...], lora: Lora | None
) -> Plan:
    plan = Plan(
        model_type=config.model_type,
        layers=layers,
        costs=costs,
        model_order=(),
        stage_parameters=(),
        shapes={},
        trainable=frozenset(),
        tied=tie_of(model),
        width=int(config.hidden_size),
        vocabulary=int(config.vocab_size),
        lora=lora,
    )
    if lora is not None:
        plan = replace(plan, lora=lora.inject(model, family))
    return _with_parameters(plan, model, family)


def _with_parameters(plan: Plan, model: Any, family: Family) -> Plan:
    from holdfast.partition.lora import public_name

    shapes: dict[str, tuple[int, ...]] = {}
    trainable = set()
    owned: list[list[str]] = [[] for _ in plan.layers]
    for inner_name, parameter in model.named_parameters():
        name = public_name(inner_name)
        shapes[name] = tuple(parameter.shape)
        owned[_owner(inner_name, family, plan.layers)].append(name)
        if parameter.requires_grad:
            trainable.add(name)
    order = tuple(shapes)
    return replace(
        plan,
        model_order=order,
        stage_parameters=tuple(tuple(names) for names in owned),
        shapes=shapes,
        trainable=frozenset(trainable),
    )


def _owner(name: str, family: Family, ranges: Sequence[Range]) -> int:
    inner = name.removeprefix(f"{family.root}.")
    if inner == name:
        return len(ranges) - 1
    head, _, rest = inner.partition(".")
    if head == family.layers:
        layer = int(rest.partition(".")[0])
        return next(stage for stage, (lo, hi) in enumerate(ranges) if lo <= layer < hi)
    if head in family.before:
        return 0
    if head in family.after:
        return len(ranges) - 1
    raise PartitionError(
        f"models of type {family.model_type!r} cannot be cut into stages: parameter {name} stands neither before, in nor after "
        "the layers"
    )


def tie_of(model: Any) -> tuple[str, str] | None:
    """(head's name, name that owns the tensor) of tied embeddings, or None."""
    first: dict[int, str] = {}
    ties = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            ties.append((name, owner))
    if len(ties) > 1:
        raise PartitionError(f"this model shares {len(ties)} tensors ({ties}); only a head tied to the embedding can be cut")
    return ties[0] if ties else None
