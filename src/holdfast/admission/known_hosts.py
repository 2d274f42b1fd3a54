"""The hosts that this machine has met: a host key that changed since last time is refused, whatever the new invite says."""

from __future__ import annotations

from pathlib import Path

import msgspec

from holdfast.admission import book
from holdfast.admission.invite import Invite
from holdfast.errors import NetworkError

SCHEMA = 1
MOST = 10_000


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    hosts: dict[str, str]


class KnownHosts:
    """The fingerprint of each run at each address, in one file (see `home.hosts_file`)."""

    def __init__(self, path: Path) -> None:
        """Raises SetupError where the file is damaged or others may read it."""
        self._path = path
        page = book.read(path, _Page, SCHEMA)
        self._hosts = dict(page.hosts) if page is not None else {}

    def check(self, invite: Invite) -> None:
        """Raises NetworkError where an invite names another key than the one met at this address for this run."""
        for place in _places(invite):
            known = self._hosts.get(place, invite.fingerprint)
            if known != invite.fingerprint:
                raise NetworkError(
                    f"THE HOST'S KEY HAS CHANGED: {place} had key {known}, the invite names {invite.fingerprint}. Somebody may "
                    f"pretend to be the host; ask its operator. If the change is real, remove {place!r} from {self._path}"
                )

    def remember(self, invite: Invite) -> None:
        """Only after the host has proven its key. Raises SetupError where the file cannot be written."""
        met = dict.fromkeys(_places(invite), invite.fingerprint)
        if met.items() <= self._hosts.items():
            return
        kept = list(({**self._hosts, **met}).items())[-MOST:]
        self._hosts = dict(kept)
        book.write(self._path, _Page(SCHEMA, self._hosts))


def _places(invite: Invite) -> list[str]:
    return [f"{invite.run}@{address}" for address in invite.addresses]
