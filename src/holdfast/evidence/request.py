"""What a joiner signs before it is let in, and the names that members and runs may have; nothing of X.509 is in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from holdfast.errors import ConfigError
from holdfast.evidence.envelope import pack
from holdfast.evidence.identity import Identity, verify

HOST = "host"
DOOR = "door"
LONGEST_RUN = 128

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_RUN = re.compile(r"[A-Za-z0-9._/-]{1,128}")
_REQUEST_DOMAIN = b"holdfast/admission/1\0"


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """What a joiner signs: for which host and run, under which name (or ""), for which TLS key, answering which challenge.

    `details` is whatever else it says, as sent.
    """

    host: str
    run: str
    name: str
    tls_public: bytes
    challenge: bytes
    details: bytes = b""

    def message(self) -> bytes:
        """The bytes under the signature; no signature of another kind covers the same."""
        return _REQUEST_DOMAIN + pack((self.host, self.run, self.name, self.tls_public, self.challenge, self.details))


def sign_request(request: AdmissionRequest, identity: Identity) -> bytes:
    return identity.sign(request.message())


def verify_request(request: AdmissionRequest, public: bytes, signature: bytes) -> bool:
    """Whether the holder of the Ed25519 key `public` asked for just this."""
    return verify(public, signature, request.message())


def is_name(name: str) -> bool:
    """Whether a member can have this name in a certificate."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """A name that can stand in a certificate. Raises ConfigError."""
    if not is_name(name):
        raise ConfigError(f"name {name[:40]!r}: needed are 1 to 32 of a-z, 0-9 and -, and no - at either end")
    return name


def check_run(run: str) -> str:
    """An id of a run that can stand in an invite and a certificate. Raises ConfigError."""
    if not _RUN.fullmatch(run):
        raise ConfigError(f"run id {run[:40]!r}: needed are 1 to {LONGEST_RUN} letters, digits, and any of . _ / -")
    return run
