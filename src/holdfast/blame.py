"""Blame: who is accused and who is convicted, in events, in evidence and on the record that bans follow.

alert      a check failed: somebody among the suspects may have lied
convict    the culprits lied about one claim, each once
confront   two signed accounts of one claim convict their author, wherever the second one was shown
"""

from __future__ import annotations

from holdfast.claim import ClaimKey, Header
from holdfast.event import Alert, Event, Ruling
from holdfast.evidence.envelope import conflict
from holdfast.evidence.notary import BOARD, Notary
from holdfast.membership import Membership
from holdfast.step import StepState


class Blame:
    """Called by the court, the deliveries and the inspector. With `quarantine`, a first proven lie puts its author there."""

    def __init__(self, membership: Membership, events: list[Event], notary: Notary, *, quarantine: bool) -> None:
        self._membership = membership
        self.events = events
        self.notary = notary
        self._quarantine = quarantine

    def confront(self, now: StepState, shown: Header | None, by: str) -> None:
        """Hold a header that `by` was sent against what its signer told the board, now or as soon as it does."""
        if shown is None or not self.notary.proves(shown):
            return
        posted = now.board.signed(shown.key, shown.worker)
        if posted is None:
            now.shown[shown.key, shown.worker] = shown, by
        elif conflict(posted, shown):
            self.equivocated(now, posted, shown, by)

    def equivocated(self, now: StepState, first: Header, second: Header, by: str) -> None:
        """Two headers of one worker for one claim say different things: it is convicted, once a claim, without a referee."""
        slot = (first.key, first.worker)
        if slot not in now.equivocators:
            now.equivocators.add(slot)
            self.notary.equivocated(first, second, by)
            self.convict(first.key, (first.worker,), "equivocation")

    def alert(
        self,
        key: ClaimKey,
        reason: str,
        suspects: tuple[str, ...],
        by: str = BOARD,
        accounts: tuple[Header, ...] = (),
        inputs: tuple[bytes, ...] | None = None,
    ) -> None:
        """A check of `key` failed; `suspects` may have lied, `by` found it out."""
        self.notary.accuse(key, reason, suspects, by, accounts, inputs)
        self.events.append(Alert(key, reason, suspects))

    def convict(self, key: ClaimKey, culprits: tuple[str, ...], reason: str) -> None:
        """`culprits` lied about `key`: once each, on the record that bans follow."""
        self.events.append(Ruling(key, culprits, key.stage, reason))
        for worker in culprits:
            self._membership.lies[worker] += 1
            if self._quarantine:
                self._membership.quarantined.add(worker)
