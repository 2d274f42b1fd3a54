"""Who holds which stage, and how much is left of them: seats, sealed digests, proven lies.

A seat counts only once its worker has shown the sealed digest. Before a step every seat of the route must count; what is
missing (a new shadow, a holder whose own version was rejected at the seal) is sent by a holder that has it. Where another
state arrives, or none, nothing is proven between the two: every holder sends it to the coordinator, which checks it and hands
it on. A worker that goes takes its seats along; a stage whose last holder goes is beyond the fault window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from holdfast.message import SendState, StateAdopted
from holdfast.route import Route, reshadowed, without
from holdfast.stage import COORDINATOR


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

    `members` are all that it began with, the lost ones too; `handed` are the seats whose state a trusted party has sent.
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
        self._doubted: dict[tuple[int, str], set[str]] = {}
        self.handed: set[tuple[int, str]] = set()
        self._asked = set(self.missing())  # whoever deploys the run sends the first states unasked

    def start_on(self, route: Route) -> None:
        """Begin with another route than was meant, before anybody has been sent a state."""
        assert not self._holding
        self.route, self.members = route, self.members | frozenset(route.workers)
        self._asked = set(self.missing())

    @property
    def is_shown(self) -> bool:
        """Whether every stage has somebody who can send its state on."""
        return all(self.sources(i) for i in self.route.stages)

    def adopted(self, worker: str, message: StateAdopted) -> bool:
        """Whether the worker really has the sealed state of that seat; only then does it count as a holder."""
        seat = (message.stage, worker)
        if seat not in self.missing():
            return False  # nobody asked: a state that a stranger sent unseats no holder
        sealed = self.digests[message.stage]
        good = message.version == self.version and (not sealed or message.digest == sealed)
        if good:
            self.digests[message.stage] = message.digest  # sealed without one where nobody checks: then any state is believed
            self._holding.add(seat)
            self._asked.discard(seat)
        else:
            self._doubt(seat)
        return good

    def _doubt(self, seat: tuple[int, str]) -> None:
        """Who is to blame is open, the sender or the receiver: the state comes through the coordinator, once."""
        if seat not in self._doubted:
            self._doubted[seat] = set()
            self._asked.discard(seat)

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
        given_up = [name for name in self.route.workers if name not in (*route.workers, worker)]
        self.spares = [*(spare for spare in self.spares if spare not in route.workers), *given_up]
        self.route, self._before = replace(route, epoch=max(route.epoch, self.route.epoch + 1)), None
        self._holding = {seat for seat in self._holding if seat[1] != worker}
        self._asked.clear()
        for seat in [seat for seat in self._doubted if seat[1] == worker]:
            del self._doubted[seat]
            self.handed.discard(seat)

    def forget(self, worker: str) -> None:
        """A spare is gone; what it may still have had of an earlier seat cannot be asked for any more."""
        self.spares = [spare for spare in self.spares if spare != worker]
        if worker not in self.route.workers:
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
        """Orders to send what is missing, each once: to one holder; after a failed attempt to all, for the coordinator."""
        route = self.target()
        orders = []
        for stage, worker in self.missing():
            seat, sources = (stage, worker), self.sources(stage)
            if not sources or seat in self._asked or seat in self.handed:
                continue
            role = route.role(stage, worker)
            assert role is not None
            self._asked.add(seat)
            sealed = self.digests[stage]
            if seat in self._doubted:
                untried = [source for source in sources if source not in self._doubted[seat]]
                orders += [(source, SendState(stage, self.version, COORDINATOR, role, sealed)) for source in untried]
            else:
                orders.append((sources[0], SendState(stage, self.version, worker, role, sealed)))
        return orders

    def awaiting(self, stage: int, source: str) -> list[str]:
        """The workers for whose seats `source` owes the coordinator the state of `stage`."""
        if source not in self.sources(stage):
            return []
        seats = [seat for seat in self.missing() if seat[0] == stage and seat in self._doubted and seat not in self.handed]
        return [seat[1] for seat in seats if source not in self._doubted[seat]]

    def failed(self, stage: int, source: str) -> None:
        """What `source` sent the coordinator was not the sealed state of `stage`."""
        for worker in self.awaiting(stage, source):
            self._doubted[stage, worker].add(source)

    @property
    def exhausted(self) -> list[str]:
        """Holders of a state that is missing somewhere, of whom each has sent the coordinator another one."""
        found = []
        for seat in self.missing():
            sources = self.sources(seat[0]) if seat in self._doubted and seat not in self.handed else []
            found += sources if all(source in self._doubted[seat] for source in sources) else []
        return list(dict.fromkeys(found))

    def owing(self) -> list[str]:
        """Who keeps seats empty, the surest first: holders that have not sent the coordinator what it asked for; where there is
        none, who was sent the first states. Whoever was handed a state by a trusted party has a deadline of its own.
        """
        open_seats = [seat for seat in self.missing() if seat not in self.handed]
        return [
            worker for seat in open_seats for worker in (self.sources(seat[0]) if seat in self._doubted else []) or [seat[1]]
        ]

    def settle(self) -> Route:
        """Adopt the target route; call when nothing is missing."""
        assert not self.missing()
        self.route, self._before = self.target(), None
        self._holding = {(i, w) for i in self.route.stages for w in self.route.holders(i)}
        self._doubted.clear()
        self.handed.clear()
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

    def found(self, holders: Mapping[int, Sequence[str]]) -> None:
        """Before the first step: these have said that they hold the sealed states still. As with a digest that is shown, that
        is their word: a state that they pass on is checked, and what they compute from it is compared.
        """
        self._holding |= {(stage, worker) for stage, workers in holders.items() for worker in workers}
        self._asked.clear()

    def ask_again(self) -> None:
        """What has not arrived in time is asked for again, from now on through the coordinator."""
        self._asked.clear()
        for seat in self.missing():
            self._doubt(seat)

    def sources(self, stage: int) -> list[str]:
        """Every member that has shown the sealed state of `stage`, the shadow first (it has less to send)."""
        holders = [worker for worker in self.route.holders(stage)[::-1] if (stage, worker) in self._holding]
        return holders + sorted(worker for i, worker in self._holding if i == stage and worker not in holders)

    def new_shadows(self) -> list[tuple[int, str]]:
        """The (stage, worker) pairs that the target route adds."""
        target = self.target()
        return [(i, s) for i in target.stages if (s := target.shadows[i]) is not None and s != self.route.shadows[i]]
