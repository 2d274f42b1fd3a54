"""What the benchmarks share: a prepared job, a cluster that steps through it, the environment of a figure, a printed table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from holdfast.cluster import Cluster, Deployment
from holdfast.config import resolve
from holdfast.job import Job, prepare
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
    """What a figure depends on besides its command."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table with the environment under it."""
    print(f"## {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print("\n" + json.dumps(environment()))
