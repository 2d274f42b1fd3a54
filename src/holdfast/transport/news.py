"""What is told about links: to the log, and to whoever asks for notices; of equal refusals only the first."""

from __future__ import annotations

import logging
import time

from holdfast.transport.endpoint import Notice, NoticeKind
from holdfast.transport.mailbox import Mailbox

log = logging.getLogger("holdfast.wire")
log.addHandler(logging.NullHandler())

MOST_REASONS = 1000
"""Different refusals told between two address books, at most."""


class News:
    """`me` is the process that tells."""

    def __init__(self, me: str, mailbox: Mailbox) -> None:
        self._me = me
        self._mailbox = mailbox
        self._told: set[tuple[str, str]] = set()

    def tell(self, process: str, kind: NoticeKind, reason: str) -> None:
        """Something happened to the link with `process`."""
        if kind == "refused":
            if (process, reason) in self._told or len(self._told) >= MOST_REASONS:
                return
            self._told.add((process, reason))
        level = logging.INFO if kind in ("up", "relayed") else logging.WARNING
        log.log(level, "%s: %s %s: %s", self._me, process, kind, reason)
        self._mailbox.note(Notice(process, kind, reason, time.monotonic()))

    def forget(self) -> None:
        """Refusals that were told before are news again."""
        self._told.clear()
