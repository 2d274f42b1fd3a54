"""Who lied: two accounts of one claim are held against an honest re-execution, which decides *who* and never *what*.

The value that is used afterwards is the innocent holder's own, so a referee on unlike hardware changes no bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.claim import Header
from holdfast.message import Finding
from holdfast.verify.recompute import same_norms


@dataclass(frozen=True, slots=True)
class Judgement:
    """`innocent` is the header that stands; None means that no holder gave the honest account."""

    culprits: tuple[str, ...]
    innocent: Header | None


def judge(headers: tuple[Header, ...], finding: Finding, inputs: tuple[bytes, ...] | None) -> Judgement:
    """Hold every account of one key against the re-execution; the primary's stands where several are honest."""

    def honest(header: Header) -> bool:
        chained = inputs is None or header.inputs == inputs
        return chained and header.output == finding.output and same_norms(header.norms, finding.norms)

    culprits = tuple(header.worker for header in headers if not honest(header))
    return Judgement(culprits, next((header for header in headers if honest(header)), None))
