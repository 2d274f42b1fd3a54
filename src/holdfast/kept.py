"""What a machine keeps when it was cut off from its host: the sealed states that it held, for a while, in memory.

    cut off --> take --> knocks, comes back --> announced in Present --> handed to the new worker --> a step begins: dropped
                  `--> nobody calls for it within `keep_s`: dropped

Nobody believes it: what it holds counts where its digest is the sealed one, and what it passes on is hashed again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from holdfast.claim import StageState

KEEP_S = 600.0
"""As long as a machine knocks at a door that does not answer."""

Holdings = Sequence[tuple[bytes, StageState]]


class Kept:
    """`keep_s` seconds (0: nothing is kept), at most `limit_bytes` of tensors (None: what it held while it computed, which is
    the states of its seats before and after one update). May be used from several threads.
    """

    def __init__(self, keep_s: float = KEEP_S, limit_bytes: int | None = None) -> None:
        self._keep_s = keep_s
        self._limit_bytes = limit_bytes
        self._holdings: tuple[tuple[bytes, StageState], ...] = ()
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def take(self, holdings: Holdings) -> None:
        """Keep these from now on, in the place of what was kept; without any, that stays, and its time runs on."""
        room, chosen = self._limit_bytes, []
        for digest, state in holdings:
            size = state.nbytes
            if room is not None and size > room:
                continue
            room = None if room is None else room - size
            chosen.append((digest, state))
        if not chosen or self._keep_s <= 0:
            return
        self.drop()
        with self._lock:
            self._holdings = tuple(chosen)
            self._timer = threading.Timer(self._keep_s, self.drop)
            self._timer.daemon = True
            self._timer.start()

    def drop(self) -> None:
        with self._lock:
            self._holdings = ()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    @property
    def holdings(self) -> tuple[tuple[bytes, StageState], ...]:
        """States with their digests."""
        return self._holdings

    @property
    def announced(self) -> tuple[tuple[int, bytes], ...]:
        """What a host is told: stage and digest of each state."""
        return tuple((state.stage, digest) for digest, state in self._holdings)
