"""The host's book of invites: how often each may be used, until when, and by whom it was; of each secret only a hash.

A secret is 128 random bits, so a plain hash keeps it: nobody can go through them. The book is on the disk before anybody is
told that an invite counts, so a host that is killed and started again honours and refuses the same ones.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from holdfast.admission import book
from holdfast.admission.invite import SECRET_BYTES
from holdfast.errors import ConfigError

SCHEMA = 1
FILE = "invites.json"
MOST_USES = 10_000
MOST_INVITES = 10_000
DAY_S = 86400.0
LONGEST_TTL_S = 366 * DAY_S
_DOMAIN = b"holdfast/invitation/1\0"


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the book. Times are Unix seconds; `used_by` are fingerprints, each of which may use it again."""

    id: str
    hash: str
    uses: int
    created: float
    expires: float
    used_by: tuple[str, ...] = ()
    revoked: bool = False

    def state(self, now: float) -> str:
        """open, revoked, expired or used up."""
        if self.revoked:
            return "revoked"
        if now >= self.expires:
            return "expired"
        return "used up" if len(self.used_by) >= self.uses else "open"

    def to_json(self, now: float) -> dict[str, Any]:
        """What may be shown: all but the hash."""
        told = {field: getattr(self, field) for field in ("id", "uses", "created", "expires")}
        return {**told, "state": self.state(now), "used_by": list(self.used_by)}


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    invites: tuple[Invitation, ...]


class Invitations:
    """All invites of one run. `clock` gives Unix seconds. Threads may share it; processes may not."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Raises SetupError where the file is damaged or others may read it."""
        self._path = path
        self._clock = clock
        self._lock = threading.RLock()
        page = book.read(path, _Page, SCHEMA)
        self._invites = {invite.id: invite for invite in page.invites} if page is not None else {}

    def create(self, *, uses: int = 1, ttl_s: float = DAY_S) -> tuple[Invitation, bytes]:
        """A new invite, and its secret, which exists nowhere else. Raises ConfigError for limits out of range."""
        if not 1 <= uses <= MOST_USES:
            raise ConfigError(f"an invite may be used 1 to {MOST_USES} times, got {uses}")
        if not 1 <= ttl_s <= LONGEST_TTL_S:
            raise ConfigError(f"an invite lives 1 second to {LONGEST_TTL_S / DAY_S:.0f} days, got {ttl_s:g} s")
        secret, now = secrets.token_bytes(SECRET_BYTES), self._clock()
        with self._lock:
            if len(self._invites) >= MOST_INVITES:
                raise ConfigError(f"the book holds {MOST_INVITES} invites already; use one invite more than once (--uses)")
            number = next(id for id in iter(lambda: secrets.token_hex(4), "") if id not in self._invites)
            made = Invitation(number, _hash(secret), uses, now, now + ttl_s)
            self._put(made)
        return made, secret

    def opens(self, secret: bytes, fingerprint: str) -> bool:
        """Whether `redeem` would succeed now; changes nothing."""
        with self._lock:
            return self._usable(secret, fingerprint) is not None

    def why_not(self, secret: bytes) -> str:
        """What is wrong with an invite that does not open, for the host's own eyes: who knocks must not learn it."""
        with self._lock:
            found = self._find(secret)
            return (
                "an invite that is not in the book" if found is None else f"invite {found.id} is {found.state(self._clock())}"
            )

    def redeem(self, secret: bytes, fingerprint: str) -> bool:
        """Spend one use for the member with this key; whoever spent one before spends none. False says nothing of the reason.

        Raises SetupError where the book cannot be written; nothing is spent then.
        """
        with self._lock:
            found = self._usable(secret, fingerprint)
            if found is None:
                return False
            if fingerprint not in found.used_by:
                self._put(msgspec.structs.replace(found, used_by=(*found.used_by, fingerprint)))
            return True

    def revoke(self, id: str) -> Invitation:
        """Nobody new comes in by this invite; who did stays. Raises ConfigError for an id that is not in the book."""
        with self._lock:
            if id not in self._invites:
                known = ", ".join(list(self._invites)[-10:]) or "none"
                raise ConfigError(f"invite {id[:20]!r}: no such one; there are {known}")
            self._put(msgspec.structs.replace(self._invites[id], revoked=True))
            return self._invites[id]

    def list(self) -> list[dict[str, Any]]:
        """What may be shown of each, oldest first."""
        with self._lock:
            now = self._clock()
            return [invite.to_json(now) for invite in self._invites.values()]

    def _find(self, secret: bytes) -> Invitation | None:
        """Looks at every invite, so that the time taken says nothing of which one fits, or whether one does."""
        wanted, found = _hash(secret), None
        for invite in self._invites.values():
            if hmac.compare_digest(invite.hash, wanted):
                found = invite
        return found

    def _usable(self, secret: bytes, fingerprint: str) -> Invitation | None:
        found = self._find(secret)
        if found is None:
            return None
        state = found.state(self._clock())
        return found if state == "open" or (state == "used up" and fingerprint in found.used_by) else None

    def _put(self, invite: Invitation) -> None:
        """On the disk first: what failed there never happened."""
        changed = {**self._invites, invite.id: invite}
        book.write(self._path, _Page(SCHEMA, tuple(changed.values())))
        self._invites = changed


def _hash(secret: bytes) -> str:
    return hashlib.sha256(_DOMAIN + secret).hexdigest()
