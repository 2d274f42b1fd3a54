"""An action is one pass of one micro-batch through one seat; a schedule is the order in which a worker wants to do them.

A schedule says what is wanted first, not what is possible: who follows it takes the first action whose inputs are
verified. Shadow work is placed where it costs least: the shadow's forward pass gates the acceptance of the primary's
input, so it goes directly before; its backward pass starts from the primary's own result, so it goes right after.

    worker of stage i+1      SF(m)  F(m)  ...  B(m)  SB(m)            F, B: stage i+1;  SF, SB: the shadow of stage i
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class Kind(enum.StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"
    SHADOW_FORWARD = "shadow-forward"
    SHADOW_BACKWARD = "shadow-backward"


@dataclass(frozen=True, slots=True)
class Action:
    kind: Kind
    micro_batch: int

    def __str__(self) -> str:
        return f"{_LETTERS[self.kind]}{self.micro_batch}"


_LETTERS = {Kind.FORWARD: "F", Kind.BACKWARD: "B", Kind.SHADOW_FORWARD: "SF", Kind.SHADOW_BACKWARD: "SB"}


def with_shadow(actions: Iterable[Action]) -> Iterator[Action]:
    """The same order with the shadow's work of the stage before placed into it.

    >>> print(*with_shadow([Action(Kind.FORWARD, 0), Action(Kind.BACKWARD, 0)]))
    SF0 F0 B0 SB0
    """
    for action in actions:
        if action.kind is Kind.FORWARD:
            yield Action(Kind.SHADOW_FORWARD, action.micro_batch)
            yield action
        else:
            yield action
            yield Action(Kind.SHADOW_BACKWARD, action.micro_batch)
