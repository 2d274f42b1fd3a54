"""One cell is run here: from its starting model through the pipeline to the numbers of its run, with where they come from."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from holdfast.bench.environment import environment
from holdfast.bench.paper.cells import Cell
from holdfast.bench.paper.columns import BEFORE
from holdfast.cast import Troupe
from holdfast.config import ClusterConfig, DataConfig, RunConfig, resolve
from holdfast.evaluate import evaluate_directory
from holdfast.job import Job
from holdfast.numerics import pinned
from holdfast.trainer import Trainer, prepare_tested

ROWS_KEPT = 2


@dataclass(frozen=True)
class FineTuning:
    """Runs a cell; names of models that begin with `models/` are directories below `store`."""

    store: Path

    def __call__(self, cell: Cell) -> dict[str, Any]:
        tables = dict(cell.tables)
        name = str(tables["model"]["name"])
        start = str(self.store / name) if name.startswith("models/") else name
        tables["model"] = {**tables["model"], "name": start}
        here = {**environment(), "date": time.strftime("%Y-%m-%d")}
        if cell.axes["column"] == BEFORE:
            return {**_look(start, tables), **here}
        config = resolve(tables)
        result = Trainer(config, job=_job_of(config), cast=Troupe(config) if config.attack else None).run()
        return {**result.to_json(), **here}


def _look(start: str, tables: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    device = tables["model"]["device"]
    with pinned(device):
        found = evaluate_directory(start, DataConfig(**tables["data"]), device=device)
    seconds = time.perf_counter() - began
    return {"run_id": uuid.uuid4().hex[:12], "validation_perplexity": found.perplexity, "seconds": seconds}


def _job_of(config: RunConfig) -> Job:
    """Text, tokenizer, model and plan: made once for the cells of a row, whatever a run is up against."""
    plain = RunConfig()
    training = config.training.model_copy(update={"bypass": ()})
    bare = {"attack": (), "faults": (), "defence": plain.defence, "cluster": ClusterConfig(), "training": training}
    return replace(_job(config.model_copy(update=bare)), config=config)


@lru_cache(maxsize=ROWS_KEPT)
def _job(config: RunConfig) -> Job:
    return prepare_tested(config)
