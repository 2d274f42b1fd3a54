"""What a run has come to at a checkpoint, so that a resumed run counts on from there as if it had never been killed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from holdfast.errors import CheckpointError
from holdfast.event import BOTH, CLOCKS
from holdfast.plain import fits
from holdfast.result import RunResult, rate

_OF_THE_PLACEMENT = ("predicted_step_seconds", "step_seconds")
_OF_THE_END = {
    "steps",
    "tokens_per_second",
    "train_loss",
    "validation_perplexity",
    "validation_bits_per_byte",
    *_OF_THE_PLACEMENT,
}
SUMS = tuple(item.name for item in fields(RunResult) if item.type in ("int", "float") and item.name not in _OF_THE_END)
"""What adds up, counts and amounts: the steps before a checkpoint and those after it are different ones."""


@dataclass(frozen=True)
class Progress:
    """`sums` by field of RunResult; `lies` proven and `stages` blamed, by name; `lost` are workers that are out for
    good, `clock` is what the time so far is called.
    """

    sums: Mapping[str, float] = field(default_factory=dict)
    lies: Mapping[str, int] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    train_loss: float = math.nan
    lost: tuple[str, ...] = ()
    clock: str = ""

    @classmethod
    def of(cls, result: RunResult, lost: frozenset[str]) -> Progress:
        """The progress that is reached with `result`, from the first step of the run on."""
        sums = {name: getattr(result, name) for name in SUMS}
        return cls(sums, result.blamed_workers, result.blamed_stages, result.train_loss, tuple(sorted(lost)), result.clock)

    def plus(self, result: RunResult) -> RunResult:
        """The result of the whole run, where `result` counts from here on only."""
        sums = {name: self.sums.get(name, 0) + getattr(result, name) for name in SUMS}
        return replace(
            result,
            **sums,
            clock=result.clock if self.clock in ("", result.clock) else BOTH,
            tokens_per_second=rate(sums["tokens"], sums["training_seconds"]),
            train_loss=result.train_loss if result.tokens else self.train_loss,
            blamed_workers=dict(Counter(self.lies) + Counter(result.blamed_workers)),
            blamed_stages=dict(Counter(self.stages) + Counter(result.blamed_stages)),
        )

    def back_to(self, tokens: int) -> Progress:
        """When the run goes back to before it: the steps since are counted again, what they have cost stays."""
        return replace(self, sums={**self.sums, "tokens": tokens})

    @property
    def virtual_s(self) -> float:
        return self.sums.get("virtual_seconds", 0.0)

    def to_json(self) -> dict[str, Any]:
        loss = self.train_loss if math.isfinite(self.train_loss) else str(self.train_loss)
        counts = {"sums": dict(self.sums), "lies": dict(self.lies), "stages": dict(self.stages)}
        return {**counts, "train_loss": loss, "lost": list(self.lost), "clock": self.clock}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """The inverse of `to_json`; raises CheckpointError. Nothing at all is the progress of a run that has not begun."""
        if not values:
            return cls()
        if not _FORM.keys() <= values.keys() or not all(fits(values[name], kind) for name, kind in _FORM.items()):
            raise _unusable("it has another form than this version writes")
        sums, loss = values["sums"], float(values["train_loss"])
        sums = {"training_seconds": sums.get("seconds", 0.0), **sums}  # checkpoints of before did not tell them apart
        clock = values.get("clock", "")
        missing = [name for name in SUMS if name not in sums]
        counts = [*sums.values(), *values["lies"].values(), *values["stages"].values()]
        if clock not in ("", *CLOCKS):
            raise _unusable("its clock has no name that this version knows")
        if missing or not all(type(count) in (int, float) and 0 <= count < 2**63 for count in counts):
            raise _unusable(f"{missing[0]!r} is missing" if missing else "it counts what is no number from 0")
        return cls({name: sums[name] for name in SUMS}, values["lies"], values["stages"], loss, tuple(values["lost"]), clock)


_FORM: Mapping[str, Any] = {
    "sums": dict[str, float],
    "lies": dict[str, int],
    "stages": dict[str, int],
    "train_loss": float,
    "lost": list[str],
}


def _unusable(why: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint's count of the run so far is unusable ({why}); use an older one")
