"""A transport carries envelopes between the members of a run, and promises as little about it as a network does.

It promises: what arrives is what was sent, byte for byte, once; the sender's name is true; messages without tensors from
one sender to one recipient arrive in the order in which they were sent, and never wait behind tensors.

It does not promise: any order between messages with tensors, between these and others, or between senders; any bound on
the time a message takes; that a recipient is alive, that it has room, or that what was on its way when either end died
arrives at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from holdfast.message import Envelope


@dataclass(slots=True)
class Traffic:
    """Bytes of frames that left a machine, by sender. What a member says to itself is not traffic."""

    by_sender: dict[str, int] = field(default_factory=dict)

    def add(self, sender: str, count: int) -> None:
        self.by_sender[sender] = self.by_sender.get(sender, 0) + count

    @property
    def bytes_sent(self) -> int:
        return sum(self.by_sender.values())


class Transport(ABC):
    """Called by a launcher, from one thread. `traffic` counts what was sent through this end."""

    traffic: Traffic

    @abstractmethod
    def send(self, envelope: Envelope) -> None:
        """Take an envelope and return at once. Tensors must not be changed afterwards.

        Raises ProtocolError for what the schema or its limits do not allow, NetworkError after `close`.
        """

    @abstractmethod
    def receive(self, timeout_s: float) -> Envelope | None:
        """The next envelope for any member at this end, or None if nothing came within `timeout_s`.

        Tensors are contiguous and begin at multiples of 64 bytes where they crossed a wire. Raises NetworkError after `close`.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave; what has not been received is lost. A second call does nothing."""
