"""How the experiment on tolerance is measured: a cell for each dtype, whose record holds its part of the tables.

dtype --> calibrate, rehearse, forge (`roc.measure`) --> record --> one table of all dtypes
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from holdfast.bench.roc import ARITHMETICS, SIZES, Honest, Plan, Roc, Tampered, config_of, joined, measure
from holdfast.sweep.cell import Cell
from holdfast.sweep.record import Record
from holdfast.sweep.study import Study

NAME = "tolerance"


def study_of(plan: Plan) -> Study:
    """Raises ConfigError for a model or stages that cannot be."""
    runner = Measuring(plan)
    return Study(NAME, [_cell(plan, dtype) for dtype in plan.dtypes], runner, runner.command)


@dataclass(frozen=True)
class Measuring:
    """Measures the cell of a dtype."""

    plan: Plan

    def __call__(self, cell: Cell) -> Mapping[str, Any]:
        part = measure(self.plan, str(cell.axes["dtype"]))
        return {
            "rows": _rows(part),
            "honest": [asdict(row) for row in part.honest],
            "tampered": [asdict(row) for row in part.tampered],
            "steps": part.steps,
        }

    def command(self, cell: Cell) -> str:
        """The command line that measures the cell again, with as little else as can be."""
        plan, usual = self.plan, Plan()
        words = ["holdfast", "bench", "roc", "--dtype", str(cell.axes["dtype"]), "--checks", str(plan.share)]
        for field in fields(plan):
            value = getattr(plan, field.name)
            if field.name not in ("dtypes", "checks") and value != getattr(usual, field.name):
                words += ["--" + field.name.replace("_", "-"), str(value)]
        return shlex.join(words)


def gather(plan: Plan, records: Sequence[Record]) -> Roc:
    """The tables of all cells that were measured."""
    return joined(plan, [_part(plan, record.result) for record in records if record.result is not None])


def _cell(plan: Plan, dtype: str) -> Cell:
    settings = config_of(plan, dtype).model_dump(mode="json", exclude_none=True)
    more = {"checks": plan.share, "arithmetics": list(ARITHMETICS[dtype]), "sizes": list(SIZES)}
    return Cell({"dtype": dtype}, settings, NAME, more)


def _part(plan: Plan, result: Mapping[str, Any]) -> Roc:
    honest = [Honest(**row) for row in result["honest"]]
    return Roc(plan, honest, [Tampered(**row) for row in result["tampered"]], dict(result["steps"]))


def _rows(part: Roc) -> list[dict[str, Any]]:
    """What a report shows: the counts of each direction."""
    found = []
    for direction in dict.fromkeys(row.direction for row in part.honest):
        honest = [row for row in part.honest if row.direction == direction]
        forged = [row for row in part.tampered if row.direction == direction]
        found.append(
            {
                "direction": direction,
                "honest_checks": sum(row.checks for row in honest),
                "false_alarms": sum(row.alarms for row in honest),
                "beyond_3_alarms": sum(row.must for row in forged),
                "missed": sum(row.must_missed + row.must_convict_missed for row in forged),
                "forgeries": sum(row.forgeries for row in forged),
            }
        )
    return found
