"""What a schedule costs on paper: greedy list scheduling; a forward pass takes one unit of time, a backward pass two.

Every machine takes the first action of its order whose inputs are verified; with shadows, a claim is verified once both
its stage and the shadow have computed it, and one message later its receiver knows. The engine's virtual clock measures
the same on real messages; this is the number to hold it against.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast.schedule.action import Action, Kind, with_shadow

_SHADOW = (Kind.SHADOW_FORWARD, Kind.SHADOW_BACKWARD)
_BACKWARD = (Kind.BACKWARD, Kind.SHADOW_BACKWARD)
Pass = tuple[Kind, int, int]
"""Kind of work, the stage computed (for shadow work the shadowed one), micro-batch."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`orders[i]` is the order of stage i, `limits[i]` what it may hold in flight; `hop` is the time of a message.

    `backward_waits`: the last stage starts its backward passes when all its forward passes are done (GPipe).
    """

    orders: tuple[tuple[Action, ...], ...]
    limits: tuple[int, ...]
    shadowed: bool = False
    backward_waits: bool = False
    hop: float = 0.0


@dataclass(frozen=True, slots=True)
class Slot:
    """Machine `machine` does `action` from `start` to `end`."""

    machine: int
    action: Action
    start: float
    end: float


def simulate(pipeline: Pipeline) -> tuple[Slot, ...]:
    """Every slot of one step in order of its start; the last end is the step's time."""
    return tuple(_Simulation(pipeline).run())


def step_time(pipeline: Pipeline) -> float:
    """Forward passes from the start of the step to the end of its last backward pass."""
    return max(slot.end for slot in simulate(pipeline))


def draw(slots: Sequence[Slot]) -> str:
    """One row a machine, one column a forward pass; for whole-numbered times.

    >>> from holdfast.schedule.gpipe import gpipe
    >>> print(draw(simulate(Pipeline(tuple(tuple(gpipe(2, i, 2)) for i in range(2)), (2, 2)))))
    F0 F1          B0 B0 B1 B1
       F0 F1 B0 B0 B1 B1
    """
    width = max(len(str(slot.action)) for slot in slots)
    length = int(max(slot.end for slot in slots))
    rows = [[" " * width] * length for _ in range(max(slot.machine for slot in slots) + 1)]
    for slot in slots:
        for column in range(int(slot.start), int(slot.end)):
            rows[slot.machine][column] = str(slot.action).ljust(width)
    return "\n".join(" ".join(row).rstrip() for row in rows)


class _Simulation:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._last = len(pipeline.orders) - 1
        self._todo = [
            list(with_shadow(order) if pipeline.shadowed and i >= 2 else order) for i, order in enumerate(pipeline.orders)
        ]
        self._free = [0.0] * len(self._todo)
        self._done: dict[Pass, float] = {}
        self._held: dict[tuple[int, bool], set[int]] = {}

    def run(self) -> Iterator[Slot]:
        now = 0.0
        while any(self._todo):
            for machine, actions in enumerate(self._todo):
                action = next((a for a in actions if self._free[machine] <= now and self._ready(machine, a) <= now), None)
                if action is not None:
                    actions.remove(action)
                    yield self._start(machine, action, now)
            moments = [*self._free, *(self._ready(i, a) for i, actions in enumerate(self._todo) for a in actions)]
            later = [moment for moment in moments if now < moment < math.inf]
            assert later or not any(self._todo), f"the schedule is stuck at {now}: {self._todo}"
            now = min(later, default=now)

    def _start(self, machine: int, action: Action, now: float) -> Slot:
        stage, shadow, m = _stage(machine, action), action.kind in _SHADOW, action.micro_batch
        backward = action.kind in _BACKWARD
        end = now + (2 if backward else 1)
        self._free[machine] = self._done[action.kind, stage, m] = end
        held = self._held.setdefault((stage, shadow), set())
        (held.discard if backward else held.add)(m)
        return Slot(machine, action, now, end)

    def _ready(self, machine: int, action: Action) -> float:
        """When the inputs of `action` are there, as far as is known now."""
        stage, shadow, m = _stage(machine, action), action.kind in _SHADOW, action.micro_batch
        if action.kind not in _BACKWARD:
            full = len(self._held.get((stage, shadow), ())) >= self._pipeline.limits[stage]
            return math.inf if full else self._usable(Kind.FORWARD, stage - 1, m)
        own = self._finished(Kind.SHADOW_FORWARD if shadow else Kind.FORWARD, stage, m)
        if stage < self._last:
            return max(own, self._usable(Kind.BACKWARD, stage + 1, m))
        waits = self._pipeline.backward_waits and any(a.kind is Kind.FORWARD for a in self._todo[machine])
        return math.inf if waits else own

    def _usable(self, kind: Kind, stage: int, m: int) -> float:
        """When the neighbours may use what `stage` claims; tokens and the loss are there from the start."""
        if stage < 0:
            return 0.0
        ends = [self._finished(kind, stage, m)]
        if self._pipeline.shadowed and 1 <= stage < self._last:
            ends.append(self._finished(Kind.SHADOW_FORWARD if kind is Kind.FORWARD else Kind.SHADOW_BACKWARD, stage, m))
        return max(ends) + self._pipeline.hop

    def _finished(self, kind: Kind, stage: int, m: int) -> float:
        return self._done.get((kind, stage, m), math.inf)


def _stage(machine: int, action: Action) -> int:
    return machine - 1 if action.kind in _SHADOW else machine
