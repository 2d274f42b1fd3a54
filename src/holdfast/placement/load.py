"""What one step of a job asks of its machines: seconds and bytes by layer."""

from __future__ import annotations

from holdfast.job import Job
from holdfast.partition import plan_from
from holdfast.partition.memory import LayerSizes
from holdfast.placement.place import Held, Load
from holdfast.worker import UPDATE_COST


def load_of(job: Job, unit_s: float | None = None) -> Load:
    """One step of `job`; `unit_s` are the seconds of a forward pass of average cost at speed 1 (None: as described)."""
    config, costs = job.config, job.costs
    unit_s = config.cluster.seconds_per_forward if unit_s is None else unit_s
    mean = (sum(costs.layers) + costs.before + costs.after) / job.plan.stages or 1.0
    described = config.cluster
    link = described.latency_s, described.bandwidth_bytes_per_s
    return Load(
        tuple(unit_s * cost / mean for cost in costs.layers),
        unit_s * costs.before / mean,
        unit_s * costs.after / mean,
        unit_s * UPDATE_COST,
        config.pipeline.micro_batches,
        described.tensor_bytes or job.batch.boundary_bytes(job.plan.width),
        config.pipeline.schedule,
        checked=config.defence_name != "none",
        shadowed=config.shadowed,
        jump=config.defence_name != "duplicate-only",
        memory=Needs(job),
        link=lambda _sender, _recipient: link,
    )


def seconds_of_a_pass(job: Job, speed: float) -> float:
    """A forward pass of average cost on a machine of `speed` (1e9 floating-point operations a second): a first guess."""
    costs, pipeline = job.costs, job.config.pipeline
    total = sum(costs.layers) + costs.before + costs.after
    if pipeline.costs == "measured":  # seconds of one sequence on this machine
        return total * pipeline.micro_batch_size / job.plan.stages
    return total * pipeline.micro_batch_size * job.config.data.sequence_length / job.plan.stages / (speed * 1e9)


class Needs:
    """Bytes by held ranges of layers, each computed once."""

    def __init__(self, job: Job) -> None:
        count = len(job.costs.layers)
        fine = plan_from(job.source.config, [(i, i + 1) for i in range(count)], [1.0] * count, job.lora)
        self._sizes = LayerSizes.of(fine)
        self._batch = job.batch
        self._window = job.config.window
        self._known: dict[Held, int] = {}

    def __call__(self, held: Held) -> int:
        if held not in self._known:
            self._known[held] = self._sizes.worker_bytes(self._batch, held, self._window)
        return self._known[held]
