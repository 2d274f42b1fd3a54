"""The described cluster in one process: envelopes travel in virtual time over links with latency, bandwidth, jitter and loss.

    tensors    leave = max(now, NIC of the sender is free) + bytes / bandwidth;   NIC is free at `leave`
    control    leave = now + bytes / bandwidth                                    never behind tensors
    arrival    leave + latency + jitter + retransmissions                         nothing for what one says to oneself

Delivery is reliable, so `loss` is a delay: each lost transmission costs a timeout and the transmission again. All random
numbers come from one seed and are drawn in the order of sending: the same run gives the same arrivals.

A small model may stand for a large one: `tensor_bytes` and `state_bytes` are what a tensor between stages and a stage's state
count for then, whatever their real size.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast import seeds
from holdfast.claim import Claim
from holdfast.errors import NetworkError
from holdfast.message import Envelope, Offer, StateTransfer
from holdfast.transport.base import Traffic, Transport
from holdfast.transport.wire import WITH_TENSORS, decode_envelope, encode, wire_bytes

RETRANSMIT_S = 0.01
"""The least time until a lost transmission is repeated; two round trips where those are longer."""


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two machines."""

    latency_s: float = 1e-3
    bandwidth_bytes_per_s: float = 125e6


@dataclass(frozen=True, slots=True)
class Cluster:
    """`links` overrides `default` for pairs (sender, recipient); jitter is uniform in [0, `jitter_s`]; 0 <= `loss` < 1.

    `tensor_bytes` is of one tensor between stages, `state_bytes` of one stage's weights and moments (None: as they are).
    """

    default: Link = Link()
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    jitter_s: float = 0.0
    loss: float = 0.0
    seed: int = 0
    tensor_bytes: int | None = None
    state_bytes: int | None = None

    def link(self, sender: str, recipient: str) -> Link:
        return self.links.get((sender, recipient), self.default)

    def frame_bytes(self, envelope: Envelope) -> int:
        """What an envelope counts for on its way."""
        size, message = wire_bytes(envelope), envelope.message
        if isinstance(message, Claim) and self.tensor_bytes is not None:
            for tensor in (message.tensor, message.origin):
                size += 0 if tensor is None else self.tensor_bytes - tensor.nbytes
        elif isinstance(message, StateTransfer | Offer) and self.state_bytes is not None:
            size += self.state_bytes - message.state.nbytes
        return max(size, 0)


class MemoryTransport(Transport):
    """All members at one end. `now_s` is the clock: `receive` moves it to an arrival, a launcher may move it forward.

    With `wire_check` every envelope, those to oneself included, is encoded and decoded again on its way; without it,
    tensors pass by reference.
    """

    def __init__(self, cluster: Cluster, *, wire_check: bool = False) -> None:
        self.now_s = 0.0
        self.traffic = Traffic()
        self._cluster = cluster
        self._wire_check = wire_check
        self._random = random.Random(seeds.derive(cluster.seed, "network"))
        self._on_the_way: list[tuple[float, int, Envelope]] = []
        self._sent = 0
        self._nic_free_s: dict[str, float] = {}
        self._last_control_s: dict[tuple[str, str], float] = {}
        self._closed = False

    @property
    def next_s(self) -> float:
        """When the next envelope arrives; infinity if none is on its way."""
        return self._on_the_way[0][0] if self._on_the_way else math.inf

    def send(self, envelope: Envelope) -> None:
        self._check_open()
        if self._wire_check:
            envelope = decode_envelope(encode(envelope))
        arrival = self.now_s if envelope.sender == envelope.recipient else self._arrival(envelope)
        self._sent += 1
        heapq.heappush(self._on_the_way, (arrival, self._sent, envelope))

    def receive(self, timeout_s: float = math.inf) -> Envelope | None:
        self._check_open()
        if self.next_s > self.now_s + timeout_s or not self._on_the_way:
            self.now_s += timeout_s if timeout_s < math.inf else 0.0
            return None
        arrival, _, envelope = heapq.heappop(self._on_the_way)
        self.now_s = max(self.now_s, arrival)
        return envelope

    def close(self) -> None:
        self._closed = True
        self._on_the_way.clear()

    def _arrival(self, envelope: Envelope) -> float:
        sender, recipient = envelope.sender, envelope.recipient
        link = self._cluster.link(sender, recipient)
        size = self._cluster.frame_bytes(envelope)
        self.traffic.add(sender, size)
        transmission_s = size / link.bandwidth_bytes_per_s
        delay_s = link.latency_s + self._disturbance(link, transmission_s)
        if type(envelope.message) in WITH_TENSORS:
            leave_s = max(self.now_s, self._nic_free_s.get(sender, 0.0)) + transmission_s
            self._nic_free_s[sender] = leave_s
            return leave_s + delay_s
        pair = (sender, recipient)
        arrival_s = max(self.now_s + transmission_s + delay_s, self._last_control_s.get(pair, 0.0))
        self._last_control_s[pair] = arrival_s
        return arrival_s

    def _disturbance(self, link: Link, transmission_s: float) -> float:
        cluster = self._cluster
        delay_s = cluster.jitter_s * self._random.random() if cluster.jitter_s else 0.0
        if cluster.loss:
            lost = int(math.log(1.0 - self._random.random()) / math.log(cluster.loss))
            delay_s += lost * (max(4 * link.latency_s, RETRANSMIT_S) + transmission_s)
        return delay_s

    def _check_open(self) -> None:
        if self._closed:
            raise NetworkError("the transport is closed; nothing can be sent or received any more")
