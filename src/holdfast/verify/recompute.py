"""The duplicated block's check: primary and shadow computed the same thing apart, so their headers must agree byte for byte.

Neither was shown the other's digest before its own was on the board (forward tensors excepted, see docs/design/board.md),
and it is the board that compares, so nobody's word is taken.
"""

from __future__ import annotations

import struct

from holdfast.claim import Header
from holdfast.verify.verdict import Accepted, Rejected, Unverifiable, Verdict


def compare(primary: Header, shadow: Header | None, inputs: tuple[bytes, ...] | None) -> Verdict:
    """Hold two headers of one key against each other and against the accepted `inputs` (None: the chain is not checked)."""
    headers = [primary] if shadow is None else [primary, shadow]
    if inputs is not None:
        liars = tuple(header.worker for header in headers if header.inputs != inputs)
        if liars:
            return Rejected("parent", liars)
    if shadow is None:
        return Unverifiable("nobody shadows this stage now")
    if primary.output != shadow.output:
        return Rejected("output", (primary.worker, shadow.worker))
    if not same_norms(primary.norms, shadow.norms):
        return Rejected("norms", (primary.worker, shadow.worker))
    return Accepted(primary.output)


def same_norms(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Equality of bytes, so that NaN equals itself.

    >>> same_norms((float("nan"),), (float("nan"),)), same_norms((0.0,), (-0.0,))
    (True, False)
    """
    return len(one) == len(other) and struct.pack(f"{len(one)}d", *one) == struct.pack(f"{len(other)}d", *other)
