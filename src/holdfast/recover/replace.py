"""Replace: the right value exists already, at the other holder; name the liar and go on with it, to the same final bits."""

from __future__ import annotations

from holdfast.recover.remedy import Answer, Dispute, Investigate, Remedy


class Replace(Remedy):
    """Find out who lied and go on with the innocent holder's value."""

    name = "replace"

    def answer(self, dispute: Dispute) -> Answer:
        return Investigate()
