"""The coordinator's stopwatch: how fast each machine works, by when its headers arrive, and never by what it says of itself.

    the later of   its last header   and   when it could use its inputs   -->   its next header       the time of one pass

So a machine can seem slower than it is, and not faster. Where nothing is checked no headers come but those of gradients; then
the times between the gradients of neighbouring stages are held against a forecast, until it explains them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from holdfast.claim import ClaimKey, Direction
from holdfast.placement.place import Layers, Load, Machine, conditions
from holdfast.route import Route
from holdfast.schedule.forecast import Device, device_of, forecast
from holdfast.stage import COORDINATOR

STEPS = 3
"""Steps over which a measurement is the middle one."""

ROUNDS = 12
"""Of making a forecast of gradients like those that came."""


@dataclass(frozen=True)
class Hops:
    """What is known of the ways between machines, and of the initiator's; `link(sender, recipient)` as in `Load`."""

    link: Callable[[str, str], tuple[float, float]] = lambda _sender, _recipient: (0.0, float("inf"))
    tensor_bytes: float = 0.0
    initiator_devices: int = 2

    def latency_s(self, worker: str) -> float:
        return self.link(worker, COORDINATOR)[0]

    def transfer_s(self, sender: str, recipient: str) -> float:
        return self.tensor_bytes / self.link(sender, recipient)[1]


@dataclass
class _Step:
    route: Route
    began_s: float
    latest_s: dict[Device, float] = field(default_factory=dict)
    posted_s: dict[ClaimKey, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    samples: dict[Device, list[tuple[int, int, float]]] = field(default_factory=lambda: defaultdict(list))
    gradients_s: dict[int, float] = field(default_factory=dict)
    disturbed: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """One sealed step that nothing disturbed: its seconds, passes as (stage, forward passes, seconds) by device, and when the
    gradient of each stage was heard of.
    """

    route: Route
    step_s: float
    samples: Mapping[Device, Sequence[tuple[int, int, float]]]
    gradients_s: Mapping[int, float]


class Stopwatch:
    """`clock` gives seconds. Told of each step by the coordinator; `measured` are the last clean steps on the seats of today,
    `STEPS` at most: a long run keeps no more.
    """

    def __init__(self, clock: Callable[[], float], hops: Hops = Hops()) -> None:  # frozen
        self.measured: list[Measured] = []
        self._clock = clock
        self._hops = hops
        self._now: _Step | None = None

    def began(self, route: Route, *, again: bool) -> None:
        seats = route.primaries, route.shadows
        if self.measured and (self.measured[-1].route.primaries, self.measured[-1].route.shadows) != seats:
            self.measured.clear()  # other seats, other times
        self._now = _Step(route, self._clock(), disturbed=again)

    def disturbed(self) -> None:
        """Somebody was lost: this step says nothing about the next one."""
        if self._now is not None:
            self._now.disturbed = True

    def posted(self, worker: str, key: ClaimKey) -> None:
        """The header of `worker` for `key` has come (or the loss of a micro-batch, which is the last stage's forward pass)."""
        now = self._now
        if now is None or worker in now.posted_s[key] or now.route.role(key.stage, worker) is None:
            return
        at = self._clock()
        now.posted_s[key][worker] = at
        device = worker, device_of(now.route, worker, key.stage, self._hops.initiator_devices)
        if key.direction is Direction.GRADIENT and worker == now.route.primaries[key.stage]:
            now.gradients_s[key.stage] = at - now.began_s
        if key.direction in (Direction.FORWARD, Direction.BACKWARD):
            began = max(now.latest_s.get(device, 0.0), self._usable(now, worker, key))
            now.samples[device].append((key.stage, 2 if key.direction is Direction.BACKWARD else 1, at - began))
        now.latest_s[device] = at

    def sealed(self) -> None:
        now, self._now = self._now, None
        if now is not None and not now.disturbed and not now.route.bypassed:
            fresh = Measured(now.route, self._clock() - now.began_s, now.samples, now.gradients_s)
            self.measured = [*self.measured, fresh][-STEPS:]

    @property
    def step_s(self) -> float | None:
        """Of the middle one of the last steps; None before there is any."""
        return statistics.median(found.step_s for found in self.measured) if self.measured else None

    def _usable(self, now: _Step, worker: str, key: ClaimKey) -> float:
        """When `worker` could use the input of `key`, as seen from here: since its own account of it, or since the last
        account of all has come, the ruling gone out, and the tensor arrived.
        """
        latency_s, route = self._hops.latency_s(worker), now.route
        stage = route.before(key.stage) if key.direction is Direction.FORWARD else route.after(key.stage)
        if stage is None:
            return now.began_s + 2 * latency_s
        accounts = now.posted_s.get(ClaimKey(key.step, key.attempt, key.direction, stage, key.micro_batch), {})
        if worker in accounts or not accounts:
            return accounts.get(worker, now.began_s)
        sender, consumers = route.primaries[stage], route.consumers(key.direction, stage)
        sent_s = accounts.get(sender, max(accounts.values()))
        before = sum(consumer != sender for consumer in consumers[: consumers.index(worker) + 1]) if worker in consumers else 1
        arrived_s = sent_s + before * self._hops.transfer_s(sender, worker) + latency_s
        return max(max(accounts.values()) + 2 * latency_s, arrived_s)


def speeds_from(measured: Sequence[Measured], load: Load, layers: Layers, machines: Sequence[Machine]) -> dict[Device, float]:
    """The speed of each device, relative to the one that `load` counts with, over the last steps; the middle one of them.

    Of what the passes of a step took it is the lower quartile, since waiting can only add. `machines` are those that the route
    has, the initiator first, with the speeds that were believed; they are where a search by gradients begins.
    """
    if not load.checked:
        return _from_gradients(measured[-1], load, layers, machines) if measured else {}
    pass_s = load.pass_s(layers)
    found: dict[Device, list[float]] = defaultdict(list)
    for step in measured[-STEPS:]:
        for device, samples in step.samples.items():
            taken = sorted(seconds / (passes * pass_s[stage]) for stage, passes, seconds in samples if pass_s[stage] > 0)
            taken = [slowness for slowness in taken if slowness > 0]
            if taken:
                found[device].append(taken[len(taken) // 4])
    return {device: 1 / statistics.median(slowness) for device, slowness in found.items()}


def _from_gradients(step: Measured, load: Load, layers: Layers, machines: Sequence[Machine]) -> dict[Device, float]:
    """The speeds under which a forecast has the gradients come when they came: each is changed by how far its stage is off."""
    given = conditions(load, layers, machines)
    route, last = step.route, len(layers) - 1
    speeds = dict(given.speeds)
    devices = [(name, device_of(route, name, i, load.initiator_devices)) for i, name in enumerate(route.primaries)]
    wanted = _gaps([step.gradients_s.get(i, 0.0) for i in range(last + 1)])
    for _ in range(ROUNDS):
        found = _gaps(forecast(route, replace(given, speeds=speeds)).gradients_s)
        for i in range(last + 1):
            if wanted[i] > 0 and found[i] > 0:
                speeds[devices[i]] = speeds.get(devices[i], 1.0) * (found[i] / wanted[i]) ** 0.7
    return {device: speeds[device] for device in dict.fromkeys(devices)}


def _gaps(gradients_s: Sequence[float]) -> list[float]:
    """Of each stage, how long after the next stage's its gradient came."""
    return [at - (gradients_s[i + 1] if i + 1 < len(gradients_s) else 0.0) for i, at in enumerate(gradients_s)]
