"""A ledger whose entries can be told to another process: the liars of each worker's process write, the parent's ledger repeats.

worker's process: Journal --take()--> lines of JSON --replay(ledger, entry)--> the run's Ledger
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from typing import Any

from holdfast.attacks.ledger import Ledger
from holdfast.claim import ClaimKey, Direction
from holdfast.errors import ProtocolError

Entry = list[Any]


class Journal(Ledger):
    """A `Ledger` that also remembers what was entered since it was last asked."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: list[Entry] = []

    def take(self) -> list[Entry]:
        """What was entered since the last call: method and arguments, plain values only."""
        entries, self._entries = self._entries, []
        return entries

    def record(self, worker: str, key: ClaimKey, what: str, honest: Hashable, said: Hashable) -> None:
        super().record(worker, key, what, honest, said)
        self._entries.append(["record", worker, _plain(key), what, repr(honest), repr(said)])

    def offend(self, worker: str, key: ClaimKey) -> None:
        super().offend(worker, key)
        self._entries.append(["offend", worker, _plain(key)])

    def believe(self, worker: str, key: ClaimKey) -> None:
        super().believe(worker, key)
        self._entries.append(["believe", worker, _plain(key)])

    def taint(self, worker: str, stage: int, step: int, *, weights: bool) -> None:
        super().taint(worker, stage, step, weights=weights)
        self._entries.append(["taint", worker, stage, step, weights])

    def heal(self, worker: str, stage: int, version: int) -> None:
        super().heal(worker, stage, version)
        self._entries.append(["heal", worker, stage, version])

    def retry(self, worker: str, step: int) -> None:
        super().retry(worker, step)
        self._entries.append(["retry", worker, step])

    def doubt(self, worker: str, key: ClaimKey) -> None:
        super().doubt(worker, key)
        self._entries.append(["doubt", worker, _plain(key)])


def replay(ledger: Ledger, line: bytes) -> None:
    """Enter into `ledger` what one line of a journal says. Raises ProtocolError for a line that is none."""
    try:
        method, *arguments = json.loads(line)
        _METHODS[method](ledger, *arguments)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProtocolError(f"not a line of a journal: {type(error).__name__}: {error}") from None


def _plain(key: ClaimKey) -> list[Any]:
    return [key.step, key.attempt, str(key.direction), key.stage, key.micro_batch]


def _key(values: list[Any]) -> ClaimKey:
    step, attempt, direction, stage, micro_batch = values
    return ClaimKey(step, attempt, Direction(direction), stage, micro_batch)


_METHODS: dict[str, Callable[..., None]] = {
    "record": lambda ledger, worker, key, what, honest, said: ledger.record(worker, _key(key), what, honest, said),
    "offend": lambda ledger, worker, key: ledger.offend(worker, _key(key)),
    "believe": lambda ledger, worker, key: ledger.believe(worker, _key(key)),
    "taint": lambda ledger, worker, stage, step, weights: ledger.taint(worker, stage, step, weights=weights),
    "heal": lambda ledger, worker, stage, version: ledger.heal(worker, stage, version),
    "retry": lambda ledger, worker, step: ledger.retry(worker, step),
    "doubt": lambda ledger, worker, key: ledger.doubt(worker, _key(key)),
}
