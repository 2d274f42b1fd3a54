"""How messages travel: the interface, the wire encoding, and the described cluster in one process."""

from __future__ import annotations

from holdfast.transport.base import Traffic, Transport
from holdfast.transport.memory import Cluster, Link, MemoryTransport
from holdfast.transport.wire import Limits, decode, decode_envelope, encode, wire_bytes

__all__ = [
    "Cluster",
    "Limits",
    "Link",
    "MemoryTransport",
    "Traffic",
    "Transport",
    "decode",
    "decode_envelope",
    "encode",
    "wire_bytes",
]
