"""The cells of the experiment on detection as a study, and what they came to.

cell ──> settings ──> measure ──> record ──> Outcome
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from holdfast.bench.cell import Cell, Setup, config_of
from holdfast.bench.measure import Measurement, measure
from holdfast.errors import FaultWindowExceeded
from holdfast.sweep import cell as sweep_cell
from holdfast.sweep.jobs import job_of
from holdfast.sweep.record import Record, telling_first
from holdfast.sweep.store import Store
from holdfast.sweep.study import Study

NAME = "detection"
TELLING = ("detected", "missed", "false_alarms", "honest_checks", "alert_after", "virtual_s")
"""What a report shows first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell came to: a measurement or an error. A run that `stopped` did so on purpose: it could not keep its promise,
    and said why instead.
    """

    cell: Cell
    measurement: Measurement | None = None
    error: str | None = None
    stopped: bool = False


def study_of(cells: Sequence[Cell], setup: Setup) -> Study:
    """Raises ConfigError for a cell that this version cannot run."""
    return Study(NAME, [_cell(cell, setup) for cell in cells], measure_cell, partial(_command, setup=setup))


def measure_cell(cell: sweep_cell.Cell) -> Mapping[str, Any]:
    """The fields of a Measurement, or why the run `stopped`."""
    try:
        found = asdict(measure(cell.config, job_of(cell.config)))
        return telling_first(found, TELLING)
    except FaultWindowExceeded as error:
        return {"stopped": str(error)}


def outcome_of(record: Record) -> Outcome:
    """A record of such a study."""
    cell, result = Cell(**record.axes), record.result  # type: ignore[arg-type]
    if result is None:
        return Outcome(cell, error=record.error)
    if "stopped" in result:
        return Outcome(cell, error=result["stopped"], stopped=True)
    several = {name: tuple(value) for name, value in result.items() if isinstance(value, list)}
    return Outcome(cell, Measurement(**{**result, **several}))


def run_cells(
    cells: Sequence[Cell], setup: Setup, processes: int = 1, done: Callable[[Outcome], None] = lambda _outcome: None
) -> list[Outcome]:
    """Run every cell, `processes` at a time, keep nothing, and call `done` as each ends; the outcomes stand in their order."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        study = study_of(cells, setup)
        records = study.run(Store(directory), jobs=processes, tell=lambda record: done(outcome_of(record)))
    return [outcome_of(record) for record in records]


def _cell(cell: Cell, setup: Setup) -> sweep_cell.Cell:
    return sweep_cell.Cell(asdict(cell), config_of(cell, setup).model_dump(mode="json", exclude_none=True), NAME)


def _command(cell: sweep_cell.Cell, *, setup: Setup) -> str:
    return Cell(**cell.axes).command(setup)  # type: ignore[arg-type]
