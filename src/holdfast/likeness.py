"""Who computes like whom: the numerics class of every member, and how far apart two honest results of unlike ones may be.

Within a class equality is equality of bytes, and nothing here is asked. Bounds come from honest probes (`holdfast.calibrate`);
where none were made of a pair, the run is refused before it starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.claim import Direction
from holdfast.config import OptimizerConfig
from holdfast.errors import ConfigError
from holdfast.numerics import numerics_class, resolve_arithmetic
from holdfast.quantise import Packing
from holdfast.route import Route
from holdfast.verify.calibration import Calibration, from_toml
from holdfast.verify.resync import Budget, Formula
from holdfast.verify.tolerance import Bound

if TYPE_CHECKING:
    import torch

    from holdfast.job import Job


@dataclass(frozen=True)
class Likeness:
    """`classes` by member, the referee's and the checker's too; `bound(stage, direction, one, other)` of two classes.

    `formula(rate)` is the optimizer step at a learning rate; `budgets(stage, one, other)` limits the sum of all that one shadow
    takes over from its primary; `calibration` is the table behind them, as its file.
    """

    classes: Mapping[str, str]
    bounds: Callable[[int, Direction, str, str], Bound]
    formula: Callable[[float], Formula]
    budgets: Callable[[int, str, str], float]
    calibration: str = ""

    def unlike(self, one: str | None, other: str | None) -> bool:
        """Whether two members compute with other bytes; nobody is unlike nobody."""
        if one is None or other is None:
            return False
        return self.classes[one] != self.classes[other]

    def splits(self, route: Route, stage: int) -> bool:
        """Whether the two holders of a stage compute with other bytes."""
        return self.unlike(route.primaries[stage], route.shadows[stage])

    def bound(self, stage: int, direction: Direction, one: str, other: str) -> Bound:
        """Of the results of two unlike members."""
        return self.bounds(stage, direction, self.classes[one], self.classes[other])

    def budget(self, stage: int, one: str, other: str) -> Budget:
        """A fresh one for two unlike members."""
        return Budget(self.budgets(stage, self.classes[one], self.classes[other]))


def likeness_of(job: Job, arithmetics: Mapping[str, str], calibration: Calibration | None = None) -> Likeness | None:
    """Who is unlike whom in a run whose members compute by `arithmetics`; None where all are alike.

    Without a `calibration` the bounds are measured here and now. Raises ConfigError for a pair that cannot be, or was not.
    """
    from holdfast.calibrate import calibrate_job

    ways = [resolve_arithmetic(name) for name in dict.fromkeys(arithmetics.values())]
    if len(ways) < 2:
        return None
    refuse_packing(job.packing)
    by_name = {way.name: str(numerics_class(way, job.dtype, job.config.model.device)) for way in ways}
    table = calibrate_job(job, ways) if calibration is None else calibration
    steps = job.config.training.steps
    classes = {member: by_name[resolve_arithmetic(way).name] for member, way in arithmetics.items()}
    found = likeness_from(table, classes, job.config.optimizer, Extent(job.dtype, steps, job.config.defence.drift_factor))
    for stage in range(1, job.plan.stages - 1):  # whoever sits where later: what was never measured is refused now
        for one, other in itertools.combinations(by_name.values(), 2):
            for direction in Direction:
                found.bounds(stage, direction, one, other)
    return found


def refuse_packing(packing: Packing) -> None:
    """Raise ConfigError where tensors are packed: next to a tie, numbers a rounding apart become whole units apart."""
    if packing.changes:
        raise ConfigError(
            f"wire_dtype {_name(packing.wire)} with a {_name(packing.model)} model, between holders of unlike arithmetic: "
            "rounding jumps at ties, so no bound holds for what they pack; leave wire_dtype out, or give all one numerics class"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Extent:
    """What limits the drift of a run: its dtype, its steps, and how many times the honest drift a shadow may take over."""

    dtype: torch.dtype
    steps: int
    drift_factor: float


def likeness_from(table: Calibration, classes: Mapping[str, str], optimizer: OptimizerConfig, extent: Extent) -> Likeness:
    """The likeness of members in these `classes`, whose bounds are those of `table`."""
    from holdfast.implied import implied_by

    dtype = _name(extent.dtype)

    def bounds(stage: int, direction: Direction, one: str, other: str) -> Bound:
        return table.bound_for(stage, dtype, one, other, direction)

    def budgets(stage: int, one: str, other: str) -> float:
        return table.budget_for(stage, dtype, one, other, extent.steps, extent.drift_factor)

    return Likeness(dict(classes), bounds, lambda rate: implied_by(optimizer, rate), budgets, table.to_toml())


def read_calibration(path: Path) -> Calibration:
    """The file that `holdfast doctor --numerics --out` wrote. Raises ConfigError."""
    try:
        return from_toml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the calibration {path}: {error}; make one by holdfast doctor --numerics --out FILE"
        ) from None
