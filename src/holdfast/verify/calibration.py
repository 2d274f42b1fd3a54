"""Bounds are learned from honest probes alone: one trusted party computes a stage in two arithmetics and compares.

    largest distance of all probes  --x MARGIN-->  alarm  --x GUILTY-->  guilty          neither above its cap

The probes are few, and a pair that none of them told apart may differ tomorrow by a rounding; so no alarm is below its FLOORS.
A table has a row for each (stage, dtype, pair of classes, direction). A pair that was never measured has no bound, and a pair
that is too far apart for the caps gets none: a check that cannot run is not a pass.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.claim import Direction
from holdfast.errors import ConfigError
from holdfast.plain import from_toml as tables_of
from holdfast.toml import toml_literal
from holdfast.verify.tolerance import CAP, EQUAL, ROW_CAP, Bound, Distance

VERSION = 1
MARGIN = 8.0
"""An alarm is raised beyond this many times the largest of the probes; of 48,000 honest checks the furthest came to 5.8."""
GUILTY = 3.0
"""Guilty is who is beyond this many times the alarm."""
HIGHEST_ALARM = 0.8
"""No alarm is above this fraction of its cap, so that some room is left for the verdict of the referee."""
LEAST_MARGIN = 1.25
"""Where the cap shortens the margin, at least this much of it must remain; else the pair cannot be checked."""
LEAST_PROBES = 3
MOST_DRIFT = 1.0
"""A state that is as far off as it is long drifted by no rounding, and a budget made of that would have no limit."""
ROUNDOFF: Mapping[str, float] = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
FLOORS: Mapping[Direction, tuple[float, float]] = {
    Direction.FORWARD: (1, 4),
    Direction.BACKWARD: (1, 4),
    Direction.GRADIENT: (8, 128),
    Direction.UPDATE: (2, 128),
}
"""Lowest alarm, overall and of a row, in unit roundoffs. Gradients are sums over all tokens of a step, which some kernels add
up in the dtype itself: layer norm in bf16 is off by up to 12 % of a row."""


@dataclass(frozen=True, slots=True, order=True)
class Pairing:
    """What a bound is for. `classes` are the names of two numerics classes, in sorted order."""

    stage: int
    dtype: str
    classes: tuple[str, str]
    direction: Direction

    @classmethod
    def of(cls, stage: int, dtype: str, one: str, other: str, direction: Direction) -> Pairing:
        low, high = sorted((one, other))
        return cls(stage, dtype, (low, high), direction)

    def __str__(self) -> str:
        return f"{self.direction} of stage {self.stage} in {self.dtype} between [{self.classes[0]}] and [{self.classes[1]}]"


@dataclass(frozen=True, slots=True)
class Probe:
    """One comparison of two honest results of the same computation; `drift` only where the direction is UPDATE."""

    pairing: Pairing
    distance: Distance
    drift: float = 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """What the probes of one pairing came to. `equal` counts those at distance 0, `drift` is the mean of theirs."""

    probes: int
    equal: int
    median: Distance
    largest: Distance
    drift: float = 0.0


def spread_of(probes: Sequence[Probe]) -> Spread:
    """Raises ConfigError for a distance that is not finite (an honest stage has overflowed), or a drift that is no rounding."""
    distances = [probe.distance for probe in probes]
    largest = Distance.largest(distances)
    if not (math.isfinite(largest.overall) and math.isfinite(largest.worst_row)):
        raise ConfigError(f"a probe of {probes[0].pairing} is not finite; the model overflows in one of the two arithmetics")
    middle = Distance(
        *(statistics.median(column) for column in zip(*((d.overall, d.worst_row) for d in distances), strict=True))
    )
    for probe in probes:
        if not 0 <= probe.drift <= MOST_DRIFT:
            raise ConfigError(f"a probe of {probe.pairing} drifts by {probe.drift}; needed is 0 to {MOST_DRIFT:g}")
    drift = statistics.fmean(probe.drift for probe in probes)
    return Spread(len(probes), sum(distance == EQUAL for distance in distances), middle, largest, drift)


def bound_from(spread: Spread, pairing: Pairing, margin: float = MARGIN) -> Bound:
    """The bound that follows. Raises ConfigError where honest results are too close to a cap to be told from forged ones."""
    overall, row = (floor * _roundoff(pairing.dtype) for floor in FLOORS[pairing.direction])
    overall_alarm, overall_guilty = _limits(spread.largest.overall, overall, CAP, margin, f"overall, {pairing}")
    row_alarm, row_guilty = _limits(spread.largest.worst_row, row, ROW_CAP, margin, f"in one row, {pairing}")
    return Bound(Distance(overall_alarm, row_alarm), Distance(overall_guilty, row_guilty))


def _limits(largest: float, floor: float, cap: float, margin: float, what: str) -> tuple[float, float]:
    highest = HIGHEST_ALARM * cap
    if largest * LEAST_MARGIN > highest:
        raise ConfigError(
            f"honest results are {largest:.1e} apart ({what}); only up to {highest / LEAST_MARGIN:.1e} could they be told from "
            "forged ones. Give the two holders of this stage one numerics class"
        )
    alarm = min(max(margin * largest, floor), highest)
    return alarm, min(GUILTY * alarm, cap)


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of the table."""

    spread: Spread
    bound: Bound


@dataclass(frozen=True)
class Calibration:
    """The table of bounds of a run, made by `calibrate`."""

    margin: float
    rows: Mapping[Pairing, Measured]

    def bound_for(self, stage: int, dtype: str, one: str, other: str, direction: Direction) -> Bound:
        """The bound between two classes, in either order. Raises ConfigError where it was never measured.

        Two holders of one class have no bound: their bytes must be equal.
        """
        return self._row(Pairing.of(stage, dtype, one, other, direction)).bound

    def budget_for(self, stage: int, dtype: str, one: str, other: str, steps: int, factor: float = 2.0) -> float:
        """A limit for the sum of drifts of `steps` updates: `factor` times what honest ones would come to. See `Budget`."""
        row = self._row(Pairing.of(stage, dtype, one, other, Direction.UPDATE))
        return factor * steps * max(row.spread.drift, _roundoff(dtype) / 4)

    def _row(self, pairing: Pairing) -> Measured:
        if pairing.classes[0] == pairing.classes[1]:
            raise ConfigError(f"{pairing}: within one class bytes are compared, and there is no bound")
        if pairing not in self.rows:
            raise ConfigError(
                f"no bound for the {pairing}: it was never measured, and a check that cannot run is not a pass. "
                "Calibrate this pair, or give the two holders of the stage one numerics class"
            )
        return self.rows[pairing]

    def to_toml(self) -> str:
        """The table as a versioned file; reading it back gives an equal one."""
        lines = [f"version = {VERSION}", f"margin = {self.margin!r}"]
        for pairing, row in sorted(self.rows.items()):
            lines += ["", "[[pair]]"]
            lines += [f"{key} = {toml_literal(value)}" for key, value in _to_table(pairing, row).items()]
        return "\n".join(lines) + "\n"


def calibrate(probes: Iterable[Probe], margin: float = MARGIN) -> Calibration:
    """The table that follows from honest probes. They must be the caller's own computations, never somebody's claims.

    Raises ConfigError where there are fewer than three of a pairing, where one is not finite, or where a cap is in the way.
    """
    if not (math.isfinite(margin) and margin >= LEAST_MARGIN):
        raise ConfigError(f"a margin of at least {LEAST_MARGIN} is needed, got {margin}")
    grouped: dict[Pairing, list[Probe]] = {}
    for probe in probes:
        grouped.setdefault(probe.pairing, []).append(probe)
    if not grouped:
        raise ConfigError("no probes: nothing was measured")
    rows = {}
    for pairing, several in grouped.items():
        if len(several) < LEAST_PROBES:
            raise ConfigError(f"{len(several)} probes of the {pairing}; at least {LEAST_PROBES} are needed")
        spread = spread_of(several)
        rows[pairing] = Measured(spread, bound_from(spread, pairing, margin))
    return Calibration(margin, rows)


def from_toml(text: str, source: str = "the calibration") -> Calibration:
    """The inverse of `to_toml`, strict: raises ConfigError for another version, a key too many or too few, or a wrong value."""
    try:
        tables = tables_of(text)
    except ValueError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from None
    if tables.get("version") != VERSION or tables["version"] is True:
        raise ConfigError(
            f"{source} has version {tables.get('version')!r}; this Holdfast reads version {VERSION}, so calibrate again"
        )
    if tables.keys() != {"version", "margin", "pair"} or not isinstance(tables["pair"], list):
        raise ConfigError(f"{source}: needed are version, margin and [[pair]], got {', '.join(sorted(tables))}")
    rows: dict[Pairing, Measured] = {}
    for number, table in enumerate(tables["pair"], start=1):
        try:
            pairing, row = _from_table(table)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{source}, pair {number}: {_reason(error)}") from None
        if pairing in rows:
            raise ConfigError(f"{source}, pair {number}: the {pairing} stands there twice")
        rows[pairing] = row
    try:
        margin = _number(tables["margin"])
    except ValueError as error:
        raise ConfigError(f"{source}: margin: {error}") from None
    if margin < LEAST_MARGIN:
        raise ConfigError(f"{source}: a margin of at least {LEAST_MARGIN} is needed, got {margin}")
    return Calibration(margin, rows)


def _to_table(pairing: Pairing, row: Measured) -> dict[str, Any]:
    spread, bound = row.spread, row.bound
    return {
        "stage": pairing.stage,
        "dtype": pairing.dtype,
        "classes": list(pairing.classes),
        "direction": str(pairing.direction),
        "probes": spread.probes,
        "equal": spread.equal,
        "drift": spread.drift,
        "median": [spread.median.overall, spread.median.worst_row],
        "largest": [spread.largest.overall, spread.largest.worst_row],
        "alarm": [bound.alarm.overall, bound.alarm.worst_row],
        "guilty": [bound.guilty.overall, bound.guilty.worst_row],
    }


_KEYS = ("stage", "dtype", "classes", "direction", "probes", "equal", "drift", "median", "largest", "alarm", "guilty")


def _from_table(table: Mapping[str, Any]) -> tuple[Pairing, Measured]:
    if set(table) != set(_KEYS):
        raise ValueError(f"needed are {', '.join(_KEYS)}; these differ: {', '.join(sorted(set(table) ^ set(_KEYS)))}")
    one, other = table["classes"]
    if not all(isinstance(text, str) for text in (one, other, table["dtype"])) or not one < other:
        raise ValueError("classes are two different names in sorted order, and dtype is a name")
    _roundoff(table["dtype"])
    pairing = Pairing.of(_count(table["stage"]), table["dtype"], one, other, Direction(table["direction"]))
    median, largest, alarm, guilty = (_distance(table[key]) for key in ("median", "largest", "alarm", "guilty"))
    spread = Spread(_count(table["probes"]), _count(table["equal"]), median, largest, _number(table["drift"]))
    if spread.drift > MOST_DRIFT:
        raise ValueError(f"a drift of at most {MOST_DRIFT:g} is needed, got {spread.drift!r}")
    if spread.equal > spread.probes or spread.probes < LEAST_PROBES or not largest.fits(alarm):
        raise ValueError("more equal probes than probes, too few probes, or a largest distance beyond the alarm")
    return pairing, Measured(spread, Bound(alarm, guilty))


def _distance(pair: Any) -> Distance:
    overall, row = pair
    return Distance(_number(overall), _number(row))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"a finite number that is not negative is needed, got {value!r}")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"a whole number that is not negative is needed, got {value!r}")
    return value


def _roundoff(dtype: str) -> float:
    if dtype not in ROUNDOFF:
        raise ConfigError(f"dtype {dtype!r} has no bounds; known are {', '.join(ROUNDOFF)}")
    return ROUNDOFF[dtype]


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
