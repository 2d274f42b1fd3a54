"""Restart: the paper's simple answer. Drop the step and reuse the same samples; after `retries` attempts, replace."""

from __future__ import annotations

from holdfast.recover.remedy import Answer, Dispute, Investigate, Redo, Remedy


class Restart(Remedy):
    """Drop the step and do it again; after some retries, replace."""

    name = "restart"

    def __init__(self, retries: int) -> None:
        self._retries = retries

    def answer(self, dispute: Dispute) -> Answer:
        if dispute.key.attempt >= self._retries:
            return Investigate()
        return Redo(dispute.route, investigate=True)
