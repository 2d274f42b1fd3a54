"""How messages travel: the interface, the wire encoding, and the described cluster in one process.

The wire between processes is `holdfast.transport.grpc.GrpcTransport`; it is imported by who needs it, since gRPC is not small.
"""

from __future__ import annotations

from holdfast.transport.base import Traffic, Transport
from holdfast.transport.endpoint import Credentials, Endpoint, LinkStats, Notice, WireOptions
from holdfast.transport.memory import Cluster, Link, MemoryTransport
from holdfast.transport.wire import Limits, decode, decode_envelope, encode, wire_bytes

__all__ = [
    "Cluster",
    "Credentials",
    "Endpoint",
    "Limits",
    "Link",
    "LinkStats",
    "MemoryTransport",
    "Notice",
    "Traffic",
    "Transport",
    "WireOptions",
    "decode",
    "decode_envelope",
    "encode",
    "wire_bytes",
]
