"""What travels on a stream of a link: small binary packets, each the whole of one message of the stream.

    HELLO      1 | magic "HFWR" | version u16 | greeting (msgpack)                first on every way, from both ends
    REFUSED    2 | code and reason (msgpack)                                      instead of a hello, or at any time
    PART       3 | flags u8 | preamble bytes u16 | 0 u32 | sequence u64 | preamble (msgpack) | octets of the frame
    ACK        4 | sequence u64
    PING       5 | nanoseconds u64                                                a PONG brings it back
    PONG       6 | nanoseconds u64
    GOODBYE    7
    RELAYED    8 | from bytes u8 | to bytes u8 | from | to | packet               through the relay
    CLOSED     9 | process                                                        the relay cannot reach it

Whatever is none of these is a ProtocolError, before anything is allocated for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from holdfast.errors import ProtocolError
from holdfast.transport.endpoint import MAX_NAME_BYTES, MAX_PART_BYTES

VERSION = 1
MAGIC = b"HFWR"
MAX_PACKET_BYTES = MAX_PART_BYTES * 9 // 8 + 8192

HELLO, REFUSED, PART, ACK, PING, PONG, GOODBYE, RELAYED, CLOSED = range(1, 10)

Code: TypeAlias = Literal["version", "run", "stranger", "fenced", "stale", "duplicate", "conduct"]

_VERSION = struct.Struct("<B4sH")
_PART = struct.Struct("<BBHIQ")
_NUMBER = struct.Struct("<BQ")
_RELAYED = struct.Struct("<BBB")
_MAX_HELLO_BYTES = 1024


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who speaks: run and process; `token` is this session of the link (incarnation and number), `knows` the peer's.

    `received` is the last sequence number taken on this stream; `window` is what the peer may send beyond what is acknowledged.
    """

    run: str
    process: str
    stream: Literal["control", "bulk"]
    token: bytes
    knows: bytes
    received: int
    window: int


class Preamble(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What stands before a frame: how long it is, how long once it is no longer compressed, and for whom it is."""

    size: int
    plain: int
    codec: Literal["", "zlib"]
    generation: int
    sender: str
    recipient: str


class Refusal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Why somebody is not let in, or is put out."""

    code: Code
    reason: str


@dataclass(frozen=True, slots=True)
class Part:
    """A run of octets of one frame; the first of a frame has the preamble."""

    sequence: int
    preamble: Preamble | None
    octets: memoryview


@dataclass(frozen=True, slots=True)
class Ack:
    sequence: int


@dataclass(frozen=True, slots=True)
class Ping:
    nanoseconds: int


@dataclass(frozen=True, slots=True)
class Pong:
    nanoseconds: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    pass


@dataclass(frozen=True, slots=True)
class Relayed:
    """A packet of `source` for `target`; `whole` is what the relay passes on."""

    source: str
    target: str
    packet: memoryview
    whole: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    process: str


Packet: TypeAlias = Hello | Refusal | Part | Ack | Ping | Pong | Goodbye | Relayed | Closed

_ENCODER = msgspec.msgpack.Encoder()
_GREETING = msgspec.msgpack.Decoder(Hello)
_PREAMBLE = msgspec.msgpack.Decoder(Preamble)
_REFUSAL = msgspec.msgpack.Decoder(Refusal)


class OtherVersion(ProtocolError):
    """A hello of another version of the wire."""


def hello(greeting: Hello) -> bytes:
    return _VERSION.pack(HELLO, MAGIC, VERSION) + _ENCODER.encode(greeting)


def refused(code: Code, reason: str) -> bytes:
    return bytes([REFUSED]) + _ENCODER.encode(Refusal(code, reason[:500]))


def preamble(value: Preamble) -> bytes:
    return _ENCODER.encode(value)


def part_head(sequence: int, first: bytes = b"") -> bytes:
    """What stands before the octets of a part."""
    return _PART.pack(PART, 0, len(first), 0, sequence) + first


def number(kind: int, value: int) -> bytes:
    """An ACK, PING or PONG."""
    return _NUMBER.pack(kind, value)


def relay_head(source: str, target: str) -> bytes:
    """What stands before a packet that goes through the relay."""
    a, b = source.encode(), target.encode()
    return _RELAYED.pack(RELAYED, len(a), len(b)) + a + b


def goodbye() -> bytes:
    return bytes([GOODBYE])


def closed(process: str) -> bytes:
    return bytes([CLOSED]) + process.encode()


def parse(data: bytes | memoryview) -> Packet:
    """The packet in a message. Raises ProtocolError for what is none, OtherVersion for a hello of another version."""
    view = memoryview(data)
    kind = view[0] if len(view) else 0
    try:
        match kind:
            case 3:
                return _parse_part(view)
            case 4 | 5 | 6:
                value = _NUMBER.unpack(view)[1]
                return Ack(value) if kind == ACK else Ping(value) if kind == PING else Pong(value)
            case 8:
                return _parse_relayed(view)
            case 1:
                return _parse_hello(view)
            case 2 if len(view) < 4096:
                return _REFUSAL.decode(view[1:])
            case 7 if len(view) == 1:
                return Goodbye()
            case 9 if 1 < len(view) <= 1 + MAX_NAME_BYTES:
                return Closed(str(view[1:], "utf-8"))
    except (struct.error, msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"a malformed packet of kind {kind}: {str(error)[:200]}") from None
    raise ProtocolError(f"a packet of unknown kind {kind} and {len(view)} bytes")


def _parse_part(view: memoryview) -> Part:
    _, flags, length, reserved, sequence = _PART.unpack_from(view)
    begin = _PART.size + length
    if flags or reserved or begin >= len(view):
        raise ProtocolError(f"a part of {len(view)} bytes with flags {flags}, a preamble of {length} bytes and no octets")
    first = _PREAMBLE.decode(view[_PART.size : begin]) if length else None
    return Part(sequence, first, view[begin:])


def _parse_relayed(view: memoryview) -> Relayed:
    _, a, b = _RELAYED.unpack_from(view)
    begin = _RELAYED.size + a + b
    if not a or not b or begin >= len(view) or view[begin] in (RELAYED, CLOSED):
        raise ProtocolError("a packet for the relay without sender, recipient or content")
    names = view[_RELAYED.size : begin]
    whole = view.obj if isinstance(view.obj, bytes) and len(view.obj) == len(view) else bytes(view)
    return Relayed(str(names[:a], "utf-8"), str(names[a:], "utf-8"), view[begin:], whole)


def _parse_hello(view: memoryview) -> Hello:
    _, magic, version = _VERSION.unpack_from(view)
    if magic != MAGIC:
        raise ProtocolError(f"a hello that begins with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise OtherVersion(
            f"this end speaks version {VERSION} of the wire, the other end version {version}; install the same Holdfast on both"
        )
    if len(view) > _MAX_HELLO_BYTES:
        raise ProtocolError(f"a hello of {len(view)} bytes; the limit is {_MAX_HELLO_BYTES}")
    greeting = _GREETING.decode(view[_VERSION.size :])
    if len(greeting.token) != 24 or len(greeting.knows) not in (0, 24) or min(greeting.received, greeting.window) < 0:
        raise ProtocolError("a hello whose token, memory or numbers cannot be")
    return greeting
