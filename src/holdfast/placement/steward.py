"""The steward places the stages, watches what steps really take, and says when another placement would be worth its while.

    survey -> place -> steps -> measured speeds -> predicted again -> gain above the threshold? -> seats change, or the cut does
                         ^                                                                            |
                         +-------------- at a step boundary, at most every `move_every` steps --------+

Speeds are first what machines say of themselves (or what the described cluster gives them), and from then on what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from holdfast.cluster import Cluster, seats
from holdfast.engine import Engine, names_of_workers
from holdfast.errors import NotEnoughMemory
from holdfast.event import Event, Paced, Placed
from holdfast.job import Job
from holdfast.partition.memory import readable
from holdfast.placement.load import load_of
from holdfast.placement.place import Layers, Machine, Names, Placement, place, predict
from holdfast.placement.room import NEWCOMER, Room
from holdfast.placement.stopwatch import STEPS, Hops, Measured, speeds_from
from holdfast.route import Route
from holdfast.stage import INITIATOR
from holdfast.standing import Standing

OFF = 1.1
"""A step that takes this many times what was predicted, or a machine that does, is looked into."""

CUT_GAIN = 0.05
"""Share of a step's time that another cut must save beyond what other seats do: it has all states collected and sent anew."""


@dataclass(frozen=True, slots=True)
class Move:
    """Another placement, from the next step on; where its cut is another one the cluster is deployed anew."""

    placement: Placement
    cause: str


class Steward:
    """`tell` gets the events. What `engine` hears of machines is believed until a step has been measured; `cuts` says whether
    layers may change stages (not where bounds between numerics classes were measured stage by stage). `workers` are who is
    waited for where speeds count (None: all that the run has seats for).
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        tell: Callable[[Event], None],
        *,
        cuts: bool = True,
        workers: Sequence[str] | None = None,
    ) -> None:
        if workers is None:
            workers = [name for name in dict.fromkeys(names_of_workers(job.plan.stages)) if name != INITIATOR]
        survey = engine.survey(job, workers)
        self._engine = engine
        self._job = job
        self._tell = tell
        self._cuts = cuts
        self._machines = {machine.name: machine for machine in survey.machines}
        self._load = replace(load_of(job, survey.unit_s), link=self._link, initiator_devices=survey.initiator_devices)
        self._moved_at = 0
        self._told = False
        self.placement: Placement | None = None

    @property
    def _measures(self) -> bool:
        return self._job.config.cluster.placement == "measured"

    def settle(self, step: int, standing: Standing, layers: Layers, *, fixed: bool = False) -> Placement:
        """The placement of a deployment; with `fixed` only who has which stage of `layers` is open.

        Raises NotEnoughMemory where nobody's stated memory suffices, and says what would help.
        """
        there = [self._machine(name) for name in self._machines if name not in standing.out]
        if not self._measures:
            found = self._as_listed(standing, layers, there)
        else:
            kept = layers if fixed or not self._cuts else None
            try:
                found = place(self._load, len(layers), there, layers=kept)
            except NotEnoughMemory as error:
                if not self._engine.may_come:
                    raise
                raise NotEnoughMemory(f"{error}; {self._wanted(there, len(layers), kept, standing)}") from None
        self.placement, self._moved_at, self._told = found, step, False
        return found

    def _as_listed(self, standing: Standing, layers: Layers, there: Sequence[Machine]) -> Placement:
        """Who is listed, and after him the next one along the pipeline; others where memory wants it, but not at the start of a
        run whose machines are all described: there the plan is to be mended.
        """
        primaries = seats(len(layers), standing.out)
        names = [machine.name for machine in there]
        route = self._load.route(primaries, INITIATOR)
        self._there(primaries, names)
        room = self._room(layers)
        if room.lacking(route) and (standing.lost or self._engine.may_come):
            settled = room.resettle(route, [name for name in names if name not in route.workers])
            if settled is None:
                raise NotEnoughMemory(f"the stages cannot be seated: {room.wanted(route, standing.missed)}")
            primaries = settled
        found = predict(self._load, layers, primaries, self._there(primaries, names))
        self._check(found)
        return found

    def _room(self, layers: Layers) -> Room:
        needs = self._load.memory
        return Room(
            lambda stages: needs(tuple(layers[i] for i in stages)),
            lambda worker: self._machines[worker].memory_bytes if worker in self._machines else None,
            shadowed=self._load.shadowed,
        )

    def _wanted(self, there: Sequence[Machine], stages: int, layers: Layers | None, standing: Standing) -> str:
        """What a run without a placement waits for."""
        back = f", or for {' or '.join(sorted(standing.missed))} to come back" if standing.missed else ""
        try:
            found = place(self._load, stages, [*there, Machine(NEWCOMER)], layers=layers)
        except NotEnoughMemory:
            return f"waits for more than one machine{back}"
        return f"waits for a machine, for which {readable(found.memory.get(NEWCOMER, 0))} would do{back}"

    def beyond_help(self, layers: Layers) -> str | None:
        """Why no machine that comes could help: the initiator cannot hold what nobody else may. None where it can."""
        limit, count = self._machines[INITIATOR].memory_bytes, layers[-1][1]
        if self._measures and self._cuts and len(layers) > 2:
            layers = tuple((i, i + 1) for i in (0, *range(count - len(layers) + 1, count)))
        held = (layers[0], layers[-1], layers[-2]) if self._load.shadowed and len(layers) > 2 else (layers[0], layers[-1])
        needed = self._load.memory(held)
        if limit is None or needed <= limit:
            return None
        return (
            f"{INITIATOR} has {readable(limit)}, but what nobody else may hold (the first and the last stage, and a shadow) "
            f"needs {readable(needed)}; give it more memory, or use more stages, or smaller or fewer micro-batches"
        )

    @property
    def workers(self) -> frozenset[str]:
        """All that are known by name, whether they are there or not."""
        return frozenset(self._machines) - {INITIATOR}

    def meet(self, names: Iterable[str]) -> bool:
        """These are there; whether they have told of other memory than they had when they were last asked."""
        before = dict(self._machines)
        fresh = [self._machine(name) for name in names]
        return any(found.name in before and before[found.name].memory_bytes != found.memory_bytes for found in fresh)

    def _machine(self, name: str) -> Machine:
        """With the memory that it tells of now, and the speed that was last known."""
        told = self._engine.introduce(name)
        known = self._machines.get(name, told)
        self._machines[name] = known = replace(known, memory_bytes=told.memory_bytes)
        return known

    def seated(self, route: Route) -> None:
        """Where machines had less room than was known before they came, others have got their seats."""
        assert self.placement is not None
        if route.primaries != self.placement.primaries:
            there = self._there(route.primaries, ())
            self.placement = predict(self._load, self.placement.layers, route.primaries, there, route)

    def find(self, step: int, layers: Layers, primaries: Names) -> None:
        """The placement that a host finds again when it has been started anew: its machines hold their stages already."""
        self.placement = predict(self._load, layers, primaries, self._there(primaries, ()))
        self._moved_at, self._told = step, False

    def adopt(self, step: int, move: Move) -> None:
        """From `step` on this is how it is."""
        self.placement, self._moved_at, self._told = move.placement, step, False

    def announce(self, step: int, cause: str = "") -> None:
        found = self.placement
        assert found is not None
        where = found.layers, found.primaries, found.shadows
        self._tell(Placed(step, cause or found.why, *where, found.step_s, dict(found.busy), dict(found.memory)))

    def spares(self, lost: Collection[str], placement: Placement) -> tuple[str, ...]:
        """Who is there and has no stage."""
        return tuple(name for name in self._machines if name not in lost and name not in placement.primaries)

    @property
    def hops(self) -> Hops:
        return Hops(self._link, self._load.tensor_bytes, self._load.initiator_devices)

    def _link(self, sender: str, recipient: str) -> tuple[float, float]:
        """As the described cluster has it, but for latencies that were measured, of both ends to the initiator's machine."""
        described = self._job.config.cluster
        ends = [self._machines[end].latency_s for end in (sender, recipient) if end in self._machines]
        measured = [latency_s for latency_s in ends if latency_s is not None]
        return sum(measured) if measured else described.latency_s, described.bandwidth_bytes_per_s

    def pace(self, step: int, cluster: Cluster) -> Paced:
        """What the last steps took beside what was predicted; where nothing clean was measured, not a number."""
        real = cluster.coordinator.stopwatch.step_s
        assert self.placement is not None
        return Paced(step, self.placement.step_s, math.nan if real is None else real)

    def review(self, step: int, cluster: Cluster) -> Move | None:
        """After a sealed step: tell once what steps really take, and ask for a move that is worth it."""
        stopwatch, membership = cluster.coordinator.stopwatch, cluster.coordinator.membership
        measured, route = stopwatch.measured, membership.route
        if self.placement is None or len(measured) < STEPS or not membership.is_settled:
            return None
        if any((found.route.primaries, found.route.shadows) != (route.primaries, route.shadows) for found in measured):
            return None  # somebody has just gone, or come
        if (route.primaries, route.shadows) != (self.placement.primaries, self.placement.shadows):
            there = self._there(route.primaries, membership.spares)
            self.placement, self._told = predict(self._load, self.placement.layers, route.primaries, there, route), False
        if not self._told:
            self._told = True
            self._tell(self.pace(step, cluster))
        if not self._measures or step - self._moved_at < self._job.config.cluster.move_every:
            return None
        return self._better(step, route, membership.spares, measured)

    def _better(self, step: int, route: Route, spares: Sequence[str], measured: Sequence[Measured]) -> Move | None:
        assert self.placement is not None
        primaries, layers = route.primaries, self.placement.layers
        there = self._there(primaries, spares)
        found = speeds_from(measured, self._load, layers, there)
        believed = {machine.name: machine for machine in there}
        now = [self._with(machine, found) for machine in there]
        off = {m.name: _slowness(believed[m.name], m) for m in now}
        idle = any(name in self._machines and name not in primaries for name in spares)
        if not idle and all(1 / OFF <= ratio <= OFF for ratio in off.values()):
            return None
        self._moved_at = step  # whatever comes of it, not again before `move_every` steps
        self._machines.update({machine.name: machine for machine in now})
        before = predict(self._load, layers, primaries, now, route)
        try:
            seated = place(self._load, len(layers), now, layers=layers)
            best = place(self._load, len(layers), now, start=(layers, primaries)) if self._cuts else seated
        except NotEnoughMemory:
            return None
        if seated.layers != best.layers and best.step_s > (1 - CUT_GAIN) * seated.step_s:
            best = seated
        gain = 1 - best.step_s / before.step_s
        if gain < self._job.config.cluster.move_gain or (best.layers, best.primaries) == (layers, primaries):
            return None
        return Move(best, _cause(off, before, best))

    def _there(self, primaries: Names, spares: Sequence[str]) -> list[Machine]:
        names = dict.fromkeys(
            [INITIATOR, *(name for name in self._machines if name in {*primaries, *spares}), *primaries, *spares]
        )
        return [self._machine(name) for name in names]

    def _with(self, machine: Machine, found: dict[tuple[str, int], float]) -> Machine:
        speed = found.get((machine.name, 0), machine.speed)
        last = found.get((machine.name, 1), machine.last_speed)
        return replace(machine, speed=speed, last_speed=last)

    def _check(self, placement: Placement) -> None:
        for name, needed in placement.memory.items():
            limit = self._machines[name].memory_bytes
            if limit is not None and needed > limit:
                raise NotEnoughMemory(
                    f"{name} has {readable(limit)}, but its stages and shadows need {readable(needed)}; give it more memory, "
                    "use cluster.placement=measured, more stages or machines, or smaller or fewer micro-batches"
                )


def _slowness(believed: Machine, now: Machine) -> float:
    """How many times as long as was believed the machine takes; of two devices the one that is further off."""
    ratios = [believed.speed / now.speed]
    if believed.last_speed is not None and now.last_speed is not None:
        ratios.append(believed.last_speed / now.last_speed)
    return max(ratios, key=lambda ratio: max(ratio, 1 / ratio))


def _cause(off: dict[str, float], before: Placement, best: Placement) -> str:
    """In plain words: who was off, by how much, what moves, and what that is to save."""
    slow = [f"{name} takes {ratio:.1f} times as long as expected" for name, ratio in off.items() if ratio > OFF]
    fast = [f"{name} is {1 / ratio:.1f} times as fast as expected" for name, ratio in off.items() if ratio < 1 / OFF]
    why = "; ".join(slow or fast) or "a machine has come"
    moved = [f"{name} goes to stage {i}" for i, name in enumerate(best.primaries) if name != before.primaries[i]]
    cut = [] if best.layers == before.layers else ["the model is cut anew"]
    return f"{why}; {', '.join([*moved, *cut])}; as it was, {before.step_s:.3g} s were predicted"
