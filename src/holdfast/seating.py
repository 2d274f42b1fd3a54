"""Seating: which workers carry which stages from the next step on, where nobody is missing: as told, by relief, by lot.

assigned     as placement has told it                      whoever has no seat afterwards is a spare
relieved     a spare takes a stage from who has too many   unless seats were chosen with care
redrawn      by lot, every so many steps                   so that nobody stays beside an accomplice
made room    a machine cannot hold what it is given        others take some of it, or the run waits: `paused`
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.event import Event, Paused, Reseated
from holdfast.membership import Membership, relieve
from holdfast.step import Policy
from holdfast.verify.spotcheck import seats


class Seating:
    """Called by the coordinator between two steps. `paused` says what the run waits for before the next one, if it does."""

    def __init__(self, policy: Policy, membership: Membership, events: list[Event]) -> None:
        self.paused: str | None = None
        self._policy = policy
        self._membership = membership
        self._events = events
        self._assigned: tuple[str, ...] | None = None
        self._chosen: tuple[str, ...] | None = None

    def note_chosen(self) -> None:
        """Before anything changes: where seats were chosen with care, those of the first step are."""
        if self._policy.seated and self._chosen is None:
            self._chosen = self._membership.route.primaries

    def assign(self, primaries: tuple[str, ...]) -> None:
        """Have these workers carry the stages from the next step on, if all of them are there then."""
        self._assigned = primaries

    def rearrange(self, step: int) -> None:
        """Change seats before `step`, for every reason that there is."""
        self._reassign(step)
        self._settle_in(step)
        self._redraw(step)

    def has_room(self, step: int) -> bool:
        """Whether everybody can hold what the next step gives him; else others take some of it, or the run waits."""
        room, membership = self._policy.room, self._membership
        if room is None or not room.lacking(membership.target()):
            self.paused = None
            return True
        if not membership.is_shown:
            return True  # what has not arrived yet cannot be moved
        primaries = room.resettle(membership.route, membership.spares) if membership.is_settled else None
        if primaries is not None:
            self._seat(step, primaries)
            self.paused = None
            return True
        lost = membership.members - membership.banned - {*membership.route.workers, *membership.spares}
        reason = room.wanted(membership.route, lost)
        if reason != self.paused:
            self.paused = reason
            self._events.append(Paused(step, reason))
        return False

    def _reassign(self, step: int) -> None:
        """Workers change seats as they were told to; who has none afterwards is a spare."""
        primaries, self._assigned = self._assigned, None
        membership = self._membership
        there = {*membership.route.workers, *membership.spares}
        if primaries is None or primaries == membership.route.primaries or not membership.is_settled:
            return
        if there.issuperset(primaries):
            self._chosen = primaries
            self._seat(step, primaries)

    def _seat(self, step: int, primaries: tuple[str, ...]) -> None:
        membership = self._membership
        idle = [worker for worker in membership.route.workers if worker not in primaries]
        membership.settle_in(primaries)
        membership.spares += idle
        self._events.append(Reseated(step, primaries))

    def _settle_in(self, step: int) -> None:
        """Spares take seats from who carries too many stages, as soon as nothing else is missing."""
        membership = self._membership
        if membership.route.primaries == self._chosen or not membership.is_settled or not membership.is_shown:
            return
        primaries, room = membership.route.primaries, self._policy.room
        for spare in membership.spares:
            relieved = relieve(replace(membership.route, primaries=primaries), [spare])
            if room is None or room.fits(membership.route, relieved):
                primaries = relieved
        if primaries != membership.route.primaries:
            membership.settle_in(primaries)
            self._events.append(Reseated(step, primaries))

    def _redraw(self, step: int) -> None:
        """Every so many steps other workers sit on the untrusted stages, so that nobody stays beside an accomplice."""
        every = self._policy.inspection.redraw_every
        if not every or step == 0 or step % every:
            return
        route = self._membership.route
        primaries = seats(route.primaries, route.trusted, self._policy.inspection.sampling.seed, step)
        room = self._policy.room
        if primaries != route.primaries and (room is None or room.fits(route, primaries)):
            self._membership.reseat(primaries)
            self._events.append(Reseated(step, primaries))
