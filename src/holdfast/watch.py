"""The watch over a run that may stop moving: one timer, set again as long as it moves; if it does not, who is silent is lost.

    armed --> rings --> it has moved ------------------------------> armed again
                  `--> not since it was set: everything is sent again --> rings --> still not: the surest of the silent is lost

Who owes a claim is in `holdfast.deadline`. Whoever was handed a state by the coordinator itself has a timer of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.court import Court
from holdfast.deadline import owing
from holdfast.membership import Membership
from holdfast.message import Envelope
from holdfast.stage import COORDINATOR
from holdfast.step import Policy, StepState


@dataclass(frozen=True, slots=True)
class Overdue:
    """`worker` has missed a deadline and counts as lost; None: nothing moves, though nobody owes anything."""

    worker: str | None
    reason: str


class Watch:
    """Called by the coordinator with the running step `now`, or None between two. `timers` (token, seconds) are to be set."""

    def __init__(self, policy: Policy, membership: Membership, court: Court) -> None:
        self.timers: list[tuple[object, float]] = []
        self._policy = policy
        self._membership = membership
        self._court = court
        self._warned: object = None
        self._armed = False

    # -- the run -----------------------------------------------------------------------------------------------------

    def arm(self, now: StepState | None) -> None:
        """One timer at a time; one that was set before the last progress only sets the next."""
        if not self._armed:
            self._armed = True
            moving = now is None or now.at_the_referee  # whole states may be on their way
            self.timers.append((self._pulse(now), self._policy.deadline_s + self._policy.transfer_s * bool(moving)))

    def rest(self) -> None:
        """The timer has rung, and nothing is waited for."""
        self._armed = False

    def ring(self, now: StepState | None, token: object) -> list[Envelope] | Overdue:
        """No progress since the timer was set: first have everything sent again, then count a silent worker as lost."""
        self._armed = False
        self.arm(now)
        if token != self._pulse(now):
            return []
        if self._warned != token:
            self._warned = token
            return self._send_again(now)
        self._warned = None
        return self._give_up(now)

    def silent(self, now: StepState | None) -> list[str]:
        """Untrusted workers that owe an answer, the surest first."""
        if now is None:
            owed = self._membership.owing()
        else:
            owed = [source for awaited in now.awaited.values() for source in awaited.sources]
            owed += [holder for stage in now.unopened for holder in now.route.holders(stage)]
            owed += owing(
                now.route,
                now.board,
                self._policy.micro_batches,
                updating=now.update is not None,
                likeness=self._policy.likeness,
            )
        return self._membership.route.untrusted(owed)

    def _pulse(self, now: StepState | None) -> tuple[int, ...]:
        """Changes whenever the run has moved on; also where a tensor was handed on from here: its receiver has just got it."""
        if now is None:
            return (self._membership.version, len(self._membership.missing()))
        return (now.step, now.attempt, len(now.board.accepted), len(now.findings), len(now.handed))

    def _send_again(self, now: StepState | None) -> list[Envelope]:
        """What a stuck run may lack: a state, a tensor or a ruling that a silent or lying sender withheld."""
        if now is not None:
            return self._court.deliveries.withheld(now) + self._court.not_examined(now)
        self._membership.ask_again()
        return [Envelope(COORDINATOR, source, order) for source, order in self._membership.transfers()]

    def _give_up(self, now: StepState | None) -> list[Envelope] | Overdue:
        waited, silent = f"{2 * self._policy.deadline_s:g} s", self.silent(now)
        if silent:
            if now is not None:
                self._court.deliveries.overdue(now, silent[0])
            return Overdue(silent[0], f"no progress within {waited}")
        if now is None and self._membership.handed.intersection(self._membership.missing()):
            return []  # they have a deadline of their own, which began later
        return Overdue(None, f"nothing has moved for {waited} and nobody owes anything")

    # -- states that were handed over --------------------------------------------------------------------------------

    def handed(self, stage: int, worker: str) -> None:
        """The coordinator itself has sent `worker` the sealed state of `stage`: it has time to show it from now on."""
        token = ("handed", self._membership.version, stage, worker)
        self.timers.append((token, self._policy.deadline_s + self._policy.transfer_s))

    def not_shown(self, version: int, stage: int, worker: str) -> list[Envelope] | Overdue:
        """That timer has rung between two steps."""
        seat, membership = (stage, worker), self._membership
        if version != membership.version or seat not in membership.handed or seat not in membership.missing():
            return []
        return Overdue(worker, f"it has not shown the state of stage {stage} that the coordinator sent it")
