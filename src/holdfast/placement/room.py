"""Room: whether the machines that are left can hold what a route gives them, and who else could, by their stated memory.

lost w2, no spare     w3 carries 2 and 3, new shadows are due     enough memory: go on     too little: others take some of it
                                                                                           nobody can: the run waits
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from holdfast.partition.memory import readable
from holdfast.route import Route, reshadowed

EXHAUSTIVE = 3_000
"""Ways to seat everybody up to which all are looked at."""

NEWCOMER = "a machine that comes"
"""How one is called of whom nothing is known."""


@dataclass(frozen=True, slots=True)
class Lack:
    """`worker` would have to hold these stages, as primary or shadow."""

    worker: str
    stages: tuple[int, ...]
    needed_bytes: int
    has_bytes: int

    def __str__(self) -> str:
        stages = ", ".join(map(str, sorted(self.stages)))
        return f"{self.worker} would hold stages {stages}: {readable(self.needed_bytes)}, and has {readable(self.has_bytes)}"


@dataclass(frozen=True)
class Room:
    """`needs(stages)` are the bytes of who holds these stages, `limit(worker)` what it has (None: no limit is known)."""

    needs: Callable[[tuple[int, ...]], int]
    limit: Callable[[str], int | None]
    shadowed: bool = True

    def lacking(self, route: Route) -> list[Lack]:
        """Who would have to hold more than he can."""
        found = []
        for worker in route.workers:
            limit = self.limit(worker)
            stages = tuple(i for i, _role in route.seats_of(worker))
            if limit is not None and (needed := self.needs(stages)) > limit:
                found.append(Lack(worker, stages, needed, limit))
        return found

    def fits(self, route: Route, primaries: tuple[str, ...]) -> bool:
        return not self.lacking(self._target(route, primaries))

    def resettle(self, route: Route, spares: Sequence[str]) -> tuple[str, ...] | None:
        """Primaries with which everybody has room: the initiator carries little of the middle, few stages move. None: there are
        none, or none was found.
        """
        middle = [i for i in route.stages if not self._is_outer(route, i)]
        names = list(dict.fromkeys([*route.workers, *spares]))
        best = self._judged(route, route.primaries)
        if len(names) ** len(middle) <= EXHAUSTIVE:
            every = (self._seated(route, middle, seated) for seated in itertools.product(names, repeat=len(middle)))
            best = min((self._judged(route, primaries) for primaries in every), default=best)
        else:
            better = min(self._neighbours(route, best[-1], middle, names))
            while better < best:
                best, better = better, min(self._neighbours(route, better[-1], middle, names))
        return best[-1] if best[0] == 0 else None

    def wanted(self, route: Route, lost: Collection[str]) -> str:
        """What a run that cannot go on waits for."""
        middle = [i for i in route.stages if not self._is_outer(route, i)]
        sizes = sorted({self.needs(stages) for i in middle for stages in ((i,), (i, i - 1))})
        helped = (size for size in sizes if replace(self, limit=self._with(size)).resettle(route, [NEWCOMER]) is not None)
        enough = next(helped, None)
        waits = f"a machine with at least {readable(enough)}" if enough is not None else "more than one machine"
        back = f", or for {' or '.join(sorted(lost))} to come back" if lost else ""
        return f"{'; '.join(map(str, self.lacking(self._target(route, route.primaries))))}; waits for {waits}{back}"

    def _with(self, size: int) -> Callable[[str], int | None]:
        return lambda worker: size if worker == NEWCOMER else self.limit(worker)

    def _is_outer(self, route: Route, stage: int) -> bool:
        return stage in (0, route.stages[-1])

    def _seated(self, route: Route, middle: Sequence[int], seated: Sequence[str]) -> tuple[str, ...]:
        new = dict(zip(middle, seated, strict=True))
        return tuple(new.get(i, name) for i, name in enumerate(route.primaries))

    def _target(self, route: Route, primaries: tuple[str, ...]) -> Route:
        kept = tuple(s if old == new else None for s, old, new in zip(route.shadows, route.primaries, primaries, strict=True))
        moved = primaries != route.primaries
        bare = replace(route, primaries=primaries, shadows=(None,) * len(primaries) if moved else kept)
        return reshadowed(bare) if self.shadowed else bare

    def _judged(self, route: Route, primaries: tuple[str, ...]) -> tuple[int, int, int, int, tuple[str, ...]]:
        excess = sum(lack.needed_bytes - lack.has_bytes for lack in self.lacking(self._target(route, primaries)))
        trusted = sum(name in route.trusted for name in primaries[1:-1])
        moves = sum(old != new for old, new in zip(route.primaries, primaries, strict=True))
        uneven = sum(count**2 for count in Counter(primaries[1:-1]).values())
        return excess, trusted, moves, uneven, primaries

    def _neighbours(
        self, route: Route, primaries: tuple[str, ...], middle: Sequence[int], names: Sequence[str]
    ) -> Iterator[tuple[int, int, int, int, tuple[str, ...]]]:
        for i, name in itertools.product(middle, names):
            yield self._judged(route, (*primaries[:i], name, *primaries[i + 1 :]))
        for a, b in itertools.combinations(middle, 2):
            swapped = list(primaries)
            swapped[a], swapped[b] = primaries[b], primaries[a]
            yield self._judged(route, tuple(swapped))
