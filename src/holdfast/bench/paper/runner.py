"""One cell is run here: from its starting model through the pipeline to the numbers of its run."""

from __future__ import annotations

import math
import shlex
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.bench.paper.columns import BEFORE
from holdfast.bench.paper.grid import Question, cells_of
from holdfast.cast import Troupe
from holdfast.config import RunConfig, resolve
from holdfast.evaluate import evaluate_directory
from holdfast.event import Evaluated, Event
from holdfast.numerics import pinned
from holdfast.sweep.cell import Cell, command_of
from holdfast.sweep.jobs import job_of
from holdfast.sweep.study import Study
from holdfast.trainer import Trainer


def study_of(question: Question, store: Path) -> Study:
    """The table as cells that are run with the models in `store`."""
    runner = FineTuning(store)
    return Study(question.table, cells_of(question), runner, runner.command)


@dataclass(frozen=True)
class FineTuning:
    """Runs a cell; names of models that begin with `models/` are directories below `store`."""

    store: Path

    def __call__(self, cell: Cell) -> Mapping[str, Any]:
        config = self._located(cell)
        if cell.axes["column"] == BEFORE:
            return _look(config)
        course: list[tuple[int, float]] = []

        def watch(event: Event, _seconds: float) -> None:
            if isinstance(event, Evaluated):
                course.append((event.step, event.perplexity))

        cast = Troupe(config) if config.attack else None
        result = Trainer(config, job=job_of(config), cast=cast, observers=(watch,)).run()
        return {**result.to_json(), **(_best(course) if config.training.evaluate_every else {})}

    def command(self, cell: Cell) -> str:
        """The command line that repeats the cell alone."""
        config = self._located(cell)
        if cell.axes["column"] != BEFORE:
            return command_of(config)
        data = config.data
        words = ["holdfast", "eval", config.model.name, "--data", data.name, "--seq-length", str(data.sequence_length)]
        return shlex.join([*words, "--tokens", str(data.validation_tokens), "--device", config.model.device])

    def _located(self, cell: Cell) -> RunConfig:
        model = dict(cell.tables["model"])
        if model["name"].startswith("models/"):
            model["name"] = str(self.store / model["name"])
        return resolve({**cell.tables, "model": model})


def _best(course: list[tuple[int, float]]) -> dict[str, Any]:
    """The lowest validation perplexity on the way, after how many steps, and the whole course."""
    known = [(perplexity, step) for step, perplexity in course if math.isfinite(perplexity)]
    best, step = min(known, default=(None, None))
    return {"best_perplexity": best, "best_step": step, "course": [list(point) for point in course]}


def _look(config: RunConfig) -> dict[str, Any]:
    began = time.perf_counter()
    with pinned(config.model.device):
        found = evaluate_directory(config.model.name, config.data, device=config.model.device)
    seconds = time.perf_counter() - began
    return {"run_id": uuid.uuid4().hex[:12], "validation_perplexity": found.perplexity, "seconds": seconds}
