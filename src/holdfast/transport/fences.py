"""Which incarnations of a process are not let in again: given up until told otherwise, forgotten or replaced for good."""

from __future__ import annotations

MOST_REMEMBERED = 256
"""Incarnations of one process kept out for good; the oldest are let go, so that starting anew all the time costs nothing."""


class Fences:
    """By process and incarnation."""

    def __init__(self) -> None:
        self._given_up: dict[str, dict[bytes, None]] = {}
        self._for_good: dict[str, dict[bytes, None]] = {}
        self._last: dict[str, bytes] = {}

    def keeps_out(self, process: str, incarnation: bytes) -> bool:
        return incarnation in self._given_up.get(process, ()) or incarnation in self._for_good.get(process, ())

    def let_in(self, process: str, incarnation: bytes) -> None:
        """This incarnation is connected: whichever came before it never is again."""
        last = self._last.get(process)
        if last is not None and last != incarnation:
            self.forget(process, last)
        self._last[process] = incarnation

    def give_up(self, process: str, incarnation: bytes) -> None:
        """Out until `pardon`."""
        self._given_up.setdefault(process, {})[incarnation] = None

    def pardon(self, process: str) -> None:
        self._given_up.pop(process, None)

    def forget(self, process: str, incarnation: bytes) -> None:
        """Out for good."""
        out = self._for_good.setdefault(process, {})
        out[incarnation] = None
        while len(out) > MOST_REMEMBERED:
            del out[next(iter(out))]

    def condemn(self, process: str) -> None:
        """Whatever was given up stays out for good."""
        for incarnation in self._given_up.pop(process, ()):
            self.forget(process, incarnation)

    def drop(self, process: str) -> None:
        """The process has left the address book."""
        for fences in (self._given_up, self._for_good, self._last):
            fences.pop(process, None)
