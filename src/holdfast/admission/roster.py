"""The roster: who is in a run, under which name and key, and what became of it; kept on disk, since a host may be restarted.

    waiting --accept--> accepted <--accept-- quarantined        released --accept--> accepted        banned: for good
       |                  |  \\--quarantine-->    ^
       +-----release------+--------release-------+--> released

A name belongs to one key and a key to one name, forever: whoever shows another key for a taken name is refused loudly.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from holdfast.admission import book
from holdfast.errors import ConfigError, ProtocolError
from holdfast.evidence.identity import fingerprint
from holdfast.evidence.request import DOOR, HOST, check_name

SCHEMA = 1
FILE = "roster.json"
MOST_MEMBERS = 10_000
RESERVED = frozenset({HOST, DOOR, "coordinator", "initiator", "board", "referee", "deadline", "checker"})
"""Names that mean somebody else in messages, certificates and the evidence log."""


class Status(enum.Enum):
    WAITING = "waiting"
    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"
    RELEASED = "released"
    BANNED = "banned"

    @property
    def inside(self) -> bool:
        """Whether it may hold a connection: a quarantined worker keeps its seat, only its values do not count."""
        return self in (Status.ACCEPTED, Status.QUARANTINED)


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a machine says of itself. Nobody has checked it: `speed` is of its own measuring, in forward passes a second.

    `listen` is the address where other workers may dial it, None where none can; an empty host means the one it comes from.
    """

    device: str = "cpu"
    memory_bytes: int = 0
    speed: float = 0.0
    numerics: str = ""
    listen: str | None = None
    holdfast: str = ""
    torch: str = ""


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member; times are Unix seconds, `public` is its Ed25519 key in hex, `note` says why it is where it is."""

    name: str
    public: str
    fingerprint: str
    status: Status
    first_seen: float
    last_seen: float
    offer: Offer
    note: str = ""

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.public)

    def to_json(self) -> dict[str, Any]:
        found = msgspec.to_builtins(self)
        return {**{name: value for name, value in found.items() if name != "offer"}, **found["offer"]}


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    members: tuple[Member, ...]


class Roster:
    """All members of one run. `clock` gives Unix seconds. Threads may share it; processes may not."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Raises SetupError where the file is damaged or others may read it."""
        self._path = path
        self._clock = clock
        self._lock = threading.RLock()
        page = book.read(path, _Page, SCHEMA)
        self._members = {member.name: member for member in page.members} if page is not None else {}

    def list(self) -> list[Member]:
        """In the order of their coming."""
        with self._lock:
            return list(self._members.values())

    def get(self, name: str) -> Member | None:
        with self._lock:
            return self._members.get(name)

    def by_key(self, public: bytes) -> Member | None:
        with self._lock:
            return next((member for member in self._members.values() if member.public == public.hex()), None)

    def may_connect(self, name: str, public: bytes) -> bool:
        """Whether who shows a certificate with this name and Ed25519 key is let in now: a certificate outlives a ban."""
        member = self.get(name)
        return member is not None and member.public == public.hex() and member.status.inside

    def find(self, id: str) -> Member:
        """The member with this name, or with a fingerprint that alone begins so. Raises ConfigError."""
        with self._lock:
            if id in self._members:
                return self._members[id]
            fitting = [
                member for member in self._members.values() if len(id) >= 4 and member.fingerprint.startswith(id.lower())
            ]
            known = ", ".join(sorted(self._members)[:20]) or "nobody"
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = ", ".join(member.name for member in fitting)
            raise ConfigError(f"{id!r} begins the fingerprints of {names}; give a name, or more digits")
        raise ConfigError(
            f"{id[:70]!r}: no member has that name or a fingerprint that begins so (4 digits or more); known: {known}"
        )

    def free_name(self, wish: str = "") -> str:
        """The name that a new member would get: its wish, or the first free one of w1, w2, ...

        Raises ProtocolError for a wish that is taken, reserved, or no name.
        """
        with self._lock:
            if not wish:
                return next(name for name in map("w{}".format, range(1, MOST_MEMBERS + 2)) if name not in self._members)
            try:
                check_name(wish)
            except ConfigError as error:
                raise ProtocolError(str(error)) from None
            if wish in RESERVED:
                raise ProtocolError(f"the name {wish!r} means somebody else in a run; wish for another, or for none")
            if wish in self._members:
                owner = self._members[wish].fingerprint
                raise ProtocolError(
                    f"the name {wish!r} belongs to the key {owner[:16]}; a changed key is refused. Wish for another name, or "
                    "come back with the identity file of that machine"
                )
            return wish

    def enrol(self, public: bytes, offer: Offer, *, wish: str = "", waiting: bool = False) -> Member:
        """A new member, or the one that has this key already, with its offer of today. Raises ProtocolError and SetupError."""
        with self._lock:
            now = self._clock()
            known = self.by_key(public)
            if known is not None:
                if wish and wish != known.name:
                    raise ProtocolError(f"this key is {known.name!r} in this run, it cannot be {wish[:40]!r} too")
                return self._put(msgspec.structs.replace(known, last_seen=now, offer=offer))
            if len(self._members) >= MOST_MEMBERS:
                raise ProtocolError(f"the run has {MOST_MEMBERS} members already")
            status = Status.WAITING if waiting else Status.ACCEPTED
            return self._put(Member(self.free_name(wish), public.hex(), fingerprint(public), status, now, now, offer))

    def seen(self, name: str, *, speed: float | None = None) -> None:
        """Note that a member was heard of now, with a newly measured speed if there is one; unknown names are ignored.

        Kept in memory until the roster is next written: a heartbeat must not wait for a disk.
        """
        with self._lock:
            member = self._members.get(name)
            if member is not None:
                offer = member.offer if speed is None else msgspec.structs.replace(member.offer, speed=speed)
                self._members[name] = msgspec.structs.replace(member, last_seen=self._clock(), offer=offer)

    def flush(self) -> None:
        """Write what `seen` noted. Raises SetupError."""
        with self._lock:
            book.write(self._path, _Page(SCHEMA, tuple(self._members.values())))

    def accept(self, id: str) -> Member:
        """Let in who waits, was released, or is in quarantine. Raises ConfigError for an unknown or a banned member."""
        return self._move(id, Status.ACCEPTED, "accepted by the operator")

    def quarantine(self, id: str, note: str = "put there by the operator") -> Member:
        """Keep it in its seat and use nothing of what it computes. Raises ConfigError."""
        member = self.find(id)
        if not member.status.inside:
            raise ConfigError(f"{member.name} is {member.status.value}: only who is in the run can be put in quarantine")
        return self._move(id, Status.QUARANTINED, note)

    def release(self, id: str, note: str = "released by the operator") -> Member:
        """Send it away, to come back only when it is accepted again. Raises ConfigError."""
        return self._move(id, Status.RELEASED, note)

    def ban(self, id: str, note: str) -> Member:
        """Send it away for good, for a proven lie. Raises ConfigError for an unknown member."""
        with self._lock:
            return self._put(msgspec.structs.replace(self.find(id), status=Status.BANNED, note=note))

    def _move(self, id: str, status: Status, note: str) -> Member:
        with self._lock:
            member = self.find(id)
            if member.status is Status.BANNED:
                raise ConfigError(f"{member.name} was banned ({member.note}); that is for good in this run")
            if member.status is status:
                return member
            return self._put(msgspec.structs.replace(member, status=status, note=note))

    def _put(self, member: Member) -> Member:
        """On the disk first: what failed there never happened."""
        changed = {**self._members, member.name: member}
        book.write(self._path, _Page(SCHEMA, tuple(changed.values())))
        self._members = changed
        return member
