"""The same training by `torch.distributed.pipelining` over gloo: one process a stage, nothing secured, nothing checked.

It cuts the same model at the same layers, sees the same micro-batches and takes the same AdamW steps with clipping, one torch
thread a process, so that speed and cost can be held against those of Holdfast's engines in the same run.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch

from holdfast.config import RunConfig
from holdfast.errors import SetupError
from holdfast.execution import cross_entropy
from holdfast.job import Job, prepare
from holdfast.optimizer import learning_rate, parameter_groups
from holdfast.partition import StageModule

SPAWN = multiprocessing.get_context("spawn")
PATIENCE = timedelta(seconds=300)


def require_pipelining() -> Mapping[str, Any]:
    """Torch's schedules by our names; raises SetupError where this torch was built without them."""
    try:
        from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe
    except ImportError as error:
        raise SetupError(
            f"this torch has no torch.distributed.pipelining to compare with ({error}); measure the other parts"
        ) from None
    return {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class TorchPipeline:
    """One process a stage, idle between two calls of `run`. `config` names model, data and schedule; its defence is ignored."""

    def __init__(self, config: RunConfig) -> None:
        require_pipelining()
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = int(server.getsockname()[1])
        self._pipes: list[Connection] = []
        self._processes = []
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        for rank in range(config.pipeline.stages):
            here, there = SPAWN.Pipe()
            process = SPAWN.Process(target=_serve, args=(rank, port, config.model_dump_json(), there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, numbers: Sequence[int]) -> tuple[float, float]:
        """Take the steps of these numbers: the loss of the last one, and the CPU seconds of all processes."""
        for pipe in self._pipes:
            pipe.send(list(numbers))
        answers = [pipe.recv() for pipe in self._pipes]
        return answers[-1][0], sum(seconds for _, seconds in answers)

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(timeout=30)
            if process.is_alive():
                process.terminate()


def _serve(rank: int, port: int, config_json: str, pipe: Connection) -> None:
    """The process of one stage: steps through each list of numbers that it is sent, and answers with loss and CPU seconds."""
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage

    torch.set_num_threads(1)
    config = RunConfig.model_validate_json(config_json)
    job, stages, options = prepare(config), config.pipeline.stages, config.optimizer
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=stages, timeout=PATIENCE)
    module = StageModule(job.source.config, job.plan, rank)
    module.load_weights(job.initial_state(rank).weights)
    optimizer = torch.optim.AdamW(
        parameter_groups(module, options), lr=1.0, betas=(options.beta1, options.beta2), eps=options.epsilon
    )
    stage = PipelineStage(module, rank, stages, torch.device("cpu"))
    schedule = require_pipelining()[config.pipeline.schedule](stage, config.pipeline.micro_batches, cross_entropy)
    while (numbers := pipe.recv()) is not None:
        began, loss = time.process_time(), 0.0
        for number in numbers:
            loss = _step(job, module, optimizer, schedule, number)
        pipe.send((loss, time.process_time() - began))
    dist.destroy_process_group()


def _step(job: Job, module: StageModule, optimizer: torch.optim.Optimizer, schedule: Any, number: int) -> float:
    """One optimizer step; the loss, which the last stage alone knows."""
    import torch.distributed as dist

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
