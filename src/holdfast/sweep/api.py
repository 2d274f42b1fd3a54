"""A grid of runs from Python, as a pandas frame.

table = sweep({"steps": 20}, grid={"attack": ["none", "sign-flip"], "defence": ["none", "duplicate"]}, seeds=3)
summary(table, by=["attack", "defence"])
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.config import RunConfig
from holdfast.errors import ConfigError
from holdfast.settings import merge
from holdfast.sweep.frame import frame, require_pandas
from holdfast.sweep.grid import Grid, make_grid, read_grid
from holdfast.sweep.record import Record
from holdfast.sweep.store import Store
from holdfast.sweep.study import Study

if TYPE_CHECKING:
    from pandas import DataFrame


def sweep(
    base: Mapping[str, Any] | RunConfig | Path | str | None = None,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    cases: Iterable[Mapping[str, Any]] = (),
    seeds: int | Iterable[int] = 1,
    skip: Iterable[Mapping[str, Any]] = (),
    out: Path | str | None = None,
    jobs: int = 1,
    tell: Callable[[Record], None] = lambda _record: None,
) -> DataFrame:
    """One row a run: its axes, the numbers of `train --json`, and where they come from (see `frame`).

    `base` has short names and sections as `Experiment` takes them, or is the path of a SWEEP.toml, which then says all the
    rest. `grid`, `cases`, `seeds` and `skip` are as in that file. With `out` the results are kept there: called again, only
    what is missing is run, and `holdfast report OUT` reads it. A run that failed is a row with its `error`. With `jobs` > 1 the
    calling script needs its `if __name__ == "__main__"`. Raises ConfigError before the first run starts.
    """
    require_pandas()
    planned = _planned(base, grid, cases, seeds, skip)
    with _directory(out) as directory:
        study = Study(planned.name, planned.cells, text=planned.text)
        return frame(study.fill(Store(directory), jobs=jobs, tell=tell))


def _planned(base: Any, grid: Any, cases: Any, seeds: Any, skip: Any) -> Grid:
    if isinstance(base, Path | str):
        if grid or cases or skip or seeds != 1:
            raise ConfigError(f"{base} says grid, cases, seeds and skip itself; give either the file or these")
        return read_grid(Path(base))
    if isinstance(base, RunConfig):
        tables: dict[str, Any] = base.model_dump(exclude_none=True, exclude={"training": {"seed"}})
    else:
        short = {name: value for name, value in (base or {}).items() if name != "attack"}
        tables = merge({}, short) | ({"attack": base["attack"]} if base and "attack" in base else {})
    if isinstance(tables.get("attack"), str):
        tables["attack"] = make_grid({}, grid={"attack": [tables["attack"]]}).cells[0].tables["attack"]
    return make_grid(tables, grid=grid, cases=cases, seeds=seeds, skip=skip)


def _directory(out: Path | str | None) -> AbstractContextManager[Path | str]:
    return tempfile.TemporaryDirectory(prefix="holdfast-sweep-") if out is None else nullcontext(out)
