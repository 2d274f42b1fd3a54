"""Whether the engine is free: tokens a second with defences off against a plain single-process loop, interleaved, same bits.

    python benchmarks/engine_speed.py                   widths 128 and 256, K = 3 and 6
    python benchmarks/engine_speed.py --device cuda --dtype bfloat16 --layers 12 --widths 512 768 --stages 6 \\
        --defences none duplicate spot-check            what a defence costs on a GPU that computes all members in turn

All train the same model on the same micro-batches with the same AdamW and clipping, on one thread; the plain loop is what
anyone would write. Repeats are interleaved, so that all see the same machine; a figure is the median of the ratios of
neighbouring repeats. The digests of the weights must be equal, or the comparison means nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from measure import job_of, show, spread, start

from holdfast.cluster import Cluster
from holdfast.digest import weights_digest
from holdfast.execution import cross_entropy
from holdfast.job import Job
from holdfast.numerics import pinned
from holdfast.optimizer import learning_rate, parameter_groups
from holdfast.partition import whole_model

PLAIN = "plain"


def plain_loop(job: Job) -> tuple[torch.nn.Module, Callable[[int], None]]:
    """The whole model, and a function that takes one optimizer step on it."""
    weights = {name: t for i in range(job.plan.stages) for name, t in job.initial_state(i).weights.items()}
    model = whole_model(job.source.config, weights).to(job.config.model.device)
    options = job.config.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(model, options),
        lr=1.0,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        foreach=False,  # as the stages do, whose bits it must have
    )

    def step(number: int) -> None:
        batch = job.batches.batch(number).to(job.config.model.device)
        for tokens in batch:
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            (cross_entropy(logits, tokens[:, 1:]) / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm, foreach=False)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, number, job.config.training.steps)
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def digest_of(cluster: Cluster) -> str:
    return weights_digest({name: t for state in cluster.collect().values() for name, t in state.weights.items()})


def compare(options: argparse.Namespace, width: int, stages: int) -> list[list[str]]:
    """Interleave `repeats` runs of `steps` steps of all, after one step of warm-up: a row for each defence."""
    settings = [
        f"model.name=gpt2:layers={options.layers},width={width},heads=4",
        f"model.device={options.device}",
        f"model.dtype={options.dtype}",
        f"pipeline.stages={stages}",
        f"pipeline.micro_batch_size={options.batch}",
        f"training.steps={options.steps * options.repeats + 1}",
        f"data.sequence_length={options.sequence}",
    ]
    jobs = {defence: job_of(*settings, f"defence.name={defence}") for defence in options.defences}
    model, plain = plain_loop(jobs[options.defences[0]])
    clusters = {defence: start(job) for defence, job in jobs.items()}
    ways: dict[str, Callable[[int], object]] = {PLAIN: plain} | {name: each.run_step for name, each in clusters.items()}
    for way in ways.values():
        way(0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats):
        for name, way in ways.items():
            settle(options.device)
            begun = time.perf_counter()
            for number in range(1 + repeat * options.steps, 1 + (repeat + 1) * options.steps):
                way(number)
            settle(options.device)
            seconds[name].append(time.perf_counter() - begun)
    wanted = weights_digest(dict(model.named_parameters()))
    tokens = options.steps * jobs[options.defences[0]].batches.tokens_per_step
    return [
        [
            str(width),
            str(stages),
            name,
            spread([one / other for one, other in zip(seconds[PLAIN], seconds[name], strict=True)]),
            f"{tokens / statistics.median(seconds[name]):,.0f}",
            "equal" if digest_of(cluster) == wanted else "DIFFER",
        ]
        for name, cluster in clusters.items()
    ]


def settle(device: str) -> None:
    """What was asked of a GPU is done when this returns."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--stages", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4, help="sequences of a micro-batch")
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--defences", nargs="+", default=["none"], choices=["none", "duplicate", "spot-check"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    with pinned(options.device):
        sizes = itertools.product(options.widths, options.stages)
        rows = [row for width, stages in sizes for row in compare(options, width, stages)]
        header = ["width", "stages", "defence", "engine / plain (tokens a second)", "tokens a second", "weights"]
        show(f"Engine against a plain loop, {options.device}, {options.dtype}", header, rows)


if __name__ == "__main__":
    main()
