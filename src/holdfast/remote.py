"""The trusted members in real time, where the workers live elsewhere: with what those say that they have used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import torch

from holdfast.launch import Glance, Hooks, RealTime
from holdfast.message import Actor, Envelope, Tally
from holdfast.transport import LinkStats, Traffic

KIND = re.compile("[a-z-]{1,40}")
MOST_KINDS = 16
"""What a worker may call its work, and how many kinds it may have."""


class Elsewhere(Protocol):
    """Where the workers are, and what is known of them (`holdfast.machines.Machines`)."""

    @property
    def traffic(self) -> Traffic: ...

    def send(self, envelope: Envelope) -> None: ...

    def receive(self, timeout_s: float) -> Envelope | None: ...

    def tally(self) -> Mapping[str, Tally]: ...

    def glance(self) -> tuple[Mapping[str, Tally], Mapping[str, LinkStats]]: ...


class Remote(RealTime):
    """`desk` are the trusted members that only decide, `bench` those that compute."""

    def __init__(
        self, elsewhere: Elsewhere, desk: Sequence[Actor], bench: Sequence[Actor], hooks: Hooks, *, deadlock_s: float
    ) -> None:
        self._elsewhere = elsewhere
        self._sent_before = elsewhere.traffic.bytes_sent
        super().__init__(desk, bench, elsewhere, hooks, patience_s=deadlock_s, starts=partial(torch.set_num_threads, 1))

    @property
    def seconds_by_kind(self) -> Mapping[str, float]:
        return self._seconds(self._elsewhere.tally())

    @property
    def bytes_sent(self) -> int:
        return self._bytes(self._elsewhere.tally())

    def glance(self) -> Glance:
        """May be called from any thread, and waits for no machine: of workers it has what they told when last asked."""
        tallies, links = self._elsewhere.glance()
        return Glance(self._seconds(tallies), self._bytes(tallies), links)

    def _seconds(self, tallies: Mapping[str, Tally]) -> dict[str, float]:
        total = dict(super().seconds_by_kind)
        for tally in tallies.values():
            for kind, seconds in tally.seconds[:MOST_KINDS]:
                if KIND.fullmatch(kind) and 0 <= seconds <= self.now:  # not infinity either, which no report could carry
                    total[kind] = total.get(kind, 0.0) + seconds
        return total

    def _bytes(self, tallies: Mapping[str, Tally]) -> int:
        said = sum(max(0, tally.bytes_sent) for tally in tallies.values())
        return self._elsewhere.traffic.bytes_sent - self._sent_before + said
