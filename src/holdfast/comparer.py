"""The comparer holds two accounts of one tensor against one another where their bytes may differ, and measures them.

    forward    a_i (sent on)   and  a'_i (computed here, by the shadow)    on the worker of stage i+1
    backward   g_i (sent on)   and  g'_i (sent two stages back)            on the worker of stage i-1

It speaks once of a claim. What the primary told the board is not known here: the board compares what was measured with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from holdfast.claim import Claim, ClaimKey, Role
from holdfast.digest import tensor_digest
from holdfast.verify.tolerance import Distance, distance


@dataclass(frozen=True, slots=True)
class Comparison:
    """The tensors with digests `primary` and `shadow` are `apart`, measured against the shadow's."""

    key: ClaimKey
    primary: bytes
    shadow: bytes
    apart: Distance


class Comparer:
    """Deliveries of one step and attempt, and of the next where they are early; the first of each role counts."""

    def __init__(self) -> None:
        self._now = (-1, 0)
        self._seen: dict[tuple[ClaimKey, Role], Tensor] = {}
        self._told: set[ClaimKey] = set()

    def begin(self, step: int, attempt: int) -> None:
        """Forget what belongs to an earlier step or attempt."""
        self._now = (step, attempt)
        self._seen = {slot: seen for slot, seen in self._seen.items() if (slot[0].step, slot[0].attempt) >= self._now}
        self._told = {key for key in self._told if (key.step, key.attempt) >= self._now}

    def take(self, claim: Claim, role: Role) -> Comparison | None:
        """A tensor from whoever sits in `role`; the comparison once both are there."""
        key = claim.header.key
        if (key.step, key.attempt) < self._now or key in self._told:
            return None
        self._seen.setdefault((key, role), claim.tensor)
        primary, shadow = (self._seen.get((key, each)) for each in (Role.PRIMARY, Role.SHADOW))
        if primary is None or shadow is None:
            return None
        self._told.add(key)
        del self._seen[key, Role.PRIMARY], self._seen[key, Role.SHADOW]
        return Comparison(key, tensor_digest(primary), tensor_digest(shadow), distance(primary, shadow))
