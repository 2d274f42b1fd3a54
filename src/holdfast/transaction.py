"""A step is a transaction: attempts begin it from the sealed version, until one is agreed on and becomes the next version.

begin --> StepState --> every gradient agreed --> Update (one clip scale, one rate) --> every update agreed --> seal
             ^                   |
again -------+-------- redo -----+
"""

from __future__ import annotations

from holdfast.errors import FaultWindowExceeded
from holdfast.event import Event, Reshadowed, StagesSkipped, StepRestarted, StepSealed
from holdfast.evidence.notary import Notary
from holdfast.membership import Membership
from holdfast.message import Update
from holdfast.recover.remedy import Redo
from holdfast.route import Route
from holdfast.step import Policy, StepState

MAX_ATTEMPTS = 32
"""Attempts of one step before the coordinator gives up on ever sealing it."""


class Transactions:
    """Called by the coordinator, which keeps the attempt that runs, `now`, and tells the workers."""

    def __init__(self, policy: Policy, membership: Membership, notary: Notary, events: list[Event]) -> None:
        self._policy = policy
        self._membership = membership
        self._notary = notary
        self._events = events

    def begin(self, step: int) -> StepState:
        """The first attempt, on the route for which every seat counts by now."""
        membership = self._membership
        self._events += [Reshadowed(i, worker, membership.version) for i, worker in membership.new_shadows()]
        route = self._policy.planned(step, membership.settle())
        if route.bypassed:
            self._events.append(StagesSkipped(step, route.bypassed, route.frozen))
        return self._attempt(step, 0, route)

    def again(self, now: StepState, answer: Redo, reason: str) -> StepState:
        """The next attempt. Raises FaultWindowExceeded after too many."""
        attempt = now.attempt + 1
        if attempt > MAX_ATTEMPTS:
            raise FaultWindowExceeded(
                f"step {now.step} was begun {attempt} times and never sealed ({reason}); use --on-alert replace, or ban liars"
            )
        if answer.route.bypassed and answer.route.bypassed != now.route.bypassed:
            self._events.append(StagesSkipped(now.step, answer.route.bypassed, answer.route.frozen))
        else:
            self._events.append(StepRestarted(now.step, attempt, reason))
        return self._attempt(now.step, attempt, answer.route)

    def may_update(self, now: StepState) -> bool:
        """Whether every gradient stands, and every claim that it was made from, and nobody has been told yet."""
        return now.update is None and now.gradients_agreed and (now.claims_settled or not self._policy.checked)

    def order_update(self, now: StepState) -> Update:
        """Make the clip scale from the agreed norms."""
        now.clipping = self._policy.clip(now.accounts)
        now.update = Update(now.step, now.attempt, now.clipping.scale, self._policy.learning_rate(now.step))
        return now.update

    def may_seal(self, now: StepState) -> bool:
        """Whether every update that was ordered stands."""
        return now.update is not None and now.updates_agreed

    def seal(self, now: StepState) -> None:
        """One more version stands. Who did not show the sealed digest gets the state again before the next step."""
        membership = self._membership
        digests = {i: now.board.accepted[now.update_key(i)] for i in now.updating}
        for i in now.updating if self._policy.checked else ():
            shown = {header.worker for header in now.board.headers(now.update_key(i)) if header.output == digests[i]}
            for holder in membership.route.holders(i):
                if holder not in shown:
                    membership.distrust(i, holder)
        membership.seal(digests)
        self._notary.sealed(membership.version, now.step, now.attempt, membership.digests)
        losses = [now.losses[m] for m in sorted(now.losses)]
        loss = sum(losses) / max(1, len(losses))
        rate, tokens = self._policy.learning_rate(now.step), self._policy.tokens_per_step
        self._events.append(StepSealed(now.step, now.attempt, loss, now.clipping.norm, rate, tokens))

    def _attempt(self, step: int, attempt: int, route: Route) -> StepState:
        policy, membership = self._policy, self._membership
        sealed = {i: membership.digests[i] for i in route.stages}
        return StepState(step, attempt, membership.version, route, policy.micro_batches, sealed, policy.likeness)
