"""Who lied: two accounts of one claim are held against an honest re-execution, which decides *who* and never *what*.

The value that is used afterwards is the innocent holder's own, so a referee on unlike hardware changes no bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.claim import Header
from holdfast.message import Finding, Measured
from holdfast.verify.recompute import same_norms


@dataclass(frozen=True, slots=True)
class Judgement:
    """`innocent` is the header that stands; None means that no holder gave the honest account."""

    culprits: tuple[str, ...]
    innocent: Header | None


def judge(headers: tuple[Header, ...], finding: Finding, inputs: tuple[bytes, ...] | None) -> Judgement:
    """Hold every account of one key against the re-execution; the primary's stands where several are honest.

    An account from another numerics class than the referee's is honest within the distance that was calibrated for the two.
    """

    def honest(header: Header) -> bool:
        chained = inputs is None or header.inputs == inputs
        same = header.output == finding.output and same_norms(header.norms, finding.norms)
        return chained and (same or any(measured.fits for measured in finding.measured if _speaks_of(measured, header)))

    culprits = tuple(header.worker for header in headers if not honest(header))
    return Judgement(culprits, next((header for header in headers if honest(header)), None))


def _speaks_of(measured: Measured, header: Header) -> bool:
    return measured.worker == header.worker and measured.output == header.output and same_norms(measured.norms, header.norms)


def misstates(said: Header, finding: Finding) -> bool:
    """Whether a comparer signed another distance between two accounts than the referee measured between the same two.

    Both compute in fp64, so they differ by rounding only.
    """
    shown = tuple(measured.output for measured in finding.measured)
    if shown != (said.output, *said.inputs) or len(finding.apart) != 2 or len(said.norms) != 2:
        return False
    pairs = zip(said.norms, finding.apart, strict=True)
    return not all(math.isclose(told, true, rel_tol=1e-3) or (math.isnan(told) and math.isnan(true)) for told, true in pairs)
