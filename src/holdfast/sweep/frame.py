"""Records as pandas frames: one row a cell, and means over seeds with the interval that belongs to them.

The interval is Student's t (1908): mean ± t(n-1) s / sqrt(n); with one seed there is none. A geometric mean is that of the
logarithms, which suits perplexities, whose spread grows with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.errors import ConfigError, MissingExtra
from holdfast.plain import NOT_FINITE
from holdfast.sweep.record import Record

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIDENCE = 0.95
SEED = "seed"
ORIGIN = ("key", "run_id", "commit", "command", "error", "cell_seconds", "started", "holdfast", "python", "torch", "machine")
"""The columns of a frame that say where a row comes from; they stand last."""


@dataclass(frozen=True)
class Mean:
    """Mean, standard deviation and interval of `n` values; `lost` counts runs that have none (failed, or not finite)."""

    mean: float
    std: float
    n: int
    low: float
    high: float
    lost: int = 0


def frame(records: Iterable[Record]) -> DataFrame:
    """One row a record: its axes, every number and word of its result, and ORIGIN. A failed cell has NaN and its `error`."""
    pandas = require_pandas()
    rows = [_row(record) for record in records]
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ORIGIN]
    return pandas.DataFrame(rows, columns=[*columns, *ORIGIN])


def summary(
    table: DataFrame,
    by: str | Sequence[str],
    values: str | Sequence[str] = "validation_perplexity",
    *,
    geometric: bool | Sequence[str] = False,
    confidence: float = CONFIDENCE,
) -> DataFrame:
    """One row a group of `by`, in the order in which they first come; for each value V the columns V, V_std, V_n, V_low, V_high
    and V_lost, as in `Mean`. `geometric` says which values have a geometric mean (its V_std is a factor). Raises ConfigError
    for a column that is not there, or has no numbers.
    """
    pandas = require_pandas()
    by, values = _several(by), _several(values)
    for name in (*by, *values):
        if name not in table.columns:
            raise ConfigError(f"no column {name!r}; there are {', '.join(map(str, table.columns))}")
    chosen = values if geometric is True else _several(geometric or ())
    rows = []
    groups = table.groupby(by, sort=False, dropna=False) if by else [((), table)]
    for place, group in groups:
        row: dict[str, Any] = dict(zip(by, place, strict=True))
        for name in values:
            found = mean([number(value, name) for value in group[name]], geometric=name in chosen, confidence=confidence)
            row[name] = found.mean
            row |= {f"{name}_{part}": getattr(found, part) for part in ("std", "n", "low", "high", "lost")}
        rows.append(row)
    return pandas.DataFrame(rows)


def mean(values: Sequence[float], *, geometric: bool = False, confidence: float = CONFIDENCE) -> Mean:
    """The mean of those that are finite (and positive, for a geometric one).

    >>> found = mean([1.0, 2.0, 3.0])
    >>> found.mean, found.std, round(found.low, 3), round(found.high, 3)
    (2.0, 1.0, -0.484, 4.484)
    """
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not geometric)]
    told = [math.log(value) for value in finite] if geometric else finite
    n, lost = len(told), len(values) - len(finite)
    if not n:
        return Mean(math.nan, math.nan, 0, math.nan, math.nan, lost)
    middle = math.fsum(told) / n
    std, half = math.nan, math.nan
    if n > 1:
        std = math.sqrt(math.fsum((value - middle) ** 2 for value in told) / (n - 1))
        half = _student(n - 1, confidence) * std / math.sqrt(n)
    if not geometric:
        return Mean(middle, std, n, middle - half, middle + half, lost)
    return Mean(math.exp(middle), math.exp(std), n, math.exp(middle - half), math.exp(middle + half), lost)


def number(value: Any, name: str = "value") -> float:
    """A number out of a record; NaN for what is not there, and for null, which stands for what is not finite."""
    if value is None or isinstance(value, bool | int | float):
        return math.nan if value is None else float(value)
    if value in NOT_FINITE:
        return float(value)
    raise ConfigError(f"{name!r} has {str(value)[:40]!r}, which is no number")


def require_pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise MissingExtra("pandas", extra="bench", purpose="a table of results") from None
    return pandas


def _row(record: Record) -> dict[str, Any]:
    plain: Mapping[str, Any] = {k: v for k, v in (record.result or {}).items() if not isinstance(v, dict | list)}
    result = {key: float(value) if value in NOT_FINITE else value for key, value in plain.items() if key not in ORIGIN}
    here = record.environment
    origin = {
        "key": record.key,
        "run_id": plain.get("run_id"),
        "commit": here.get("commit"),
        "command": record.command,
        "error": record.error,
        "cell_seconds": record.seconds,
        "started": record.started,
        **{name: here.get(name) for name in ("holdfast", "python", "torch", "machine")},
    }
    return {**record.axes, **{name: value for name, value in result.items() if name not in record.axes}, **origin}


def _several(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def require_scipy() -> Any:
    try:
        import scipy.stats as stats
    except ImportError:
        raise MissingExtra("scipy", extra="bench", purpose="a confidence interval") from None
    return stats


def _student(freedom: int, confidence: float) -> float:
    return float(require_scipy().t.ppf(0.5 + confidence / 2, freedom))
