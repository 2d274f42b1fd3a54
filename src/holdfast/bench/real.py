"""What a defence costs on this machine: operations, processor time, bytes and memory, every way of training in turn.

One core computes all members of a cluster in memory, one after another, so there the work itself shows and no bubble hides
any. The engine `processes` has a process a worker on however many cores there are, beside torch's own pipelining. Repeats take
turns, so that all ways see the same machine; ratios are of the same repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from holdfast.bench.described import OFF, fair_secret
from holdfast.bench.operations import Operations
from holdfast.bench.process_pipeline import ProcessPipeline, take
from holdfast.bench.torch_pipeline import TorchPipeline
from holdfast.cast import Troupe
from holdfast.cluster import Cluster, Deployment
from holdfast.config import RunConfig, Schedule, resolve
from holdfast.engine import MemoryEngine
from holdfast.job import memory_needs
from holdfast.settings import defence_tables, split_attack
from holdfast.sweep.jobs import job_of

TORCH = "torch.distributed.pipelining"
WARM_UP = 1
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Workload:
    """The model and the work of one step. `steps` are measured at a time, `repeats` times."""

    stages: int = 6
    width: int = 256
    sequence: int = 128
    batch: int = 4
    micro_batches: int = 4
    steps: int = 5
    repeats: int = 2

    @property
    def total(self) -> int:
        return WARM_UP + self.steps * self.repeats

    def blocks(self) -> list[range]:
        """The steps of each repeat."""
        first = [WARM_UP + i * self.steps for i in range(self.repeats)]
        return [range(start, start + self.steps) for start in first]


@dataclass(frozen=True)
class RealCost:
    """One way to train. All is per step; `cpu_s` and `wall_s` have an entry a repeat (None: not taken).

    `operations` are floating-point operations of all members. `memory_bytes` is what an untrusted worker must hold at most, by
    the plan; `process_bytes` the most that a worker's process had, libraries included.
    """

    way: str
    engine: str
    schedule: str
    attack: str
    cpu_s: list[float]
    wall_s: list[float]
    operations: float | None = None
    bytes_sent: float | None = None
    memory_bytes: int | None = None
    process_bytes: int | None = None
    tokens: int = 0
    loss: float = 0.0


class Pipeline(Protocol):
    """Whatever takes steps on demand and says what the last loss and the processor time were."""

    def run(self, numbers: Sequence[int], /) -> tuple[float, float]: ...

    def close(self) -> None: ...


def config_of(
    work: Workload, defence: str, *, engine: str, schedule: Schedule, attack: str = "", tied: bool = True
) -> RunConfig:
    """The run's configuration. Draws of spot checks are as many in each repeat as q says, or as near as they can be."""
    model = f"gpt2:layers={work.stages},width={work.width},heads=4" + ("" if tied else ",tied=false")
    tables: dict[str, Any] = {
        "model": {"name": model},
        "data": {"name": "synthetic:order=1,symbols=32,tokens=200000", "sequence_length": work.sequence, "vocabulary": 512},
        "pipeline": {
            "stages": work.stages,
            "micro_batches": work.micro_batches,
            "micro_batch_size": work.batch,
            "schedule": schedule,
            "engine": engine,
        },
        "training": {"steps": work.total},
    }
    tables |= defence_tables(defence)
    if attack:
        tables["attack"] = (split_attack(attack),)
    config = resolve(tables)
    if config.spot_checked and config.defence.check_seed is None:
        tables["defence"]["check_seed"] = fair_secret(work.stages, config.check_steps, *work.blocks())
        config = resolve(tables)
    return config


def in_memory(work: Workload, ways: Sequence[tuple[str, str]], tell: Tell = lambda _line: None) -> list[RealCost]:
    """Each way is a defence and an attack (or none). Operations are counted in the first repeat, in which no time is taken."""
    clusters = {way: _MemoryPipeline(config_of(work, way[0], engine="memory", schedule="1f1b", attack=way[1])) for way in ways}
    cpu: Mapping[tuple[str, str], list[float]] = {way: [] for way in ways}
    operations: dict[tuple[str, str], float] = {}
    sent: dict[tuple[str, str], int] = {}
    loss: dict[tuple[str, str], float] = {}
    for way, pipeline in clusters.items():
        pipeline.run(range(WARM_UP))
        before, counter = pipeline.bytes_sent, Operations()
        with counter:
            loss[way], _ = pipeline.run(work.blocks()[0])
        operations[way], sent[way] = counter.total / work.steps, pipeline.bytes_sent - before
        tell(f"in memory, {' under '.join(filter(None, way))}: {operations[way] / 1e9:.1f} G operations a step")
    for block in work.blocks()[1:]:
        spent = dict.fromkeys(ways, 0.0)
        for number in block:
            for way, pipeline in clusters.items():
                spent[way] += pipeline.run([number])[1]
        for way in ways:
            cpu[way].append(spent[way] / work.steps)
    return [
        RealCost(
            way[0],
            "memory",
            "1f1b",
            way[1],
            cpu[way],
            [],
            operations[way],
            sent[way] / work.steps,
            clusters[way].memory_bytes,
            tokens=clusters[way].tokens,
            loss=loss[way],
        )
        for way in ways
    ]


def in_processes(
    work: Workload, schedule: Schedule, defences: Sequence[str], tell: Tell = lambda _line: None
) -> list[RealCost]:
    """Torch's pipelining and the engine `processes` with each defence, in turns. Embeddings are untied, as torch's split is."""
    configs = {name: config_of(work, name, engine="processes", schedule=schedule, tied=False) for name in defences}
    pipelines: dict[str, Pipeline] = {}
    cpu: dict[str, list[float]] = {name: [] for name in (TORCH, *defences)}
    wall: dict[str, list[float]] = {name: [] for name in (TORCH, *defences)}
    loss: dict[str, float] = {}
    bytes_before: dict[str, int] = {}
    tokens = work.micro_batches * work.batch * work.sequence
    try:
        pipelines[TORCH] = TorchPipeline(configs[OFF])
        for name, config in configs.items():
            pipelines[name] = ProcessPipeline(job_of(config))
        for name, pipeline in pipelines.items():
            pipeline.run(range(WARM_UP))
            bytes_before[name] = getattr(pipeline, "bytes_sent", 0)
        for count, block in enumerate(work.blocks()):
            turns = list(pipelines.items())
            for name, pipeline in turns if count % 2 == 0 else turns[::-1]:
                began = time.perf_counter()
                loss[name], seconds = pipeline.run(block)
                wall[name].append((time.perf_counter() - began) / work.steps)
                cpu[name].append(seconds / work.steps)
            tell(f"processes, {schedule}: " + ", ".join(f"{name} {wall[name][-1]:.2f} s" for name in pipelines))
        costs = []
        for name, pipeline in pipelines.items():
            more = _of_processes(pipeline, configs.get(name, configs[OFF]), work, bytes_before[name])
            where = "gloo" if name == TORCH else "processes"
            costs.append(RealCost(name, where, schedule, "", cpu[name], wall[name], tokens=tokens, loss=loss[name], **more))
        return costs
    finally:
        for pipeline in pipelines.values():
            pipeline.close()


def _of_processes(pipeline: Pipeline, config: RunConfig, work: Workload, sent: int) -> dict[str, Any]:
    """What is known besides times; of torch's processes nothing is."""
    if not isinstance(pipeline, ProcessPipeline):
        return {}
    return {
        "bytes_sent": (pipeline.bytes_sent - sent) / (work.steps * work.repeats),
        "memory_bytes": _memory(config),
        "process_bytes": pipeline.worker_bytes,
    }


class _MemoryPipeline:
    """A cluster in this process."""

    def __init__(self, config: RunConfig) -> None:
        job = job_of(config)
        troupe = Troupe(config) if config.attack else None
        self._loss = 0.0
        self._cluster = Cluster(Deployment("overhead"), job, self._observe, MemoryEngine(config, troupe))
        self._cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
        self.memory_bytes = _memory(config)
        self.tokens = job.batches.tokens_per_step

    def run(self, numbers: Sequence[int]) -> tuple[float, float]:
        """As `Pipeline`; every check that was drawn is waited for."""
        began = time.process_time()
        take(self._cluster, numbers)
        return self._loss, time.process_time() - began

    @property
    def bytes_sent(self) -> int:
        return self._cluster.launcher.bytes_sent

    def close(self) -> None:
        pass

    def _observe(self, event: Any, _seconds: float) -> None:
        self._loss = getattr(event, "loss", self._loss)


def _memory(config: RunConfig) -> int:
    """What an untrusted worker must hold at most, by the plan."""
    untrusted = range(1, config.pipeline.stages - 1)
    return max(need.total_bytes for need in memory_needs(job_of(config)) if need.stage in untrusted)
