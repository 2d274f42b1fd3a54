"""A delivery is checked against the board: whatever came, by the direct link or by the jump, is used only if its digest stands.

So a lie on the jump alone, or on the direct message alone, changes nothing but the time it takes to fetch the tensor again.
"""

from __future__ import annotations

from holdfast.verify.verdict import Accepted, Rejected, Unverifiable, Verdict


def check_delivery(sender: str, delivered: bytes, ruling: bytes | None) -> Verdict:
    """Compare the digest of a tensor that `sender` delivered with the board's ruling for its key.

    >>> check_delivery("w1", b"a", b"b")
    Rejected(reason='delivery', suspects=('w1',))
    """
    if ruling is None:
        return Unverifiable("the board has not ruled yet")
    return Accepted(ruling) if delivered == ruling else Rejected("delivery", (sender,))
