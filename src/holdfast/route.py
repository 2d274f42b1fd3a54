"""A route says who is primary and who is shadow of each stage now, and therefore who sends what to whom.

With K = 5, every worker on its own stage (P primary, S shadow; stages 0 and K-1 belong to the initiator and are trusted):

    worker       w0     w1     w2     w3     w4
    primary of   0      1      2      3      4
    shadow of                  1      2      3

    forward      a_1 goes to every holder of stage 2:  w2 (primary) and w3 (shadow: the jumping connection)
    backward     g_2 goes to every holder of stage 1:  w1 (primary) and w2 (shadow; the sender itself, nothing travels)

A takeover, a re-shadowing, a bypass and a relay are edits; each gives a new route with the next epoch. Everything here is
a pure function of the route, with a table for a test.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from holdfast.claim import Direction, Role


@dataclass(frozen=True, slots=True)
class Route:
    """Seats of a run of K stages; `primaries[i]` and `shadows[i]` are worker names (None: nobody shadows it).

    `trusted` are the initiator's workers; `bypassed` are the stages left out of this step; `frozen` are the stages that take
    no update in it; `relay` sends tensors through the coordinator; `jump` is False only for the `duplicate-only` ablation.
    """

    epoch: int
    primaries: tuple[str, ...]
    shadows: tuple[str | None, ...]
    trusted: tuple[str, ...]
    bypassed: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    relay: bool = False
    jump: bool = True

    @property
    def stages(self) -> range:
        return range(len(self.primaries))

    @property
    def active(self) -> tuple[int, ...]:
        """The stages that compute in this step, in order."""
        return tuple(i for i in self.stages if i not in self.bypassed)

    @property
    def workers(self) -> tuple[str, ...]:
        """Every worker with a seat, once, in stage order."""
        seats = [name for pair in zip(self.primaries, self.shadows, strict=True) for name in pair if name is not None]
        return tuple(dict.fromkeys(seats))

    def after(self, stage: int) -> int | None:
        """The next stage that computes in this step, or None behind the last one."""
        return next((i for i in range(stage + 1, len(self.primaries)) if i not in self.bypassed), None)

    def before(self, stage: int) -> int | None:
        """The previous stage that computes in this step, or None before the first one."""
        return next((i for i in range(stage - 1, -1, -1) if i not in self.bypassed), None)

    def holders(self, stage: int) -> tuple[str, ...]:
        """Primary first, then the shadow's worker where there is one."""
        shadow = self.shadows[stage]
        return (self.primaries[stage],) if shadow is None else (self.primaries[stage], shadow)

    def role(self, stage: int, worker: str) -> Role | None:
        if self.primaries[stage] == worker:
            return Role.PRIMARY
        return Role.SHADOW if self.shadows[stage] == worker else None

    def consumers(self, direction: Direction, stage: int) -> tuple[str, ...]:
        """Who needs the output of `stage`: every holder of the neighbour that it feeds.

        Without the jumping connection the neighbour's shadow is left out, and the own shadow is told what it was made from.
        """
        neighbour = self.after(stage) if direction is Direction.FORWARD else self.before(stage)
        if neighbour is None or direction not in (Direction.FORWARD, Direction.BACKWARD):
            return ()
        if direction is Direction.FORWARD and not self.jump:
            return tuple(dict.fromkeys([self.primaries[neighbour], *self.holders(stage)[1:]]))
        return self.holders(neighbour)

    def comparer(self, direction: Direction, stage: int) -> str | None:
        """Who holds the tensors of both holders of `stage` against one another, where their bytes may differ.

        Forward the shadow's worker, which gets the primary's output anyway; backward the primary of the stage before, to which
        the shadow sends its own result two stages back. Nobody who would compare his own claim.
        """
        if direction is Direction.FORWARD:
            found = self.shadows[stage]
        else:
            before = self.before(stage) if direction is Direction.BACKWARD else None
            found = None if before is None else self.primaries[before]
        return None if self.shadows[stage] is None or found == self.primaries[stage] else found

    def untrusted(self, names: Iterable[str]) -> list[str]:
        """Those among `names`, each once, who can be lost: they have a seat, and are no trusted party."""
        return [name for name in dict.fromkeys(names) if name in self.workers and name not in self.trusted]

    def is_trusted(self, stage: int) -> bool:
        return self.primaries[stage] in self.trusted

    def seats_of(self, worker: str) -> tuple[tuple[int, Role], ...]:
        found = [(i, role) for i in self.stages if (role := self.role(i, worker)) is not None]
        return tuple(found)


def plain_route(workers: Collection[str], trusted: Collection[str], *, shadowed: bool, jump: bool = True) -> Route:
    """The route at the start of a run: worker i is primary of stage i, and shadow of stage i-1 where that is a middle stage.

    >>> plain_route(["w0", "w1", "w2", "w3"], ["w0", "w3"], shadowed=True).shadows
    (None, 'w2', 'w3', None)
    """
    primaries = tuple(workers)
    bare = Route(0, primaries, (None,) * len(primaries), tuple(trusted), jump=jump)
    return reshadowed(bare) if shadowed else bare


def reshadowed(route: Route) -> Route:
    """Give every untrusted stage without a shadow one: the worker of the nearest later stage that is another worker.

    The last stage is the initiator's, so there always is one.
    """
    shadows = list(route.shadows)
    for i in route.stages:
        if shadows[i] is None and not route.is_trusted(i):
            shadows[i] = next(w for w in route.primaries[i + 1 :] if w != route.primaries[i])
    return replace(route, epoch=route.epoch + 1, shadows=tuple(shadows)) if tuple(shadows) != route.shadows else route


def without(route: Route, lost: Collection[str]) -> Route | None:
    """The route after `lost` workers are gone: shadows take over as primaries; None if a stage lost both holders."""
    primaries = list(route.primaries)
    shadows = [None if s in lost else s for s in route.shadows]
    for i in route.stages:
        if primaries[i] in lost:
            heir = shadows[i]
            if heir is None:
                return None
            primaries[i], shadows[i] = heir, None
    return replace(route, epoch=route.epoch + 1, primaries=tuple(primaries), shadows=tuple(shadows))
