"""What is said at the door: greeting, request and answers, each one small msgpack map with the version of the protocol in it.

    joiner                                             door
      Hello(protocol)                       -->
                                            <--        Challenge(protocol, challenge) | Refused
      Request(protocol, run, secret, key,
              wish, TLS key, challenge,
              offer, signature)             -->
                                            <--        Admitted | Waiting | Refused

`protocol` is read first and alone, so that two versions can part politely whatever else they say.
"""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.admission.roster import Offer
from holdfast.errors import ProtocolError

PROTOCOL = 1
MOST_REQUEST_BYTES = 8 << 10
MOST_ANSWER_BYTES = 64 << 10
MOST_TEXT = 200

SERVICE = "holdfast.Door"
GREET = f"/{SERVICE}/Greet"
ADMIT = f"/{SERVICE}/Admit"


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    protocol: int = PROTOCOL
    holdfast: str = ""


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    """Good for one request, for a short time, at this door."""

    challenge: bytes
    protocol: int = PROTOCOL


class Request(msgspec.Struct, frozen=True, tag="request"):
    """`details` is an encoded Offer, so that the signature covers the very bytes; `secret` may be empty for who returns."""

    run: str
    secret: bytes
    public: bytes
    wish: str
    tls_public: bytes
    challenge: bytes
    details: bytes
    signature: bytes
    protocol: int = PROTOCOL

    def __repr__(self) -> str:
        """Without the secret: what is printed ends in a log."""
        return f"Request(run={self.run!r}, wish={self.wish!r})"


class Admitted(msgspec.Struct, frozen=True, tag="admitted"):
    """`wire` are addresses of the host for what follows; one without a host (`:7701`) is where the joiner found the door."""

    name: str
    certificate: bytes
    authority: bytes
    wire: tuple[str, ...]
    heartbeat_s: float
    quarantined: bool = False
    terms: dict[str, str] = {}
    protocol: int = PROTOCOL


class Waiting(msgspec.Struct, frozen=True, tag="waiting"):
    """Enrolled under `name`; the host's operator has not accepted it yet. Ask again after `retry_s`."""

    name: str
    retry_s: float
    protocol: int = PROTOCOL


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """`code` is for programs, `reason` for people; `retry_s` is 0 where asking again is useless."""

    code: str
    reason: str
    retry_s: float = 0.0
    protocol: int = PROTOCOL


Answer = Challenge | Admitted | Waiting | Refused


class _Version(msgspec.Struct, frozen=True):
    protocol: int


class OtherVersion(ProtocolError):
    """The other side speaks another version of this protocol."""

    def __init__(self, theirs: int) -> None:
        super().__init__(f"the other side speaks version {theirs} of the admission protocol, this one {PROTOCOL}")
        self.theirs = theirs


def encode(item: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(item)


def decode(content: bytes, kind: Any, limit: int) -> Any:
    """One message of `kind`. Raises OtherVersion for one of another version, else ProtocolError for what is none."""
    if len(content) > limit:
        raise ProtocolError(f"a message of {len(content)} bytes; the most is {limit}")
    try:
        version = msgspec.msgpack.decode(content, type=_Version, strict=True).protocol
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ProtocolError("the message names no version of the admission protocol") from None
    if version != PROTOCOL:
        raise OtherVersion(version)
    try:
        return msgspec.msgpack.decode(content, type=kind, strict=True)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ProtocolError("the message is none of the admission protocol") from None


def decode_offer(details: bytes) -> Offer:
    """The offer in a request, with every text and number inside its limits. Raises ProtocolError."""
    try:
        offer = msgspec.msgpack.decode(details, type=Offer, strict=True)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ProtocolError("the offer is malformed") from None
    texts = (offer.device, offer.numerics, offer.holdfast, offer.torch, offer.listen or "")
    if any(len(text) > MOST_TEXT or not text.isprintable() for text in texts):
        raise ProtocolError(f"a text of the offer is longer than {MOST_TEXT} characters, or not printable")
    if not 0 <= offer.memory_bytes < 1 << 60 or not 0 <= offer.speed < 1e12:
        raise ProtocolError("a number of the offer is out of range")
    return offer
