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
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from measure import job_of, show, spread
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from holdfast.cluster import Cluster, Deployment
from holdfast.crew import Staging, processes
from holdfast.event import Event, StepSealed
from holdfast.execution import cross_entropy
from holdfast.job import Job
from holdfast.optimizer import learning_rate, parameter_groups
from holdfast.partition import StageModule

SPAWN = multiprocessing.get_context("spawn")
TORCH_SCHEDULES: dict[str, Any] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
PATIENCE = timedelta(seconds=300)


# -- torch ---------------------------------------------------------------------------------------------------------------


def torch_stage(rank: int, port: int, settings: Sequence[str], pipe: Connection) -> None:
    """The process of one stage: steps through each range of numbers that it is sent, and answers with loss and CPU seconds."""
    torch.set_num_threads(1)
    job = job_of(*settings)
    config, stages = job.config, job.plan.stages
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=stages, timeout=PATIENCE)
    module = StageModule(job.source.config, job.plan, rank)
    module.load_weights(job.initial_state(rank).weights)
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(module, options), lr=1.0, betas=(options.beta1, options.beta2), eps=options.epsilon
    )
    stage = PipelineStage(module, rank, stages, torch.device("cpu"))
    schedule = TORCH_SCHEDULES[config.pipeline.schedule](stage, config.pipeline.micro_batches, cross_entropy)
    while (numbers := pipe.recv()) is not None:
        began, loss = time.process_time(), 0.0
        for number in numbers:
            loss = torch_step(job, module, optimizer, schedule, number)
        pipe.send((loss, time.process_time() - began))
    dist.destroy_process_group()


def torch_step(job: Job, module: StageModule, optimizer: torch.optim.Optimizer, schedule: Any, number: int) -> float:
    """One optimizer step; the loss, which the last stage alone knows."""
    tokens = job.batches.batch(number).flatten(0, 1)
    losses: list[torch.Tensor] = []
    if module.first:
        schedule.step(tokens[:, :-1].contiguous(), return_outputs=False)
    elif module.last:
        schedule.step(target=tokens[:, 1:].contiguous(), losses=losses, return_outputs=False)
    else:
        schedule.step(return_outputs=False)
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    square = sum((torch.linalg.vector_norm(gradient) ** 2 for gradient in gradients), torch.zeros(()))
    dist.all_reduce(square)
    scale = torch.clamp(job.config.optimizer.clip_norm / (square.sqrt() + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(job.config.optimizer, number, job.config.training.steps)
    optimizer.step()
    optimizer.zero_grad()
    return sum(loss.item() for loss in losses) / max(1, len(losses))


class Torch:
    """One process a stage, idle between two calls of `run`."""

    def __init__(self, settings: Sequence[str], stages: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = int(server.getsockname()[1])
        self._pipes = []
        for rank in range(stages):
            here, there = SPAWN.Pipe()
            SPAWN.Process(target=torch_stage, args=(rank, port, settings, there), daemon=True).start()
            self._pipes.append(here)

    def run(self, numbers: range) -> tuple[float, float]:
        """The last loss, and the CPU seconds of all processes."""
        for pipe in self._pipes:
            pipe.send(numbers)
        answers = [pipe.recv() for pipe in self._pipes]
        return answers[-1][0], sum(seconds for _, seconds in answers)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)


# -- Holdfast ------------------------------------------------------------------------------------------------------------


class Holdfast:
    """The engine `processes` with every seat filled; this process is the initiator's."""

    def __init__(self, job: Job) -> None:
        self._machines = processes(Staging(job.config))
        self._cluster = Cluster(Deployment("benchmark"), job, self._observe, self._machines)
        self._cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
        children = self._machines._crew.children  # type: ignore[attr-defined]
        self._pids = [children.pid(name) for name in children.alive()]
        self._loss = 0.0

    def _observe(self, event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed):
            self._loss = event.loss

    def run(self, numbers: range) -> tuple[float, float]:
        """The last loss, and the CPU seconds of all processes."""
        began = self._cpu_s()
        for number in numbers:
            broken = self._cluster.run_step(number)
            if broken is not None:
                raise RuntimeError(broken)
        return self._loss, self._cpu_s() - began

    def _cpu_s(self) -> float:
        return time.process_time() + sum(cpu_s(pid) for pid in self._pids)

    def computed_s(self) -> float:
        """Seconds that all stages have computed, by the clock on the wall."""
        kinds = self._cluster.launcher.seconds_by_kind
        return sum(kinds.values())

    def close(self) -> None:
        self._machines.close()


def cpu_s(pid: int) -> float:
    """Seconds that a process has computed, all its threads together."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
    theirs, ours = Torch(settings, options.stages), Holdfast(job)
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
    pass_ms = 1e3 * ours.computed_s() / passes
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
    parser.add_argument("--schedules", nargs="+", default=["gpipe", "1f1b"], choices=list(TORCH_SCHEDULES))
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
