"""The invite: one line that says where the door of a run is, whose key it must show, and the secret that opens it.

    holdfast1:  base32 of   msgpack [doors, key's sha256, run, secret]   checksum (4 bytes)

It is the only place where the secret stands in the open. Errors and `repr` never repeat it, since both end in logs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

import msgspec

from holdfast.admission.address import Address, parse_address
from holdfast.errors import ConfigError
from holdfast.evidence.request import check_run

SCHEME = "holdfast1"
SECRET_BYTES = 16
LONGEST = 4096
MOST_DOORS = 8
_FINGERPRINT_BYTES = 32
_CHECKSUM_BYTES = 4
_DOMAIN = b"holdfast/invite/1\0"
_ASK = "ask the host for the invite again and copy all of it"


class _Payload(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    doors: tuple[str, ...]
    fingerprint: bytes
    run: str
    secret: bytes


@dataclass(frozen=True, slots=True)
class Invite:
    """`doors` are addresses of one door, tried in turn; `fingerprint` is that of the host's key, 64 hex digits."""

    doors: tuple[str, ...]
    fingerprint: str
    run: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Raises ConfigError for what no invite can hold."""
        if not 1 <= len(self.doors) <= MOST_DOORS:
            raise ConfigError(f"an invite names 1 to {MOST_DOORS} addresses of the door, got {len(self.doors)}")
        for door in self.doors:
            parse_address(door)
        if not re.fullmatch(r"[0-9a-f]{64}", self.fingerprint):
            raise ConfigError("the fingerprint of a host's key has 64 hex digits")
        check_run(self.run)
        if len(self.secret) != SECRET_BYTES:
            raise ConfigError(f"the secret of an invite has {SECRET_BYTES} bytes, got {len(self.secret)}")

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(parse_address(door) for door in self.doors)

    def text(self) -> str:
        """The line to give to one person, over a channel that others do not read."""
        payload = msgspec.msgpack.encode(_Payload(self.doors, bytes.fromhex(self.fingerprint), self.run, self.secret))
        return f"{SCHEME}:{base64.b32encode(payload + _checksum(payload)).decode().rstrip('=').lower()}"

    @classmethod
    def parse(cls, text: str) -> Invite:
        """The invite in a line; spaces and line breaks inside it are ignored, and capitals count as small.

        Raises ConfigError, which says what is wrong and never repeats the line.
        """
        line = "".join(text.split()).lower() if len(text) <= 2 * LONGEST else ""
        scheme, colon, coded = line.partition(":")
        if not colon or not re.fullmatch(r"holdfast[0-9]+", scheme) or len(line) > LONGEST:
            raise ConfigError(f"this is no invite: one begins with {SCHEME}: and is one line; {_ASK}")
        if scheme != SCHEME:
            raise ConfigError(f"this invite is of another version of Holdfast ({scheme[:16]}); this one reads {SCHEME}")
        content = _decoded(coded)
        payload, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if _checksum(payload) != checksum:
            raise ConfigError(f"this invite is mistyped or cut short: its checksum does not fit; {_ASK}")
        try:
            found = msgspec.msgpack.decode(payload, type=_Payload, strict=True)
        except (msgspec.MsgspecError, ValueError):
            raise ConfigError(f"this invite has a good checksum and no content that Holdfast wrote; {_ASK}") from None
        return cls(found.doors, found.fingerprint.hex(), found.run, found.secret)


def _decoded(coded: str) -> bytes:
    wrong = sorted(set(coded) - set("abcdefghijklmnopqrstuvwxyz234567"))
    if wrong:
        shown = ", ".join(repr(letter) for letter in wrong[:3])
        raise ConfigError(f"this invite is mistyped: {shown} never stands in one (a to z and 2 to 7 do); {_ASK}")
    try:
        return base64.b32decode(coded.upper() + "=" * (-len(coded) % 8))
    except binascii.Error:
        raise ConfigError(f"this invite is mistyped or cut short: no invite has that length; {_ASK}") from None


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(_DOMAIN + payload).digest()[:_CHECKSUM_BYTES]
