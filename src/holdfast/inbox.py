"""What a worker has been sent in this step, and which of it may be used: a tensor counts once its digest is the board's.

    delivered, no ruling      kept, unused
    ruling, no delivery       waited for
    both, equal               usable
    both, different           dropped, and the coordinator is told, who has it sent again by another holder

A worker also believes itself: its own output feeds its other seat at once, and a delivery with the digest that its own shadow
computed is usable before the board has ruled. With defences off nothing is ruled, and what is delivered first is usable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.claim import Claim, ClaimKey
from holdfast.digest import tensor_digest
from holdfast.message import Complaint
from holdfast.verify.jump import check_delivery
from holdfast.verify.verdict import Accepted, Rejected


@dataclass(frozen=True, slots=True)
class Boundary:
    """What every tensor between two stages looks like: [B, S, D] of one dtype, or as `holdfast.quantise` packs that."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    waiting: int = 1024
    """Unruled tensors that one sender may have waiting: more than a step and the next have between two workers.

    Where nothing is ruled, the tensors of all senders together.
    """


@dataclass(frozen=True, slots=True)
class _Delivery:
    sender: str
    claim: Claim
    digest: bytes
    answerable: bool = True


class Inbox:
    """Deliveries and rulings of one step and attempt; early ones of later attempts are kept, late ones are dropped."""

    def __init__(self, boundary: Boundary, *, checked: bool) -> None:
        self._boundary = boundary
        self._checked = checked
        self._now = (-1, 0)
        self._rulings: dict[ClaimKey, bytes] = {}
        self._deliveries: dict[ClaimKey, list[_Delivery]] = {}
        self._usable: dict[ClaimKey, Claim] = {}
        self._vouched: dict[ClaimKey, bytes] = {}

    def begin(self, step: int, attempt: int) -> None:
        """Forget everything that belongs to an earlier step or attempt."""
        self._now = (step, attempt)
        for table in (self._rulings, self._deliveries, self._usable, self._vouched):
            for key in [key for key in table if (key.step, key.attempt) < self._now]:
                del table[key]

    def rule(self, key: ClaimKey, output: bytes) -> list[Complaint]:
        """Take the board's ruling; the answer lists the deliveries that do not match it."""
        if (key.step, key.attempt) < self._now or key in self._rulings:
            return []
        self._rulings[key] = output
        found = [self._settle(delivery) for delivery in self._deliveries.pop(key, [])]
        return [complaint for complaint in found if complaint is not None]

    def deliver(self, sender: str, claim: Claim, *, answerable: bool = True) -> list[Complaint]:
        """Take a tensor from anyone; it is trusted no further than its digest.

        Who is not `answerable` sent it for comparison, and need not have what the board accepts.
        """
        key = claim.header.key
        if (key.step, key.attempt) < self._now:
            return []
        if key in self._usable:
            late = self._contradiction(sender, claim) if answerable else None
            return [] if late is None else [late]
        if not self.fits(claim.tensor) or (claim.origin is not None and not self.fits(claim.origin)):
            return [_complaint(sender, claim, b"")]
        if not self._checked:
            if len(self._usable) < self._boundary.waiting:
                self._usable[key] = claim
            return []
        delivery = _Delivery(sender, claim, tensor_digest(claim.tensor), answerable)
        if key not in self._rulings:
            if delivery.digest == self._vouched.get(key):
                self._usable[key] = claim
            waiting = self._deliveries.get(key, [])
            mine = sum(other.sender == sender for kept in self._deliveries.values() for other in kept)
            if mine < self._boundary.waiting and all(other.sender != sender for other in waiting):
                self._deliveries[key] = [*waiting, delivery]
            return []
        complaint = self._settle(delivery)
        return [] if complaint is None else [complaint]

    def own(self, claim: Claim) -> None:
        """The worker's own output, for its other seat; where it is ruled to be wrong, the fault is here."""
        key = claim.header.key
        if (key.step, key.attempt) >= self._now:
            self._usable.setdefault(key, claim)
            self._vouched.setdefault(key, claim.header.output)

    def vouch(self, key: ClaimKey, output: bytes) -> None:
        """The worker's own shadow computed `output`: a delivery with this digest is right, whatever else the board hears."""
        self._vouched[key] = output
        for delivery in self._deliveries.get(key, []):
            if delivery.digest == output:
                self._usable.setdefault(key, delivery.claim)

    def claim(self, key: ClaimKey) -> Claim | None:
        """The claim that may be used for `key`, or None while it is not settled."""
        return self._usable.get(key)

    def tensor(self, key: ClaimKey) -> Tensor | None:
        """Its tensor [B, S, D], packed as it came."""
        claim = self._usable.get(key)
        return None if claim is None else claim.tensor

    def origin(self, key: ClaimKey, senders: tuple[str, ...]) -> Tensor | None:
        """The input that the claimant says it worked from (without the jumping connection), whether ruled on or not."""
        if key in self._usable:
            return self._usable[key].origin
        waiting = self._deliveries.get(key, [])
        return next((delivery.claim.origin for delivery in waiting if delivery.sender in senders), None)

    def digest(self, key: ClaimKey) -> bytes:
        """The digest of a usable tensor: as ruled, else as computed here; empty with defences off, where nothing is hashed."""
        return self._rulings.get(key) or self._vouched.get(key, b"")

    def _contradiction(self, sender: str, claim: Claim) -> Complaint | None:
        """Of a delivery that can do no harm any more: a signed header that says another thing than the ruling convicts its
        signer all the same.
        """
        ruling, said = self._rulings.get(claim.header.key), claim.header
        return None if ruling in (None, said.output) or not said.signature else _complaint(sender, claim, said.output)

    def _settle(self, delivery: _Delivery) -> Complaint | None:
        key = delivery.claim.header.key
        match check_delivery(delivery.sender, delivery.digest, self._rulings.get(key)):
            case Accepted():
                self._usable.setdefault(key, delivery.claim)
                return None
            case Rejected():
                if not delivery.answerable:
                    return None
                if key in self._usable:
                    return self._contradiction(delivery.sender, delivery.claim)
                return _complaint(delivery.sender, delivery.claim, delivery.digest)
            case _:
                raise AssertionError(f"settled the {key} without a ruling")

    def fits(self, tensor: Tensor) -> bool:
        """Whether it looks like one that goes between two stages."""
        return tuple(tensor.shape) == self._boundary.shape and tensor.dtype == self._boundary.dtype


def _complaint(sender: str, claim: Claim, got: bytes) -> Complaint:
    """A complaint shows the header that came along, where it can prove anything."""
    return Complaint(claim.header.key, sender, got, claim.header if claim.header.signature else None)
