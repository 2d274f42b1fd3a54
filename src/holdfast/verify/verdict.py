"""The three things a verifier can say; there is no fourth, and none of them is a default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accepted:
    """The claim's bytes are those of an independent recomputation on the accepted input."""

    output: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """Two accounts differ, or one contradicts the board: somebody among `suspects` lied."""

    reason: str
    suspects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unverifiable:
    """No second account exists; the claim may not be used until the referee has made one."""

    why: str


Verdict = Accepted | Rejected | Unverifiable
