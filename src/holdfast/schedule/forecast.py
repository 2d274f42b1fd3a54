"""What one step of a route takes on unlike machines: its messages and passes in virtual time, without a tensor.

    begin -> passes, claims, rulings -> gradients -> update -> seal          the last is the step's time

It follows the protocol as workers, board and links do: a tensor counts once the own shadow or the board's ruling vouches for
it, the tensors that one machine sends wait for one another, headers overtake them. Left out: hashing, alerts, the referee.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from holdfast.claim import Direction
from holdfast.route import Route
from holdfast.schedule.action import Action, Kind

CONTROL_BYTES = 400
"""A header, an order, a ruling: about so many on their way."""

_CENTRE = "coordinator"
_F, _B, _GRADIENT, _UPDATE = range(4)
_WHOLE = -1

Key = tuple[int, int, int]
"""Direction, stage, micro-batch."""

Device = tuple[str, int]


@dataclass(frozen=True)
class Conditions:
    """K stages: `pass_s[i]` is a forward pass of one micro-batch through stage i at speed 1, `settle_s` a gradient's digest or
    an optimizer step; `orders` and `limits` are the schedule's.

    `speeds` are of (worker, device), 1 where none is given; a trusted worker has stage 0 on device 0 and the rest on its last
    device, the same where it has one.
    `link(sender, recipient)` is (latency in seconds, bytes a second); `tensor_bytes` is of one tensor between stages.
    """

    pass_s: tuple[float, ...]
    settle_s: float
    orders: tuple[tuple[Action, ...], ...]
    limits: tuple[int, ...]
    tensor_bytes: float
    link: Callable[[str, str], tuple[float, float]]
    speeds: Mapping[Device, float] = field(default_factory=dict)
    checked: bool = True
    backward_waits: bool = False
    trusted_devices: int = 2


@dataclass(frozen=True, slots=True)
class Forecast:
    """`step_s` from the order to begin to the seal; `busy_s` of each device; `gradients_s[i]` when the coordinator has heard of
    stage i's gradient from its primary.
    """

    step_s: float
    busy_s: Mapping[Device, float]
    gradients_s: tuple[float, ...]


def device_of(route: Route, worker: str, stage: int, trusted_devices: int) -> int:
    """On which of its devices a worker computes `stage`."""
    return trusted_devices - 1 if worker in route.trusted and stage > 0 else 0


def forecast(route: Route, conditions: Conditions) -> Forecast:
    """One clean step on `route`; every seat has its state."""
    return _Step(route, conditions).run()


class _Seat:
    __slots__ = ("actions", "backward_left", "gradient", "held", "is_primary", "stage", "update", "worker")

    def __init__(self, stage: int, worker: str, order: tuple[Action, ...], *, is_primary: bool) -> None:
        self.stage = stage
        self.worker = worker
        self.is_primary = is_primary
        self.actions = {(action.kind is Kind.BACKWARD, action.micro_batch): place for place, action in enumerate(order)}
        self.backward_left = sum(backward for backward, _ in self.actions)
        self.held: set[int] = set()
        self.gradient = self.update = False


class _Step:
    def __init__(self, route: Route, conditions: Conditions) -> None:
        self._route = route
        self._given = conditions
        self._last = len(route.primaries) - 1
        self._micro_batches = range(max(action.micro_batch for action in conditions.orders[0]) + 1)
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._entries = 0
        self._now = 0.0
        self._nic_free_s: dict[str, float] = defaultdict(float)
        self._seats: dict[Device, list[_Seat]] = defaultdict(list)
        self._idle: set[Device] = set()
        self._busy_s: dict[Device, float] = defaultdict(float)
        self._delivered: set[tuple[str, Key]] = set()
        self._vouched: set[tuple[str, Key]] = set()
        self._usable: set[tuple[str, Key]] = set()
        self._headers: dict[Key, int] = defaultdict(int)
        self._accepted: set[Key] = set()
        self._ordered = False
        self._sealed_s: float | None = None
        self._gradients_s = [0.0] * (self._last + 1)
        self._consumers = {
            (d, i): route.consumers(direction, i)
            for d, direction in ((_F, Direction.FORWARD), (_B, Direction.BACKWARD))
            for i in route.stages
        }
        self._needed = [2 if self._has_two_accounts(i) else 1 for i in route.stages]

    def run(self) -> Forecast:
        for worker in self._route.workers:
            self._tell(_CENTRE, worker, self._begin, worker)
        while self._sealed_s is None:
            assert self._agenda, "a clean step comes to its end"
            self._now = self._agenda[0][0]
            while self._agenda and self._agenda[0][0] <= self._now:
                _, _, act, arguments = heapq.heappop(self._agenda)
                act(*arguments)
            for device in sorted(self._idle):
                self._occupy(device)
        return Forecast(self._sealed_s, dict(self._busy_s), tuple(self._gradients_s))

    def _has_two_accounts(self, stage: int) -> bool:
        shadowed = self._route.shadows[stage] is not None
        return self._given.checked and shadowed and not self._route.is_trusted(stage)

    # -- time and links ----------------------------------------------------------------------------------------------

    def _at(self, when_s: float, act: Callable[..., None], *arguments: object) -> None:
        self._entries += 1
        heapq.heappush(self._agenda, (when_s, self._entries, act, arguments))

    def _tell(self, sender: str, recipient: str, act: Callable[..., None], *arguments: object) -> None:
        """A control message, which waits for no tensor."""
        latency_s, bytes_per_s = self._given.link(sender, recipient)
        self._at(self._now + latency_s + CONTROL_BYTES / bytes_per_s, act, *arguments)

    def _send(self, sender: str, recipient: str, key: Key, tensors: int) -> None:
        latency_s, bytes_per_s = self._given.link(sender, recipient)
        size = tensors * self._given.tensor_bytes + CONTROL_BYTES
        self._nic_free_s[sender] = max(self._now, self._nic_free_s[sender]) + size / bytes_per_s
        self._at(self._nic_free_s[sender] + latency_s, self._deliver, recipient, key)

    # -- a worker ----------------------------------------------------------------------------------------------------

    def _begin(self, worker: str) -> None:
        route, orders = self._route, self._given.orders
        for i in route.stages:
            role = route.role(i, worker)
            if role is None:
                continue
            is_primary = route.primaries[i] == worker
            order = orders[min(i + (not is_primary), self._last)]
            self._seats[self._device(worker, i)].append(_Seat(i, worker, order, is_primary=is_primary))
            self._idle.add(self._device(worker, i))

    def _device(self, worker: str, stage: int) -> Device:
        return worker, device_of(self._route, worker, stage, self._given.trusted_devices)

    def _deliver(self, worker: str, key: Key) -> None:
        self._delivered.add((worker, key))
        if not self._given.checked or (worker, key) in self._vouched:
            self._usable.add((worker, key))

    def _vouch(self, worker: str, key: Key) -> None:
        """The own shadow, or the board, says what the right bytes are."""
        self._vouched.add((worker, key))
        if (worker, key) in self._delivered:
            self._usable.add((worker, key))

    def _order_update(self, worker: str) -> None:
        for device, seats in self._seats.items():
            if device[0] == worker:
                for seat in seats:
                    seat.update = True

    def _occupy(self, device: Device) -> None:
        """The most urgent work, as `Worker.next_work` takes it."""
        best: tuple[tuple[int, int], _Seat, bool, int] | None = None
        for seat in self._seats[device]:
            if seat.update or seat.gradient:
                self._start(device, seat, self._given.settle_s, _UPDATE if seat.update else _GRADIENT, _WHOLE)
                return
            for (backward, m), place in seat.actions.items():
                if self._is_ready(seat, m, backward=backward):
                    rank = (place, -seat.stage if backward else seat.stage)
                    if best is None or rank < best[0]:
                        best = rank, seat, backward, m
                    break
        if best is None:
            return
        _, seat, backward, m = best
        del seat.actions[backward, m]
        (seat.held.discard if backward else seat.held.add)(m)
        self._start(device, seat, self._given.pass_s[seat.stage] * (1 + backward), _B if backward else _F, m)

    def _is_ready(self, seat: _Seat, m: int, *, backward: bool) -> bool:
        i, worker = seat.stage, seat.worker
        if not backward:
            if len(seat.held) >= self._given.limits[i]:
                return False
            if not seat.is_primary and not self._route.jump:
                return (worker, (_F, i, m)) in self._delivered
            return i == 0 or (worker, (_F, i - 1, m)) in self._usable
        if m not in seat.held:
            return False
        if i == self._last:
            return not (self._given.backward_waits and any(not back for back, _ in seat.actions))
        return (worker, (_B, i + 1, m)) in self._usable

    def _start(self, device: Device, seat: _Seat, seconds: float, kind: int, m: int) -> None:
        seconds /= self._given.speeds.get(device, 1.0)
        self._idle.discard(device)
        self._busy_s[device] += seconds
        if kind == _UPDATE:
            seat.update = False
        elif kind == _GRADIENT:
            seat.gradient = False
        self._at(self._now + seconds, self._finish, device, seat, (kind, seat.stage, m))

    def _finish(self, device: Device, seat: _Seat, key: Key) -> None:
        kind, i, _ = key
        self._idle.add(device)
        if kind == _B:
            seat.backward_left -= 1
            seat.gradient = seat.backward_left == 0
        if (kind, i) in ((_F, self._last), (_B, 0)):
            return  # a loss, and what ends at the tokens: nobody waits for them
        if kind in (_GRADIENT, _UPDATE) or self._given.checked:
            self._tell(seat.worker, _CENTRE, self._post, key, seat.is_primary)
        if kind in (_GRADIENT, _UPDATE):
            return
        if not seat.is_primary:
            self._vouch(seat.worker, key)
            return
        tensors = 1 if self._route.jump or i == 0 or kind == _B else 2
        for consumer in self._consumers[kind, i]:
            if consumer == seat.worker:
                self._usable.add((consumer, key))
            else:
                self._send(seat.worker, consumer, key, tensors)

    # -- the coordinator ---------------------------------------------------------------------------------------------

    def _post(self, key: Key, is_primary: bool) -> None:
        kind, i, _ = key
        if kind == _GRADIENT and is_primary:
            self._gradients_s[i] = self._now
        if is_primary or self._needed[i] == 2:
            self._headers[key] += 1
            self._decide(key)

    def _decide(self, key: Key) -> None:
        kind, i, m = key
        if key in self._accepted or self._headers[key] < self._needed[i]:
            return
        if kind in (_GRADIENT, _UPDATE):
            self._accepted.add(key)
            self._go_on()
            return
        parents = ([(_F, i - 1, m)] if i > 0 else []) if kind == _F else ([(_B, i + 1, m)] if i < self._last else [])
        if not self._route.is_trusted(i) and any(parent not in self._accepted for parent in parents):
            return
        self._accepted.add(key)
        for consumer in self._consumers[kind, i]:
            self._tell(_CENTRE, consumer, self._vouch, consumer, key)
        child = (_F, i + 1, m) if kind == _F else (_B, i - 1, m)
        if 0 < child[1] < self._last:
            self._decide(child)
        self._go_on()

    def _go_on(self) -> None:
        stages = self._route.stages
        if self._ordered:
            if all((_UPDATE, i, _WHOLE) in self._accepted for i in stages):
                self._sealed_s = self._now
            return
        if not all((_GRADIENT, i, _WHOLE) in self._accepted for i in stages):
            return
        middle = [i for i in stages if not self._route.is_trusted(i)] if self._given.checked else []
        if all((kind, i, m) in self._accepted for kind in (_F, _B) for i in middle for m in self._micro_batches):
            self._ordered = True
            for worker in self._route.workers:
                self._tell(_CENTRE, worker, self._order_update, worker)
