"""What workers say that they have used in this deployment: asked for, waited for a little, and never more than their word."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping

from holdfast.message import Tally, TallyUp


class Tallies:
    """`deployed` are the workers there now, `send` takes a message to one. Under `lock`, which is that of whoever receives."""

    def __init__(
        self, deployed: Collection[str], send: Callable[[str, TallyUp], None], lock: threading.RLock, answer_s: float
    ) -> None:
        self._deployed = deployed
        self._send = send
        self._lock = lock
        self._answer_s = answer_s
        self._said: dict[str, Tally] = {}
        self._asked = 0
        self._mute: set[str] = set()

    def clear(self) -> None:
        """Another deployment begins."""
        self._said.clear()

    def hear(self, name: str, tally: Tally) -> None:
        with self._lock:
            if name in self._deployed:
                self._said[name] = tally

    def latest(self) -> Mapping[str, Tally]:
        """What each last said; has them say it again, and waits for nobody."""
        with self._lock:
            self._ask()
            return dict(self._said)

    def collect(self) -> Mapping[str, Tally]:
        """What every worker that answers in time says now."""
        with self._lock:
            asked = self._ask()
        deadline = time.monotonic() + self._answer_s
        while time.monotonic() < deadline:
            with self._lock:
                if not self._owing(asked) - self._mute:
                    break
            time.sleep(0.01)
        with self._lock:
            self._mute = self._owing(asked)  # nobody is waited for twice
            return dict(self._said)

    def known(self) -> Mapping[str, Tally]:
        """What each last said, and nobody is asked."""
        with self._lock:
            return dict(self._said)

    def _ask(self) -> int:
        """Have every worker say what it has used; the number of its answer, at least."""
        self._asked += 1
        for name in sorted(self._deployed):
            self._send(name, TallyUp(self._asked))
        return self._asked

    def _owing(self, number: int) -> set[str]:
        return {name for name in self._deployed if (found := self._said.get(name)) is None or found.number < number}
