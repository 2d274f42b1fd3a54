"""Who holds which stage, and how much is left of them: seats, sealed digests, proven lies.

A seat counts only once its worker has shown the sealed digest. Before a step every seat of the route must count; what is
missing (a new shadow, a holder whose own version was rejected at the seal) is sent by a holder that has it. A worker that
goes takes its seats along; a stage whose last holder goes is beyond the fault window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from holdfast.message import SendState, StateAdopted
from holdfast.route import Route, reshadowed, without


def relieve(route: Route, spares: Sequence[str]) -> tuple[str, ...]:
    """The primaries when each of the `spares` takes a stage from who carries too many: the trusted first, then the most laden.

    >>> route = Route(0, ("i", "w2", "w2", "i", "i"), (None,) * 5, ("i",))
    >>> relieve(route, ["w9", "w1"])
    ('i', 'w1', 'w2', 'w9', 'i')
    """
    primaries = list(route.primaries)
    middle = range(1, len(primaries) - 1)
    for spare in spares:
        carried = Counter(primaries[i] for i in middle)
        laden = [i for i in middle if primaries[i] in route.trusted or carried[primaries[i]] > 1]
        if not laden:
            break
        most = max(laden, key=lambda i: (primaries[i] in route.trusted, carried[primaries[i]], -i))
        primaries[most] = spare
    return tuple(primaries)


class Membership:
    """Base route of the run (without the edits of one step), sealed version and digests, and the record of each worker.

    `members` are all that it began with, the lost ones too.
    """

    def __init__(self, route: Route, version: int, digests: Mapping[int, bytes], *, shadowed: bool) -> None:
        self.route = route
        self.members = frozenset(route.workers)
        self.version = version
        self.digests = dict(digests)
        self.lies: Counter[str] = Counter()
        self.false_complaints: Counter[str] = Counter()
        self.quarantined: set[str] = set()
        self.banned: set[str] = set()
        self.spares: list[str] = []
        self._shadowed = shadowed
        self._before: Route | None = None
        self._holding: set[tuple[int, str]] = set()
        self._tries: Counter[tuple[int, str]] = Counter()
        self._asked = set(self.missing())  # whoever deploys the run sends the first states unasked

    def adopted(self, worker: str, message: StateAdopted) -> bool:
        """Whether the worker really has the sealed state of that seat; only then does it count as a holder."""
        seat = (message.stage, worker)
        if seat not in self.missing():
            return False  # nobody asked: a state that a stranger sent unseats no holder
        good = message.version == self.version and message.digest == self.digests[message.stage]
        if good:
            self._holding.add(seat)
        if good or self._tries[seat] < 2 * len(self.sources(message.stage)):
            self._asked.discard(seat)  # at once, but not for ever: a false word would order whole states as fast as it is said
        return good

    def distrust(self, stage: int, worker: str) -> None:
        """The worker's version of `stage` was rejected: it gets the sealed one again before the next step."""
        self._holding.discard((stage, worker))

    def seal(self, digests: Mapping[int, bytes]) -> None:
        """One more version stands; stages without a new digest were frozen and keep theirs."""
        self.version += 1
        self.digests.update(digests)

    @property
    def is_settled(self) -> bool:
        """Whether no new seating is under way."""
        return self._before is None

    @property
    def seated(self) -> Route:
        """Who really holds the stages now, while a new seating is not complete."""
        return self._before or self.route

    def without(self, worker: str) -> Route | None:
        """The route when `worker` is out; a new seating that was not complete yet is given up for that."""
        return without(self.seated, {worker})

    def lose(self, worker: str) -> None:
        """The worker is out. Call only where `without` gives a route."""
        route = self.without(worker)
        assert route is not None
        self.route, self._before = replace(route, epoch=max(route.epoch, self.route.epoch + 1)), None
        self._holding = {seat for seat in self._holding if seat[1] != worker}
        self._asked.clear()

    def target(self) -> Route:
        """The route that the next step should run on: every untrusted stage shadowed."""
        return reshadowed(self.route) if self._shadowed else self.route

    def missing(self) -> list[tuple[int, str]]:
        """Seats of the target route whose worker has not shown the sealed digest."""
        route = self.target()
        return [(i, w) for i in route.stages for w in route.holders(i) if (i, w) not in self._holding]

    def transfers(self) -> list[tuple[str, SendState]]:
        """Orders to send what is missing, each asked once; after a failed attempt another holder is asked, if there is one."""
        route = self.target()
        orders = []
        for stage, worker in self.missing():
            sources = self.sources(stage)
            if not sources or (stage, worker) in self._asked:
                continue
            role = route.role(stage, worker)
            assert role is not None
            self._asked.add((stage, worker))
            order = SendState(stage, self.version, worker, role, self.digests[stage])
            orders.append((sources[self._tries[stage, worker] % len(sources)], order))
            self._tries[stage, worker] += 1
        return orders

    def settle(self) -> Route:
        """Adopt the target route; call when nothing is missing."""
        assert not self.missing()
        self.route, self._before = self.target(), None
        self._holding = {(i, w) for i in self.route.stages for w in self.route.holders(i)}
        self._tries.clear()
        return self.route

    def reseat(self, primaries: tuple[str, ...]) -> None:
        """Other primaries from the next step on; until their seats count, those who have the states now stay their sources."""
        shadows: tuple[str | None, ...] = (None,) * len(primaries)
        self._before = self._before or self.route
        self.route = replace(self.route, epoch=self.route.epoch + 1, primaries=primaries, shadows=shadows)
        self._asked.clear()

    def settle_in(self, primaries: tuple[str, ...]) -> None:
        """Spares have taken seats: `primaries` stand from the next step on, once all of them have shown the sealed states."""
        self.spares = [worker for worker in self.spares if worker not in primaries]
        self.reseat(primaries)

    def vouch(self, stage: int, trusted: str) -> None:
        """`trusted` (the referee) will have the next sealed state of `stage`, for this one step boundary."""
        self._holding.add((stage, trusted))

    def ask_again(self) -> None:
        """Whoever was asked for a state and did not deliver may be asked again."""
        self._asked.clear()

    def sources(self, stage: int) -> list[str]:
        """Every member that has shown the sealed state of `stage`, the shadow first (it has less to send)."""
        holders = [worker for worker in self.route.holders(stage)[::-1] if (stage, worker) in self._holding]
        return holders + sorted(worker for i, worker in self._holding if i == stage and worker not in holders)

    def new_shadows(self) -> list[tuple[int, str]]:
        """The (stage, worker) pairs that the target route adds."""
        target = self.target()
        return [(i, s) for i in target.stages if (s := target.shadows[i]) is not None and s != self.route.shadows[i]]
