"""The ledger of a run's lies: what detection is measured against, written by the liars themselves.

    lie       worker, claim, what of it (output, norms, inputs, ...), the honest bytes and what was said instead
    taint     from this step on, what a worker holds of a stage is not what an honest one would hold
    misdeed   something wrong that is no claim (a false state, handed over), so that no claim was forged by it

A lie that happens to be the truth (a sign flipped twice, noise lost in rounding) is none. A taint explains alerts about
anything that its worker says of that stage, until a sealed state heals it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from holdfast.claim import ClaimKey, Direction

Slot = tuple[str, ClaimKey, str]


@dataclass(frozen=True, slots=True)
class Taint:
    """From `step` until it is given the state of version `healed`: weights, or (`weights=False`) the gradient of the step."""

    worker: str
    stage: int
    step: int
    weights: bool
    healed: int | None = None


class Ledger:
    """Shared by the dishonest workers of a run; never seen by anyone else until the run is over."""

    def __init__(self) -> None:
        self._honest: dict[Slot, Hashable] = {}
        self._said: dict[Slot, Hashable] = {}
        self._doubts: set[ClaimKey] = set()
        self._undone: set[ClaimKey] = set()
        self._speakers: dict[ClaimKey, set[str]] = {}
        self._believed: set[tuple[str, ClaimKey]] = set()
        self.taints: list[Taint] = []
        self.misdeeds: set[tuple[str, ClaimKey]] = set()

    def record(self, worker: str, key: ClaimKey, what: str, honest: Hashable, said: Hashable) -> None:
        """`worker` said `said` where `honest` was true. Of several distortions the first one knew the truth."""
        self._honest.setdefault((worker, key, what), honest)
        self._said[worker, key, what] = said
        self._undone.discard(key)

    def undo(self, version: int) -> None:
        """The run has gone back to `version`: what was said of later steps is in no weights any more."""
        self._undone |= {key for _, key, _ in self._said if key.step >= version}

    def offend(self, worker: str, key: ClaimKey) -> None:
        """`worker` did something wrong about `key` that is no claim; an alert about it is no false alarm."""
        self.misdeeds.add((worker, key))

    def believe(self, worker: str, key: ClaimKey) -> None:
        """`worker` takes its lie about `key` for the truth in whatever it computes in this attempt of the step."""
        self._believed = {(w, lie) for w, lie in self._believed if lie.step >= key.step} | {(worker, key)}

    def taint(self, worker: str, stage: int, step: int, *, weights: bool) -> None:
        self.taints.append(Taint(worker, stage, step, weights))

    def heal(self, worker: str, stage: int, version: int) -> None:
        """`worker` holds another state of `stage` from `version` on, or none: what it had spoilt is gone."""
        self.taints = [
            replace(taint, healed=max(version, taint.step))
            if (taint.worker, taint.stage, taint.healed) == (worker, stage, None)
            else taint
            for taint in self.taints
        ]

    def tainted_stages(self, worker: str) -> frozenset[int]:
        """The stages whose state `worker` has spoilt and still holds."""
        return frozenset(taint.stage for taint in self.taints if (taint.worker, taint.healed) == (worker, None))

    def retry(self, worker: str, step: int) -> None:
        """`step` starts again: its gradient and an update of it that was never sealed are dropped, so they spoil no more."""
        self.taints = [t for t in self.taints if t.worker != worker or t.step < step + t.weights]

    def is_tainted(self, worker: str, key: ClaimKey) -> bool:
        """Whether what `worker` says of `key` is surely wrong for a taint (in later steps it is likely, but not sure)."""
        return any(
            (taint.worker, taint.stage, taint.step, taint.healed) == (worker, key.stage, key.step, None)
            and (taint.weights or key.direction is Direction.UPDATE)
            for taint in self.taints
        )

    def doubt(self, worker: str, key: ClaimKey) -> None:
        """`worker` speaks of `key`; if it holds another stage that it has spoilt, that may be why it is wrong here too.

        A worker believes itself: what its primary seat sends back goes straight into the shadow that it keeps.
        """
        self._speakers.setdefault(key, set()).add(worker)
        step = key.step, key.attempt
        if any(w == worker and (lie.step, lie.attempt) == step and lie.stage != key.stage for w, lie in self._believed):
            self._doubts.add(key)
        spoilt = (t for t in self.taints if t.weights and (t.worker, t.healed) == (worker, None) and t.step <= key.step)
        if any(taint.stage != key.stage for taint in spoilt):
            self._doubts.add(key)

    @property
    def lies(self) -> Mapping[Slot, tuple[Hashable, Hashable]]:
        """(honest, said) by (worker, claim, what), where the two differ."""
        return {slot: (true, self._said[slot]) for slot, true in self._honest.items() if self._said[slot] != true}

    @property
    def keys(self) -> frozenset[ClaimKey]:
        """Every claim that somebody lied about: the attacked claims of the report."""
        return frozenset(key for _, key, _ in self.lies)

    @property
    def standing(self) -> frozenset[ClaimKey]:
        """Those that no rollback has undone."""
        return self.keys - self._undone

    @property
    def by_worker(self) -> Mapping[str, frozenset[ClaimKey]]:
        found: dict[str, set[ClaimKey]] = {}
        for worker, key, _ in self.lies:
            found.setdefault(worker, set()).add(key)
        return {worker: frozenset(keys) for worker, keys in found.items()}

    def explains(self, key: ClaimKey) -> bool:
        """Whether an alert about `key` is no false alarm: a lie, or the word of a holder who has spoilt what it worked with."""
        return (
            key in self.keys | self._doubts | {wronged for _, wronged in self.misdeeds}
            or self._cannot_be_opened(key)
            or any(
                taint.stage == key.stage
                and taint.step <= key.step + (taint.weights and key.direction is Direction.UPDATE)
                and (taint.healed is None or key.step <= taint.healed)
                for taint in self.taints
            )
        )

    def _cannot_be_opened(self, key: ClaimKey) -> bool:
        """Whether somebody who spoke of `key` lied about a neighbouring stage that it also sits on.

        What it really computed there went straight into this claim, and nobody has the tensor that it says it was made from.
        """
        speakers = self._speakers.get(key, ())
        moment = (key.step, key.attempt, key.micro_batch)
        return any(
            worker in speakers and (lie.step, lie.attempt, lie.micro_batch) == moment and abs(lie.stage - key.stage) == 1
            for worker, lie, _ in self.lies
        )
