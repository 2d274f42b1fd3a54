"""What signatures cost: one signature and one check a claim, and their share of the wall time of a step.

    python benchmarks/signing_cost.py                   K = 6, M = 4, widths 64 and 256

A run is stepped with its signer and its notary replaced by ones that measure themselves; a claim is signed once, whoever it is
sent to, and checked once, by the coordinator. All members share this machine, so the share is that of all of them together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import job_of, show

from holdfast import cluster as clusters
from holdfast.cluster import Cluster, Deployment
from holdfast.evidence.notary import Notary


class Watch:
    """Counts calls and the seconds that they take."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.calls, self.seconds, self._function = 0, 0.0, function

    def __call__(self, *values: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = self._function(*values, **named)
        self.seconds += time.perf_counter() - began
        self.calls += 1
        return result


def measure(width: int, micro_batches: int, steps: int) -> list[str]:
    """`steps` steps after one of warm-up."""
    job = job_of(
        f"model.name=gpt2:layers=6,width={width},heads=4",
        f"pipeline.micro_batches={micro_batches}",
        f"training.steps={steps + 1}",
    )
    sign = Watch(clusters.sign_header)
    clusters.sign_header = sign
    notary = Notary(clusters.register("benchmark", job.config))
    check = Watch(notary.vouches)
    notary.vouches = check  # type: ignore[method-assign]
    try:
        cluster = Cluster(Deployment("benchmark", notary=notary), job, lambda _event, _seconds: None)
        cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
        cluster.run_step(0)
        for watch in (sign, check):
            watch.calls, watch.seconds = 0, 0.0
        began = time.perf_counter()
        for step in range(1, steps + 1):
            cluster.run_step(step)
        wall = time.perf_counter() - began
    finally:
        clusters.sign_header = sign._function
    each = [f"{watch.seconds / watch.calls * 1e6:.0f} us" for watch in (sign, check)]
    share = (sign.seconds + check.seconds) / wall
    return [f"{width}", f"{micro_batches}", f"{sign.calls / steps:.0f}", *each, f"{wall / steps * 1e3:.0f} ms", f"{share:.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(width, options.micro_batches, options.steps) for width in options.widths]
    show("Cost of signatures, K = 6", ["width", "M", "claims a step", "to sign", "to check", "step", "share"], rows)


if __name__ == "__main__":
    main()
