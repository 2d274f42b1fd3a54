"""What each worker must hold: two stages, a second version of both between update and seal, and the tensors in flight.

    AdamW in float32         weights 4 + gradient 4 + two moments 8 = 16 bytes a parameter, 32 for primary and shadow
    between update and seal  weights 4 + two moments 8 = 12 more for each copy, 24 for both
    in flight                up to 7 tensors [B, S, D], as they travel, for each of M micro-batches
    a window of W steps      weights 4 + two moments 8 = 12 for each copy and step, and 2 tensors for each micro-batch and stage

Activations inside a stage come on top; they depend on the kernels and are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from holdfast.errors import NotEnoughMemory
from holdfast.partition.plan import Plan
from holdfast.quantise import packed_shape

BOUNDARY_TENSORS = 7
"""Boundary tensors that a worker may hold for one micro-batch."""

_LOGIT_TENSORS = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """M micro-batches of B sequences of S tokens, in `dtype`; between stages as `wire` (None: as computed)."""

    micro_batches: int = 4
    micro_batch_size: int = 4
    sequence_length: int = 64
    dtype: torch.dtype = torch.float32
    wire: torch.dtype | None = None

    def boundary_bytes(self, width: int) -> int:
        """Of one tensor between two stages, as it travels."""
        wire = self.wire or self.dtype
        return math.prod(packed_shape((self.micro_batch_size, self.sequence_length, width), wire)) * wire.itemsize


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """Bytes that the worker of stage `stage` needs; `shadow` is the stage that it holds a second copy of."""

    stage: int
    shadow: int | None
    state_bytes: int
    pending_bytes: int
    boundary_bytes: int
    window_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.state_bytes + self.pending_bytes + self.boundary_bytes + self.window_bytes


def memory_per_worker(plan: Plan, batch: Batch, *, shadows: bool = True, window: int = 0) -> tuple[WorkerMemory, ...]:
    """One entry a stage, each stage on its own worker; the worker of stage i shadows stage i-1 (never stage 0).

    `window` is how many sealed steps workers keep so that spot checks can go back to them.
    """
    held = [[stage, stage - 1] if shadows and stage >= 2 else [stage] for stage in range(plan.stages)]
    return tuple(_need(plan, batch, stage, held[stage], window) for stage in range(plan.stages))


def _need(plan: Plan, batch: Batch, stage: int, held: Sequence[int], window: int) -> WorkerMemory:
    item = batch.dtype.itemsize
    all_parameters = sum(plan.parameter_counts[index] for index in held)
    trained = sum(math.prod(plan.shapes[name]) for index in held for name in plan.trainable_of(index))
    tokens = batch.micro_batch_size * batch.sequence_length
    one = batch.boundary_bytes(plan.width)
    boundary = BOUNDARY_TENSORS * batch.micro_batches * one
    if batch.wire not in (None, batch.dtype):  # each seat's graph keeps its input unpacked
        boundary += len(held) * batch.micro_batches * tokens * plan.width * item
    state = item * (all_parameters + 3 * trained)
    if stage == plan.stages - 1:
        boundary += _LOGIT_TENSORS * tokens * plan.vocabulary * item
        if plan.tied is not None and stage > 0:
            state += 2 * item * math.prod(plan.shapes[plan.tied[1]])
    kept = 3 * item * trained + 2 * len(held) * batch.micro_batches * one
    shadow = held[1] if len(held) > 1 else None
    return WorkerMemory(stage, shadow, state, 3 * item * trained, boundary, window * kept)


def check_memory(needs: Sequence[WorkerMemory], *, worker_bytes: int | None = None, machine_bytes: int | None = None) -> None:
    """Raise NotEnoughMemory where a worker needs more than `worker_bytes`, or all together more than `machine_bytes`."""
    if worker_bytes is not None:
        worst = max(needs, key=lambda need: need.total_bytes)
        if worst.total_bytes > worker_bytes:
            raise NotEnoughMemory(
                f"the worker of stage {worst.stage} needs {_readable(worst.total_bytes)}, but a worker has "
                f"{_readable(worker_bytes)}; use more stages, smaller or fewer micro-batches, bfloat16, or a smaller model"
            )
    total = sum(need.total_bytes for need in needs)
    if machine_bytes is not None and total > machine_bytes:
        raise NotEnoughMemory(
            f"the {len(needs)} workers of this plan need {_readable(total)} together, but this machine has "
            f"{_readable(machine_bytes)} free; use a smaller model or batch, bfloat16, or more machines"
        )


def available_memory() -> int | None:
    """Bytes that this machine could give to new processes now (a container's limit counts), or None where it does not say."""
    found = [amount for amount in (_meminfo(), _cgroup()) if amount is not None]
    return min(found, default=None)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup() -> int | None:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return max(int(limit) - int(used), 0) if limit.isdigit() and used.isdigit() else None


def _readable(amount: int) -> str:
    """
    >>> _readable(1536 * 1024)
    '1.5 MiB'
    """
    size = float(amount)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{amount} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
