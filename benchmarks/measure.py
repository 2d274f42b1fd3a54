"""What the benchmarks share: a prepared job, a cluster that steps through it, the environment of a figure, a printed table."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch

from holdfast.cluster import Cluster, Deployment
from holdfast.config import resolve
from holdfast.job import Job, prepare
from holdfast.sweep.environment import environment as recorded
from holdfast.toml import assign

COMMON = ["data.name=synthetic:order=1,symbols=32,tokens=200000"]


def job_of(*settings: str) -> Job:
    """A job on the synthetic corpus with these `section.key=value` settings."""
    return prepare(resolve(assign({}, [*COMMON, *settings])))


def start(job: Job) -> Cluster:
    """A cluster with every seat filled and no step taken."""
    cluster = Cluster(Deployment("benchmark"), job, lambda _event, _seconds: None)
    cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
    return cluster


def spread(values: Sequence[float]) -> str:
    """Median, and the least and the greatest value."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def environment() -> dict[str, Any]:
    """What a figure depends on, in the words of every record; a benchmark may have more than one thread."""
    command = " ".join(["python", *sys.argv])
    return {**recorded(), "command": command, "threads": torch.get_num_threads()}


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table with the environment under it."""
    print(f"## {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print("\n" + json.dumps(environment()))
