"""Tokens a second of the engine `processes`, defences off, beside `torch.distributed.pipelining` over gloo in the same run.

    python benchmarks/pipeline_speed.py                   K = 4, M = 8, GPipe and 1F1B

Both train the same model, cut at the same layers, on the same micro-batches, with AdamW and clipping, one torch thread a
process; repeats take turns, so that both see the same machine, and while one works the other waits. Holdfast has stages 0
and K-1 in one process, the initiator's, and so K-1 processes with mutual TLS between them; torch has one process a stage
and neither authenticates nor encrypts. Wall time says how fast each is here; the time of all cores together says what each
costs, and is less disturbed by whatever else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from measure import job_of, show, spread

from holdfast.bench.process_pipeline import ProcessPipeline
from holdfast.bench.torch_pipeline import TorchPipeline

# -- the comparison ------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace, schedule: str) -> list[str]:
    """Interleave `repeats` runs of `steps` steps of both, after a step of warm-up."""
    settings = [
        f"model.name=gpt2:layers={options.layers},width={options.width},heads=8,tied=false",
        f"pipeline.stages={options.stages}",
        f"pipeline.micro_batches={options.micro_batches}",
        f"pipeline.micro_batch_size={options.batch}",
        f"pipeline.schedule={schedule}",
        "pipeline.engine=processes",
        "defence.name=none",
        f"training.steps={options.steps * options.repeats + 1}",
        f"data.sequence_length={options.sequence}",
    ]
    job = job_of(*settings)
    theirs, ours = TorchPipeline(job.config), ProcessPipeline(job)
    apart = abs(theirs.run(range(1))[0] - ours.run(range(1))[0])
    speeds: dict[str, list[float]] = {"theirs": [], "ours": []}
    costs: dict[str, list[float]] = {"theirs": [], "ours": []}
    tokens = options.steps * job.batches.tokens_per_step
    for repeat in range(options.repeats):
        numbers = range(1 + repeat * options.steps, 1 + (repeat + 1) * options.steps)
        losses = []
        turns = [("theirs", theirs), ("ours", ours)]
        for name, side in turns if repeat % 2 == 0 else turns[::-1]:
            began = time.perf_counter()
            loss, cpu = side.run(numbers)
            speeds[name].append(tokens / (time.perf_counter() - began))
            costs[name].append(cpu / options.steps)
            losses.append(loss)
        apart = max(apart, abs(losses[0] - losses[1]))
    passes = options.micro_batches * (options.steps * options.repeats + 1) * options.stages
    pass_ms = 1e3 * ours.computed_s / passes
    theirs.close()
    ours.close()
    median = statistics.median
    ratios = [o / t for o, t in zip(speeds["ours"], speeds["theirs"], strict=True)]
    cpu = [o / t for o, t in zip(costs["ours"], costs["theirs"], strict=True)]
    return [
        schedule,
        f"{options.stages}",
        f"{options.micro_batches} x {options.batch} x {options.sequence}",
        f"{options.width}",
        f"{pass_ms:.0f} ms",
        f"{median(speeds['theirs']):,.0f}",
        f"{median(speeds['ours']):,.0f}",
        spread(ratios),
        spread(cpu),
        f"{apart:.0e}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", nargs="+", default=["gpipe", "1f1b"], choices=["gpipe", "1f1b"])
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compare(options, schedule) for schedule in options.schedules]
    header = [
        "schedule",
        "stages",
        "tokens a step",
        "width",
        "a stage, forward and backward",
        "torch, tokens/s",
        "Holdfast, tokens/s",
        "Holdfast / torch",
        "CPU time, Holdfast / torch",
        "losses apart",
    ]
    show("The engine `processes`, defences off, against torch.distributed.pipelining", header, rows)


if __name__ == "__main__":
    main()
