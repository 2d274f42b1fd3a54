"""How the experiment on backdoors is measured: a cell for each seed, whose record holds all its rows.

seed --> runs below DIR/seed-N (`backdoor.run_seed`) --> record --> the rows of all seeds
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.bench.backdoor import SCALES, Question, Row, first_run, run_seed
from holdfast.sweep.cell import Cell
from holdfast.sweep.record import Record
from holdfast.sweep.study import Study

NAME = "backdoor"
PLACE = ("run", "attack", "variant", "mode")
MEASURED = ("success", "success_without", "perplexity", "first_token", "detected", "attacked_claims", "false_alarms")


def study_of(question: Question, seeds: Iterable[int], directory: Path) -> Study:
    """The question as cells; their runs lie in `directory`. Raises ConfigError for settings that are refused."""
    runner = Measuring(question, directory)
    return Study(NAME, [_cell(question, seed) for seed in seeds], runner, runner.command)


@dataclass(frozen=True)
class Measuring:
    """Measures the cell of a seed."""

    question: Question
    directory: Path

    def __call__(self, cell: Cell) -> Mapping[str, Any]:
        seed = int(cell.axes["seed"] or 0)
        out = self.directory / f"seed-{seed}"
        shutil.rmtree(out, ignore_errors=True)  # of an attempt that was killed
        rows = list(run_seed(self.question, seed, out))
        return {"rows": [_shown(row) for row in rows], "looks": [asdict(row) for row in rows]}

    def command(self, cell: Cell) -> str:
        """The command line that measures the cell again, with as little else as can be."""
        ask = self.question
        words = ["holdfast", "bench", "backdoor"]
        words += [word for name, scale in SCALES.items() if scale == ask.scale for word in ("--scale", name)]
        usual = Question(ask.scale, ask.scale.stages, ask.stages - 2)
        for name in ("model", "data", "stages", "stage", "phrase", "target"):
            if getattr(ask, name) != getattr(usual, name):
                words += [f"--{name}", str(getattr(ask, name))]
        return shlex.join([*words, "--first-seed", str(cell.axes["seed"])])


def gather(records: Sequence[Record]) -> list[Row]:
    """The rows of all seeds that were measured."""
    return [Row(**look) for record in records if record.result is not None for look in record.result["looks"]]


def _cell(question: Question, seed: int) -> Cell:
    settings = first_run(question, seed).model_dump(mode="json", exclude_none=True)
    more = {
        "scale": asdict(question.scale),
        "stage": question.stage,
        "phrase": question.phrase,
        "target": question.target,
        "given": question.model is not None,
        "seed": seed,
    }
    return Cell({"seed": seed}, settings, NAME, more)


def _shown(row: Row) -> dict[str, Any]:
    """What a report shows of a row: where it stands in words, and its numbers."""
    words = {name: getattr(row, name) for name in PLACE}
    at = f"{row.steps} steps at {row.learning_rate:g}" if row.steps else "none"
    return {**words, "fine-tuning": at, **{name: getattr(row, name) for name in MEASURED}}
