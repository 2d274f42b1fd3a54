"""Succession: who comes and who is out, banned or lost, and who takes over, between two steps and inside of one.

comes     without a seat: a spare, unless it has lied too often
banned    at a step boundary, where every stage keeps a holder      --> its shadows' workers take over
lost      at any time                                               --> likewise, and the running step goes on with the heirs
                                                                        `--> it is redone where they cannot go on
"""

from __future__ import annotations

from holdfast.event import Banned, Event, Joined, TakenOver
from holdfast.evidence.notary import Notary
from holdfast.membership import Membership
from holdfast.recover.remedy import Redo
from holdfast.route import without
from holdfast.step import Policy, StepState


class Succession:
    """Called by the coordinator. `step` is the one that runs, or would be next: events and evidence name it."""

    def __init__(self, policy: Policy, membership: Membership, notary: Notary, events: list[Event]) -> None:
        self._policy = policy
        self._membership = membership
        self._notary = notary
        self._events = events

    def welcome(self, worker: str, step: int) -> bool:
        """Whether a worker that has come is a spare now; not if it is known already, or out."""
        membership = self._membership
        if worker in membership.spares or worker in membership.route.workers or worker in membership.banned:
            return False
        if self._is_to_be_banned(worker):
            self._ban(worker, step)
            return False
        membership.spares.append(worker)
        self._events.append(Joined(worker, step))
        return True

    def exclude_banned(self, step: int) -> None:
        """At a step boundary, ban whoever has lied too often, where every stage keeps a holder.

        False complaints are counted whatever the policy: they cost the coordinator itself.
        """
        for worker in self._membership.route.workers:
            if self._is_to_be_banned(worker) and self._membership.without(worker) is not None:
                self._ban(worker, step)
                self.take_over(worker, step)

    def take_over(self, worker: str, step: int) -> None:
        """`worker` is out: the shadows of its stages are their primaries from now on. Call only where each has one."""
        old = self._membership.seated
        self._membership.lose(worker)
        for i in old.stages:
            if old.primaries[i] == worker:
                heir = self._membership.route.primaries[i]
                self._notary.took_over(i, worker, heir, step)
                self._events.append(TakenOver(i, worker, heir, step))

    def hand_over(self, now: StepState, lost: str) -> bool:
        """Put the heirs of `lost` on the route of the running step; False if they cannot go on, and it must be redone."""
        route = without(now.route, {lost})
        if route is None:  # this step bypassed the only heir
            self._redo(now, f"{lost} was lost in a bypassed step")
            return False
        heirs = [(i, route.primaries[i]) for i in route.stages if now.route.primaries[i] == lost]
        if self._policy.likeness is not None and any(self._policy.likeness.unlike(lost, heir) for _, heir in heirs):
            self._redo(now, f"the heir of {lost} computes with other bytes")
            return False
        for i, heir in heirs:
            now.board.promote(i, heir)
        now.route = route
        now.board.retire(lost)
        return True

    def _redo(self, now: StepState, reason: str) -> None:
        now.redo = Redo(self._policy.planned(now.step, self._membership.route), investigate=False), reason

    def _ban(self, worker: str, step: int) -> None:
        self._events.append(Banned(worker, self._lies_of(worker), step))
        self._membership.banned.add(worker)

    def _lies_of(self, worker: str) -> int:
        counted = self._membership.lies if self._policy.ban == "ban" else self._membership.false_complaints
        return counted[worker]

    def _is_to_be_banned(self, worker: str) -> bool:
        return self._lies_of(worker) >= self._policy.ban_after
