"""What waits to be received: letters from the event loop to the thread that calls `receive`, control before tensors."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass

from holdfast.message import Envelope
from holdfast.transport.endpoint import Notice
from holdfast.transport.link import Link, StreamKind
from holdfast.transport.sequence import Arrival

MOST_NOTICES = 1000
"""Older ones are dropped, so that whoever knocks all the time costs nothing."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A frame of `link`, or an envelope to oneself; `generation` is that of the cluster which sent it."""

    kind: StreamKind
    generation: int
    link: Link | None
    content: Arrival | Envelope


class Mailbox:
    """Safe between threads. `take` returns None early after `wake` or a notice."""

    def __init__(self) -> None:
        self._letters: dict[StreamKind, deque[Letter]] = {"control": deque(), "bulk": deque()}
        self._notices: deque[Notice] = deque(maxlen=MOST_NOTICES)
        self._changed = threading.Condition()
        self._awake = False

    def put(self, letter: Letter) -> None:
        with self._changed:
            self._letters[letter.kind].append(letter)
            self._changed.notify()

    def note(self, notice: Notice) -> None:
        with self._changed:
            self._notices.append(notice)
            self._awake = True
            self._changed.notify()

    def wake(self) -> None:
        with self._changed:
            self._awake = True
            self._changed.notify()

    def notices(self) -> list[Notice]:
        with self._changed:
            found = list(self._notices)
            self._notices.clear()
        return found

    def take(self, timeout_s: float) -> Letter | None:
        """The next letter, waiting for at most `timeout_s`; infinity waits for ever."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for letters in self._letters.values():
                    if letters:
                        return letters.popleft()
                left = deadline - time.monotonic()
                if self._awake or left <= 0:
                    self._awake = False
                    return None
                self._changed.wait(min(left, threading.TIMEOUT_MAX) if left < math.inf else None)

    def clear(self) -> None:
        with self._changed:
            for letters in self._letters.values():
                letters.clear()
            self._changed.notify_all()
