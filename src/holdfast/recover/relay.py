"""Relay: after an alert the step is redone with every tensor passing through the coordinator, the paper's central server.

A sender can then no longer tell its neighbours different things, and the coordinator holds both tensors of a disputed pair.
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.recover.remedy import Answer, Dispute, Investigate, Redo, Remedy


class Relay(Remedy):
    """Do the step again with every tensor passing through the coordinator; after some retries, replace."""

    name = "relay"

    def __init__(self, retries: int) -> None:
        self._retries = retries

    def answer(self, dispute: Dispute) -> Answer:
        if dispute.key.attempt >= self._retries:
            return Investigate()
        relayed = replace(dispute.route, epoch=dispute.route.epoch + 1, relay=True)
        return Redo(relayed, investigate=True)
