"""Which machine carries which layers, so that a step is short and everybody's memory suffices: a pure function.

    layers    0 1 2 3 | 4 5 6 | 7 8 | ...          contiguous, every stage at least one
    primary   initiator  w3     w1    ...  initiator          stages 0 and K-1 are the initiator's
    shadow               w1     w5                            of stage i: the worker of stage i+1

Few candidates are all tried; of many, cuts by dynamic programming over the busiest device start a local search. What is tried
is judged by `holdfast.schedule.forecast`, message by message. The same question gets the same answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.errors import NotEnoughMemory, PartitionError
from holdfast.partition import Range
from holdfast.partition.memory import readable
from holdfast.partition.plan import layer_words
from holdfast.placement.cuts import best_cut
from holdfast.route import Route, plain_route
from holdfast.schedule import SCHEDULES, ScheduleName, in_flight_limit
from holdfast.schedule.forecast import Conditions, Device, forecast

Layers = tuple[Range, ...]
Names = tuple[str, ...]
Held = tuple[Range, ...]

PASSES = 20_000
"""Micro-batches times stages that may be simulated for one placement: a second or two."""


@dataclass(frozen=True, slots=True)
class Machine:
    """`speed` is relative to the one that `Load` counts with; `memory_bytes` None: as much as is needed.

    `last_speed` is of the device of the last stage, where the initiator has another one for it; `latency_s` is one way to the
    initiator's machine (None: not measured).
    """

    name: str
    speed: float = 1.0
    memory_bytes: int | None = None
    last_speed: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True)
class Load:
    """One step of training. Times are seconds at speed 1: `layer_s` a forward pass of one micro-batch through each layer,
    `before_s` and `after_s` what the first and the last stage compute besides, `settle_s` a gradient's digest or an update.

    `memory(held)` is what a worker needs in bytes that holds these ranges of layers, as primary or shadow; `link(sender,
    recipient)` is (latency in seconds, bytes a second).
    """

    layer_s: tuple[float, ...]
    before_s: float
    after_s: float
    settle_s: float
    micro_batches: int
    tensor_bytes: float
    schedule: ScheduleName = "1f1b"
    checked: bool = True
    shadowed: bool = True
    jump: bool = True
    initiator_devices: int = 2
    memory: Callable[[Held], int] = lambda _held: 0
    link: Callable[[str, str], tuple[float, float]] = lambda _sender, _recipient: (0.0, math.inf)

    def pass_s(self, layers: Layers) -> tuple[float, ...]:
        """Seconds of a forward pass through each stage at speed 1."""
        seconds = [sum(self.layer_s[lo:hi]) for lo, hi in layers]
        seconds[0] += self.before_s
        seconds[-1] += self.after_s
        return tuple(seconds)

    def route(self, primaries: Names, trusted: str) -> Route:
        return plain_route(primaries, [trusted], shadowed=self.shadowed, jump=self.jump)


@dataclass(frozen=True, slots=True)
class Placement:
    """`step_s` is predicted; `busy` is the share of it that each machine's busiest device computes; `memory` is in bytes."""

    layers: Layers
    primaries: Names
    shadows: tuple[str | None, ...]
    step_s: float
    busy: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    why: str = ""


def predict(load: Load, layers: Layers, primaries: Names, machines: Sequence[Machine], route: Route | None = None) -> Placement:
    """What a given placement comes to; `machines[0]` is the initiator, `route` may seat other shadows than the usual ones.

    Memory is told, not refused.
    """
    route = route or load.route(primaries, machines[0].name)
    found = forecast(route, conditions(load, layers, machines))
    return _told(load, layers, route, found.step_s, found.busy_s, "as given")


def conditions(load: Load, layers: Layers, machines: Sequence[Machine]) -> Conditions:
    stages, m = len(layers), load.micro_batches
    return Conditions(
        load.pass_s(layers),
        load.settle_s,
        tuple(tuple(SCHEDULES[load.schedule](stages, i, m)) for i in range(stages)),
        tuple(in_flight_limit(load.schedule, stages, i, m, load.shadowed) for i in range(stages)),
        load.tensor_bytes,
        load.link,
        speeds_of(machines),
        load.checked,
        backward_waits=load.schedule == "gpipe",
        trusted_devices=load.initiator_devices,
    )


def speeds_of(machines: Sequence[Machine]) -> dict[Device, float]:
    first = machines[0]
    speeds = {(machine.name, 0): machine.speed for machine in machines}
    return speeds | {(first.name, 1): first.last_speed or first.speed}


def place(
    load: Load,
    stages: int,
    machines: Sequence[Machine],
    *,
    layers: Layers | None = None,
    start: tuple[Layers, Names] | None = None,
    passes: int = PASSES,
) -> Placement:
    """The best placement found; `machines[0]` is the initiator. `layers` keeps a given cut, `start` is one more to begin with.

    Raises PartitionError where there are more stages than layers, NotEnoughMemory where no placement fits that was tried.
    """
    if not 2 <= stages <= len(load.layer_s):
        raise PartitionError(
            f"{stages} stages for a model of {len(load.layer_s)} layers; give 2 to {len(load.layer_s)} stages, a layer each"
        )
    search = _Search(load, stages, machines, layers, max(40, passes // (stages * load.micro_batches)))
    best = search.run(start)
    if best.excess:
        _refuse(load, best, machines)
    route = load.route(best.primaries, machines[0].name)
    found = forecast(route, conditions(load, best.layers, machines))
    return _told(load, best.layers, route, found.step_s, found.busy_s, search.said)


def held_by(route: Route, layers: Layers) -> dict[str, Held]:
    """The ranges of layers that each worker holds, as primary or shadow."""
    return {worker: tuple(layers[i] for i, _role in route.seats_of(worker)) for worker in route.workers}


def _told(load: Load, layers: Layers, route: Route, step_s: float, busy_s: Mapping[Device, float], why: str) -> Placement:
    busy: dict[str, float] = {}
    for (name, _), seconds in busy_s.items():
        busy[name] = max(busy.get(name, 0.0), seconds / step_s if step_s else 0.0)
    memory = {name: load.memory(held) for name, held in held_by(route, layers).items()}
    return Placement(layers, route.primaries, route.shadows, step_s, busy, memory, why)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """`key` orders them: what does not fit last, then by time; of equals the one that moves the least from the listed order."""

    layers: Layers
    primaries: Names
    excess: int
    key: tuple[float, ...]


class _Search:
    def __init__(self, load: Load, stages: int, machines: Sequence[Machine], layers: Layers | None, budget: int) -> None:
        self._load = load
        self._stages = stages
        self._machines = machines
        self._fixed = layers
        self._budget = budget
        self._tried: dict[tuple[Layers, Names], _Candidate] = {}
        self._initiator = machines[0].name
        self._by_name = {machine.name: machine for machine in machines}
        self._listed = {machine.name: place for place, machine in enumerate(machines)}
        self.said = ""

    def run(self, start: tuple[Layers, Names] | None) -> _Candidate:
        seatings = list(itertools.islice(self._seatings(), self._budget + 1))
        cuts = 1 if self._fixed else math.comb(len(self._load.layer_s) - 1, self._stages - 1)
        if len(seatings) * cuts <= self._budget:
            self.said = f"the best of all {len(seatings) * cuts} placements"
            best = min((self._judge(c, s) for s in seatings for c in self._cuts()), key=lambda found: found.key)
            return self._climb(best, self._budget) if best.excess else best
        starts = [(self._fixed or self._cut(names), names) for names in (*self._by_speed(), *seatings[: self._budget // 4])]
        starts += [start] if start is not None and (self._fixed is None or start[0] == self._fixed) else []
        ranked = sorted((self._judge(*candidate) for candidate in starts), key=lambda found: found.key)
        best = ranked[0]
        for candidate in ranked[:3]:
            best = min(best, self._climb(candidate, self._budget), key=lambda found: found.key)
        if best.excess:
            best = self._climb(best, len(self._tried) + self._budget)
        self.said = f"the best of {len(self._tried)} placements tried"
        return best

    def _climb(self, here: _Candidate, budget: int) -> _Candidate:
        """The best neighbour, again and again; at least once, however much has been tried."""
        least = len(self._tried) + 1
        while len(self._tried) < max(budget, least):
            neighbours = [self._judge(*found) for found in self._moves(here)]
            better = min(neighbours, key=lambda found: found.key, default=here)
            if better.key >= here.key:
                break
            here = better
        return here

    def _judge(self, layers: Layers, primaries: Names) -> _Candidate:
        known = self._tried.get((layers, primaries))
        if known is not None:
            return known
        load = self._load
        route = load.route(primaries, self._initiator)
        excess = 0
        for name, held in held_by(route, layers).items():
            limit = self._by_name[name].memory_bytes
            excess += 0 if limit is None else max(0, load.memory(held) - limit)
        step_s = 0.0 if excess else forecast(route, conditions(load, layers, self._machines)).step_s
        order = [self._listed[name] for name in primaries[1:-1]]
        moved = sum(a > b for a, b in itertools.pairwise(order))
        uneven = sum(seconds**2 for seconds in load.pass_s(layers))
        key = (excess, round(step_s, 9), moved, round(uneven, 12), *(hi for _, hi in layers), *order)
        found = self._tried[layers, primaries] = _Candidate(layers, primaries, excess, key)
        return found

    # -- candidates --------------------------------------------------------------------------------------------------

    def _seatings(self) -> Iterator[Names]:
        """Every way to seat the machines on the middle stages; alike machines are interchangeable, and stay in listed order.

        With fewer machines than stages each carries neighbouring ones; with none the initiator carries them all.
        """
        middle, others = self._stages - 2, list(self._machines[1:])
        seen = set()
        for seated in itertools.permutations(others, min(middle, len(others))):
            for shares in _shares(middle, len(seated)) if seated else ((),):
                names = [machine.name for machine, share in zip(seated, shares, strict=True) for _ in range(share)]
                kinds = tuple((self._by_name[name].speed, self._by_name[name].memory_bytes) for name in names)
                if (kinds, shares) not in seen:
                    seen.add((kinds, shares))
                    yield (self._initiator, *names, *[self._initiator] * (middle - len(names)), self._initiator)

    def _by_speed(self) -> Iterator[Names]:
        """The fastest machines in listed order, fastest first, and fastest last."""
        middle = self._stages - 2
        fastest = sorted(self._machines[1:], key=lambda machine: -machine.speed)[:middle]
        if len(fastest) == middle:
            listed = sorted(fastest, key=lambda machine: self._listed[machine.name])
            for order in (listed, fastest, fastest[::-1]):
                yield (self._initiator, *(machine.name for machine in order), self._initiator)

    def _cuts(self) -> Iterator[Layers]:
        if self._fixed is not None:
            yield self._fixed
            return
        count = len(self._load.layer_s)
        for inner in itertools.combinations(range(1, count), self._stages - 1):
            yield tuple(itertools.pairwise((0, *inner, count)))

    def _cut(self, names: Names) -> Layers:
        speeds = [self._by_name[name].speed for name in names]
        speeds[-1] = self._machines[0].last_speed or speeds[-1]
        limits = [self._by_name[name].memory_bytes for name in names]
        return best_cut(self._load, speeds, limits)

    def _moves(self, here: _Candidate) -> Iterator[tuple[Layers, Names]]:
        """A layer more for one stage and less for another; two machines change places; one that has no seat takes another's."""
        ends = [hi for _, hi in here.layers[:-1]]
        stages = range(self._stages)
        for give, take in itertools.permutations(stages, 2) if self._fixed is None else ():
            moved = list(ends)
            for boundary in range(min(give, take), max(give, take)):
                moved[boundary] += 1 if take < give else -1
            bounds = (0, *moved, len(self._load.layer_s))
            if all(lo < hi for lo, hi in itertools.pairwise(bounds)):
                yield tuple(itertools.pairwise(bounds)), here.primaries
        names = here.primaries
        for i, name in itertools.product(range(1, self._stages - 1), self._by_name) if here.excess else ():
            yield here.layers, (*names[:i], name, *names[i + 1 :])
        for a, b in itertools.combinations(dict.fromkeys(names[1:-1]), 2):
            swap = {a: b, b: a}
            yield here.layers, (names[0], *(swap.get(name, name) for name in names[1:-1]), names[-1])
        for spare in (machine.name for machine in self._machines if machine.name not in names):
            for out in dict.fromkeys(name for name in names if name != self._initiator):
                yield here.layers, tuple(spare if name == out else name for name in names)


def _shares(stages: int, machines: int) -> Iterator[tuple[int, ...]]:
    """How many neighbouring stages each of the machines carries."""
    for inner in itertools.combinations(range(1, stages), machines - 1):
        yield tuple(hi - lo for lo, hi in itertools.pairwise((0, *inner, stages)))


def _refuse(load: Load, best: _Candidate, machines: Sequence[Machine]) -> None:
    route = load.route(best.primaries, machines[0].name)
    over = []
    for name, held in held_by(route, best.layers).items():
        limit, needed = next(m.memory_bytes for m in machines if m.name == name), load.memory(held)
        if limit is not None and needed > limit:
            over.append((needed - limit, name, needed, limit, held))
    _, name, needed, limit, held = max(over)
    layers = " and ".join(map(layer_words, held))
    raise NotEnoughMemory(
        f"{name} has {readable(limit)}, but no placement was found that fits: the nearest one has it hold {layers}, "
        f"which need {readable(needed)}; give it more memory, add machines or stages, or use smaller or fewer micro-batches"
    )
