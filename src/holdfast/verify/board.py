"""The claim board of one step: the first header for a key stands, a second one with another content proves equivocation."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import replace

from holdfast.claim import ClaimKey, Header, Role


class Posting(enum.Enum):
    NEW = "new"
    REPEATED = "repeated"
    EQUIVOCATION = "equivocation"


class Board:
    """Headers by key and role, and the digests that were accepted. Holds one attempt of one step."""

    def __init__(self) -> None:
        self._headers: dict[tuple[ClaimKey, Role], Header] = {}
        self._signed: dict[tuple[ClaimKey, str], Header] = {}
        self.accepted: dict[ClaimKey, bytes] = {}

    def post(self, header: Header, signed: Header | None = None) -> Posting:
        """Keep the first header of a holder for a key; a resent one is harmless, a different one is evidence.

        `signed` is the header as its worker signed it, where it stands here in another role.
        """
        known = self._headers.setdefault((header.key, header.role), header)
        if known is header:
            if header.role is not Role.COMPARER:
                self._signed.setdefault((header.key, header.worker), signed or header)
            return Posting.NEW
        heir = known.worker != header.worker  # the slot's own account came from a worker that was lost
        return Posting.REPEATED if heir or _content(known) == _content(header) else Posting.EQUIVOCATION

    def header(self, key: ClaimKey, role: Role) -> Header | None:
        return self._headers.get((key, role))

    def headers(self, key: ClaimKey) -> tuple[Header, ...]:
        """Every account of `key`, the primary's first."""
        found = (self._headers.get((key, role)) for role in (Role.PRIMARY, Role.SHADOW))
        return tuple(header for header in found if header is not None)

    def signed(self, key: ClaimKey, worker: str) -> Header | None:
        """What `worker` first said about `key`, in the role and the words that it signed."""
        return self._signed.get((key, worker))

    def accounts(self, key: ClaimKey) -> tuple[Header, ...]:
        """Like `headers`, as they were signed."""
        return tuple(self._signed[key, header.worker] for header in self.headers(key))

    def keys(self) -> Iterable[ClaimKey]:
        """Every key that somebody has posted, once."""
        return dict.fromkeys(key for key, _ in self._headers)

    def accept(self, key: ClaimKey, output: bytes) -> None:
        assert key not in self.accepted, f"the board ruled twice on the {key}"
        self.accepted[key] = output

    def retire(self, worker: str) -> None:
        """Forget what a lost worker posted about keys that were not accepted: it can no longer be asked."""
        gone = [slot for slot, header in self._headers.items() if header.worker == worker and slot[0] not in self.accepted]
        for slot in gone:
            del self._headers[slot]

    def promote(self, stage: int, heir: str) -> None:
        """The shadow's worker is primary now: what it posted as a shadow stands as the primary's account."""
        for (key, role), header in list(self._headers.items()):
            if key.stage == stage and role is Role.SHADOW and header.worker == heir and key not in self.accepted:
                del self._headers[(key, role)]
                self._headers[(key, Role.PRIMARY)] = replace(header, role=Role.PRIMARY)


def _content(header: Header) -> tuple[object, ...]:
    """What must not differ between two headers of one holder for one key; a NaN norm is no difference to itself."""
    return header.version, header.worker, header.inputs, header.output, tuple(norm.hex() for norm in header.norms)
