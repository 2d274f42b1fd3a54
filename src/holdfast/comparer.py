"""The comparer holds two accounts of one tensor against one another where their bytes may differ, and measures them.

    forward    a_i (sent on)   and  a'_i (computed here, by the shadow)    on the worker of stage i+1
    backward   g_i (sent on)   and  g'_i (sent two stages back)            on the worker of stage i-1

It speaks once of a claim. What the primary told the board is not known here: the board compares what was measured with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from holdfast.claim import Claim, ClaimKey, Direction, Role
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
    """Deliveries of one step and attempt, and of the next step where they are early; the first of each role counts.

    Of one holder of a stage no more than `waiting` tensors are kept or spoken of.
    """

    def __init__(self, waiting: int = 1024) -> None:
        self._now = (-1, 0)
        self._waiting = waiting
        self._seen: dict[tuple[ClaimKey, Role], Tensor] = {}
        self._told: set[ClaimKey] = set()
        self._taken: Counter[tuple[Direction, int, Role]] = Counter()

    def begin(self, step: int, attempt: int) -> None:
        """Forget what belongs to an earlier step or attempt."""
        self._now = (step, attempt)
        self._seen = {slot: seen for slot, seen in self._seen.items() if (slot[0].step, slot[0].attempt) >= self._now}
        self._told = {key for key in self._told if (key.step, key.attempt) >= self._now}
        known = {*self._seen, *((key, role) for key in self._told for role in (Role.PRIMARY, Role.SHADOW))}
        self._taken = Counter((key.direction, key.stage, role) for key, role in known)

    def take(self, claim: Claim, role: Role) -> Comparison | None:
        """A tensor from whoever sits in `role`; the comparison once both are there."""
        key = claim.header.key
        begun, holder = self._now[0] >= 0, (key.direction, key.stage, role)
        if (key.step, key.attempt) < self._now or (begun and key.step > self._now[0] + 1) or key in self._told:
            return None
        if (key, role) not in self._seen:
            if self._taken[holder] >= self._waiting:
                return None
            self._taken[holder] += 1
            self._seen[key, role] = claim.tensor
        primary, shadow = (self._seen.get((key, each)) for each in (Role.PRIMARY, Role.SHADOW))
        if primary is None or shadow is None:
            return None
        self._told.add(key)
        del self._seen[key, Role.PRIMARY], self._seen[key, Role.SHADOW]
        return Comparison(key, tensor_digest(primary), tensor_digest(shadow), distance(primary, shadow))
