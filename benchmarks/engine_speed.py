"""Whether the engine is free: tokens a second with defences off against a plain single-process loop, interleaved, same bits.

    python benchmarks/engine_speed.py                   widths 128 and 256, K = 3 and 6

Both train the same model on the same micro-batches with the same AdamW and clipping, on one thread; the plain loop is what
anyone would write. Repeats are interleaved, so that both see the same machine; a figure is the median of the ratios of
neighbouring repeats. The digests of the weights must be equal, or the comparison means nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from measure import job_of, show, spread, start

from holdfast.cluster import Cluster
from holdfast.digest import weights_digest
from holdfast.execution import cross_entropy
from holdfast.job import Job
from holdfast.optimizer import learning_rate, parameter_groups
from holdfast.partition import whole_model


def plain_loop(job: Job) -> tuple[torch.nn.Module, Callable[[int], None]]:
    """The whole model, and a function that takes one optimizer step on it."""
    weights = {name: t for i in range(job.plan.stages) for name, t in job.initial_state(i).weights.items()}
    model = whole_model(job.source.config, weights)
    options = job.config.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(model, options), lr=1.0, betas=(options.beta1, options.beta2), eps=options.epsilon
    )

    def step(number: int) -> None:
        batch = job.batches.batch(number)
        for tokens in batch:
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            (cross_entropy(logits, tokens[:, 1:]) / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, number, job.config.training.steps)
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def digest_of(cluster: Cluster) -> str:
    return weights_digest({name: t for state in cluster.collect().values() for name, t in state.weights.items()})


def compare(width: int, stages: int, steps: int, repeats: int) -> list[str]:
    """Interleave `repeats` runs of `steps` steps of both, after one step of warm-up."""
    job = job_of(
        f"model.name=gpt2:layers=6,width={width},heads=4",
        f"pipeline.stages={stages}",
        "pipeline.micro_batch_size=4",
        "defence.name=none",
        f"training.steps={steps * repeats + 1}",
        "data.sequence_length=128",
    )
    model, plain = plain_loop(job)
    cluster = start(job)
    plain(0)
    cluster.run_step(0)
    ratios, speeds = [], []
    for repeat in range(repeats):
        numbers = range(1 + repeat * steps, 1 + (repeat + 1) * steps)
        begun = time.perf_counter()
        for number in numbers:
            plain(number)
        between = time.perf_counter()
        for number in numbers:
            cluster.run_step(number)
        ended = time.perf_counter()
        ratios.append((between - begun) / (ended - between))
        speeds.append(steps * job.batches.tokens_per_step / (ended - between))
    same = digest_of(cluster) == weights_digest(dict(model.named_parameters()))
    return [str(width), str(stages), spread(ratios), f"{sorted(speeds)[len(speeds) // 2]:,.0f}", "equal" if same else "DIFFER"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--stages", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compare(width, stages, options.steps, options.repeats) for width in options.widths for stages in options.stages]
    header = ["width", "stages", "engine / plain (tokens a second)", "tokens a second", "weights"]
    show("Engine with defences off against a plain loop", header, rows)


if __name__ == "__main__":
    main()
