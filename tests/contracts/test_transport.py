"""The contract of a transport over every implementation, and over broken ones, which it must catch."""

import time

import pytest
import torch

from holdfast.message import Envelope, Seal
from holdfast.testing import check_transport
from holdfast.testing.certificates import Authority
from holdfast.transport import Cluster, Endpoint, Link, MemoryTransport, Traffic, Transport
from holdfast.transport.grpc import GrpcTransport
from holdfast.transport.wire import WITH_TENSORS

CLUSTERS = {
    "plain": Cluster(),
    "fast": Cluster(Link(0.0, 1e11)),
    "jitter": Cluster(jitter_s=0.5, seed=3),
    "loss": Cluster(loss=0.4, seed=4),
    "slow and lossy": Cluster(Link(0.1, 1e5), {("w0", "w1"): Link(0.3, 1e6)}, jitter_s=0.1, loss=0.2),
}


@pytest.mark.parametrize("wire_check", [False, True], ids=["by reference", "wire check"])
@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_memory(cluster, wire_check):
    check_transport(lambda _names: MemoryTransport(cluster, wire_check=wire_check))


AUTHORITY = Authority()
CREDENTIALS = {name: AUTHORITY.issue(name) for name in ("coordinator", "w0", "w1")}


class Ends(Transport):
    """One process a name on 127.0.0.1, each with its own end of the wire; with `relay` workers cannot be dialled."""

    def __init__(self, names, relay=None):
        listen = {name: "127.0.0.1:0" if relay in (None, name) else None for name in names}
        self.ends = {
            name: GrpcTransport(Endpoint(name, (name,)), CREDENTIALS[name], run="r", listen=listen[name], relay=relay)
            for name in names
        }
        for end in self.ends.values():
            end.know([other.me for other in self.ends.values()])

    @property
    def traffic(self):
        return Traffic({name: count for end in self.ends.values() for name, count in end.traffic.by_sender.items()})

    def send(self, envelope):
        self.ends[envelope.sender].send(envelope)

    def receive(self, timeout_s):
        deadline = time.monotonic() + timeout_s
        while True:
            for end in self.ends.values():
                envelope = end.receive(0.0)
                if envelope is not None:
                    return envelope
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.001)

    def close(self):
        for end in self.ends.values():
            end.close()


@pytest.mark.parametrize("relay", [None, "coordinator"], ids=["direct", "relayed"])
def test_grpc(relay):
    check_transport(lambda names: Ends(names, relay))


class Duplicating(MemoryTransport):
    def send(self, envelope):
        super().send(envelope)
        super().send(envelope)


class Swapping(MemoryTransport):
    """Delivers two control messages of a pair the other way round."""

    def __init__(self, cluster):
        super().__init__(cluster)
        self._held = None

    def send(self, envelope):
        if type(envelope.message) is Seal and self._held is None and envelope.sender != envelope.recipient:
            self._held = envelope
        else:
            super().send(envelope)
            if self._held is not None:
                super().send(self._held)
                self._held = None


class Rounding(MemoryTransport):
    """Loses the sign of -0.0."""

    def send(self, envelope):
        message = envelope.message
        if type(message) in WITH_TENSORS and isinstance(getattr(message, "tensor", None), torch.Tensor):
            message = type(message)(*(v + 0 if isinstance(v, torch.Tensor) else v for v in _values(message)))
        super().send(Envelope(envelope.sender, envelope.recipient, message))


class Renaming(MemoryTransport):
    def send(self, envelope):
        super().send(Envelope("w1", envelope.recipient, envelope.message))


class Queueing(MemoryTransport):
    """Control messages wait behind tensors."""

    def send(self, envelope):
        self._nic_free_s.setdefault(envelope.sender, 0.0)
        if type(envelope.message) is Seal:
            self.now_s = max(self.now_s, self._nic_free_s[envelope.sender]) + 1.0
        super().send(envelope)


class Uncounted(MemoryTransport):
    def send(self, envelope):
        super().send(envelope)
        self.traffic.by_sender.clear()


class Immortal(MemoryTransport):
    def close(self):
        pass


def _values(message):
    return [getattr(message, name) for name in type(message).__dataclass_fields__]


@pytest.mark.parametrize("broken", [Duplicating, Swapping, Rounding, Renaming, Queueing, Uncounted, Immortal])
def test_a_broken_transport_is_caught(broken):
    with pytest.raises((AssertionError, KeyError)):
        check_transport(lambda _names: broken(Cluster()))
