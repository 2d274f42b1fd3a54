"""What runs have in common, prepared once a process: text, tokenizer, model and plan, whatever a run is up against."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from holdfast.config import ClusterConfig, RunConfig
from holdfast.job import Job
from holdfast.trainer import prepare_tested

JOBS_KEPT = 4


def job_of(config: RunConfig) -> Job:
    """The job of a run. Runs that differ in attack, faults, defence, bypassed stages, network or output alone share it."""
    plain = RunConfig()
    bare = {
        "attack": (),
        "faults": (),
        "defence": plain.defence,
        "cluster": ClusterConfig(speeds=config.cluster.speeds),  # the cut of the model follows from them
        "training": config.training.model_copy(update={"bypass": ()}),
        "output": plain.output,
        "machines": plain.machines,
    }
    return replace(_job(config.model_copy(update=bare)), config=config)


@lru_cache(maxsize=JOBS_KEPT)
def _job(config: RunConfig) -> Job:
    return prepare_tested(config)
