"""What detection costs: virtual step time of `duplicate` against defences off, beside the bound; time on this machine.

    python benchmarks/detection_cost.py                 K = 6, M = 4, 16 and 64, both schedules

The bound of full duplication with verify before use is max(1, 2M / (M + K - 1)): every worker computes two stages, and only
the fill and drain of the pipeline is free to hide the second. Virtual time: a forward pass 50 ms, links of 1 ms and 1 Gbit/s
(the defaults of [cluster]). "On paper" is a greedy list scheduling of the same work without messages. The time of one core
(processor time, since machines are shared) is that of all stages one after another, so there the work itself shows: clean K
stages, defended 2K - 2.
"""

from __future__ import annotations

import argparse
import time

import torch
from measure import job_of, show, start

from holdfast.schedule import SCHEDULES, in_flight_limit
from holdfast.schedule.simulate import Pipeline, step_time

STAGES = 6


def predicted(schedule: str, micro_batches: int) -> float:
    """Defended over clean step time on paper: greedy list scheduling, messages that take no time."""
    times = []
    for shadowed in (True, False):
        orders = tuple(tuple(SCHEDULES[schedule](STAGES, i, micro_batches)) for i in range(STAGES))
        limits = tuple(in_flight_limit(schedule, STAGES, i, micro_batches, shadowed) for i in range(STAGES))
        times.append(step_time(Pipeline(orders, limits, shadowed, backward_waits=schedule == "gpipe")))
    return times[0] / times[1]


def measure(defence: str, schedule: str, micro_batches: int, steps: int) -> tuple[float, float, float]:
    """Virtual seconds, processor seconds and megabytes a step, after one step of warm-up."""
    job = job_of(
        f"model.name=gpt2:layers={STAGES},width=64,heads=4",
        f"pipeline.stages={STAGES}",
        f"pipeline.micro_batches={micro_batches}",
        "pipeline.micro_batch_size=2",
        f"pipeline.schedule={schedule}",
        f"defence.name={defence}",
        f"training.steps={steps + 1}",
    )
    cluster = start(job)
    cluster.run_step(0)
    virtual, began, sent = cluster.launcher.now, time.process_time(), cluster.transport.traffic.bytes_sent
    for step in range(1, steps + 1):
        cluster.run_step(step)
    elapsed = time.process_time() - began
    megabytes = (cluster.transport.traffic.bytes_sent - sent) / 1e6
    return (cluster.launcher.now - virtual) / steps, elapsed / steps, megabytes / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for micro_batches in options.micro_batches:
        bound = max(1.0, 2 * micro_batches / (micro_batches + STAGES - 1))
        for schedule in ("gpipe", "1f1b"):
            clean = measure("none", schedule, micro_batches, options.steps)
            held = measure("duplicate", schedule, micro_batches, options.steps)
            ratios = [after / before for after, before in zip(held, clean, strict=True)]
            figures = [f"{clean[0]:.2f} s", f"{held[0]:.2f} s", f"{ratios[0]:.2f}x"]
            figures += [f"{predicted(schedule, micro_batches):.2f}x", f"{bound:.2f}x"]
            rows.append([f"{micro_batches}", schedule, *figures, f"{ratios[1]:.2f}x", f"{ratios[2]:.2f}x"])
    header = ["M", "schedule", "clean step", "defended step", "virtual", "on paper", "bound", "time of one core", "bytes"]
    show(f"Cost of detection, K = {STAGES}", header, rows)


if __name__ == "__main__":
    main()
