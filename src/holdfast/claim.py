"""A claim says: for this step, micro-batch, direction, stage and version, given this input, my output is this tensor.

It is the one noun of the system: attacks forge claims, transports carry them, verifiers check them, recovery answers a
rejected one. Gradients and updates are claims too; they differ only in what was computed:

    direction   micro_batch   input                          output
    FORWARD     m             a_{i-1}                        a_i        hidden states  [B, S, D]
    BACKWARD    m             g_{i+1} (and a_{i-1})          g_i        input gradient [B, S, D]
    GRADIENT    -1            every input of the step        accumulated weight gradient (no digest where nobody shadows
                                                             the stage), with one norm a parameter
    UPDATE      -1            gradient, learning rate, clip  weights and optimizer state after the step

Only digests stand here, so that evidence can be audited on a machine without torch.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor as Tensor
else:
    Tensor = Any

WHOLE_STEP = -1
"""The micro-batch of a claim that covers the whole step (GRADIENT, UPDATE)."""


class Direction(enum.StrEnum):
    FORWARD = "forward"
    BACKWARD = "backward"
    GRADIENT = "gradient"
    UPDATE = "update"

    __hash__ = str.__hash__  # keys of claims are looked up all the time; that of Enum runs in Python


class Role(enum.StrEnum):
    """In which a header is signed. A comparer holds no seat: across numerics classes it says how far two accounts are apart."""

    PRIMARY = "primary"
    SHADOW = "shadow"
    COMPARER = "comparer"

    __hash__ = str.__hash__


@dataclass(frozen=True, slots=True, order=True)
class ClaimKey:
    """What a claim is about. Two headers of one holder for one key with different outputs are equivocation."""

    step: int
    attempt: int
    direction: Direction
    stage: int
    micro_batch: int = WHOLE_STEP

    def __str__(self) -> str:
        where = "" if self.micro_batch == WHOLE_STEP else f" micro-batch {self.micro_batch}"
        again = f" attempt {self.attempt}" if self.attempt else ""
        return f"{self.direction} of stage {self.stage}, step {self.step}{where}{again}"


@dataclass(frozen=True, slots=True)
class Header:
    """The part of a claim that is signed and posted to the claim board.

    `inputs` and `output` are digests of tensors (32 bytes each, `tensor_digest`); `norms` is empty but for GRADIENT, where it
    holds the norm of each trainable parameter of the stage in model order, as exact floats of the gradient's dtype. A comparer
    signs how far its input (the shadow's tensor) and its output (the primary's) are apart: overall and in the worst row, which
    stand as `norms`.
    """

    run: str
    key: ClaimKey
    version: int
    epoch: int
    worker: str
    role: Role
    inputs: tuple[bytes, ...]
    output: bytes
    norms: tuple[float, ...] = ()
    signature: bytes | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A header with the tensor that it speaks of: hidden states or input gradients, shape [B, S, D].

    `origin` is the input that the claimant worked from; it travels only where the jumping connection is left out
    (`duplicate-only`), because then the verifier has no other source for it.
    """

    header: Header
    tensor: Tensor
    origin: Tensor | None = None


@dataclass(frozen=True, slots=True)
class StageState:
    """Weights and optimizer state of one stage after `version` sealed steps: all that a holder needs to take it over.

    `weights` holds every parameter of the stage by its name in the whole model (frozen ones too); `moments` holds
    `NAME.exp_avg` and `NAME.exp_avg_sq` of the trainable ones; `updates` counts the optimizer steps taken (a skipped
    stage has fewer than the run).
    """

    stage: int
    version: int
    updates: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensors in (self.weights, self.moments) for tensor in tensors.values())


def version_in(states: Mapping[int, StageState]) -> int:
    """That of the states of one model, which is the same for all of its stages."""
    return next(iter(states.values())).version
