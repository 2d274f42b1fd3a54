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
from holdfast.partition.plan import Plan, Range
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


@dataclass(frozen=True)
class LayerSizes:
    """Parameters of each layer, and how many of them are trained; what stands before and behind counts with the outer layers.

    `width` and `vocabulary` are the model's, `head` the parameters of a tied head (0: untied).
    """

    parameters: tuple[int, ...]
    trained: tuple[int, ...]
    width: int
    vocabulary: int
    head: int = 0

    @classmethod
    def of(cls, plan: Plan) -> LayerSizes:
        """From a plan with one layer a stage."""
        trained = tuple(sum(math.prod(plan.shapes[name]) for name in plan.trainable_of(i)) for i in range(plan.stages))
        head = math.prod(plan.shapes[plan.tied[1]]) if plan.tied is not None else 0
        return cls(plan.parameter_counts, trained, plan.width, plan.vocabulary, head)

    def worker_bytes(self, batch: Batch, held: Sequence[Range], window: int = 0) -> int:
        """What a worker needs that holds these ranges of layers, each as primary or shadow."""
        layers = [layer for lo, hi in held for layer in range(lo, hi)]
        amounts = sum(self.parameters[i] for i in layers), sum(self.trained[i] for i in layers)
        last = any(hi == len(self.parameters) for _, hi in held)
        head = self.head if last and len(self.parameters) > 1 else 0
        return _need(batch, self.width, _Held(*amounts, len(held), self.vocabulary if last else 0, head), window).total_bytes


def memory_per_worker(plan: Plan, batch: Batch, *, shadows: bool = True, window: int = 0) -> tuple[WorkerMemory, ...]:
    """One entry a stage, each stage on its own worker; the worker of stage i shadows stage i-1 (never stage 0).

    `window` is how many sealed steps workers keep so that spot checks can go back to them.
    """
    needs = []
    for stage in range(plan.stages):
        shadow = stage - 1 if shadows and stage >= 2 else None
        seats = [stage] if shadow is None else [stage, shadow]
        parameters = sum(plan.parameter_counts[index] for index in seats)
        trained = sum(math.prod(plan.shapes[name]) for index in seats for name in plan.trainable_of(index))
        last = stage == plan.stages - 1
        head = math.prod(plan.shapes[plan.tied[1]]) if last and plan.tied is not None and stage > 0 else 0
        held = _Held(parameters, trained, len(seats), plan.vocabulary if last else 0, head)
        needs.append(_need(batch, plan.width, held, window, stage, shadow))
    return tuple(needs)


@dataclass(frozen=True, slots=True)
class _Held:
    """All seats of one worker; `vocabulary` and `head` are 0 where it does not have the last stage, or no tied head."""

    parameters: int
    trained: int
    seats: int
    vocabulary: int
    head: int


def _need(batch: Batch, width: int, held: _Held, window: int, stage: int = 0, shadow: int | None = None) -> WorkerMemory:
    item = batch.dtype.itemsize
    tokens = batch.micro_batch_size * batch.sequence_length
    one = batch.boundary_bytes(width)
    boundary = BOUNDARY_TENSORS * batch.micro_batches * one
    if batch.wire not in (None, batch.dtype):  # each seat's graph keeps its input unpacked
        boundary += held.seats * batch.micro_batches * tokens * width * item
    boundary += _LOGIT_TENSORS * tokens * held.vocabulary * item
    state = item * (held.parameters + 3 * held.trained + 2 * held.head)
    kept = 3 * item * held.trained + 2 * held.seats * batch.micro_batches * one
    return WorkerMemory(stage, shadow, state, 3 * item * held.trained, boundary, window * kept)


def check_memory(needs: Sequence[WorkerMemory], *, worker_bytes: int | None = None, machine_bytes: int | None = None) -> None:
    """Raise NotEnoughMemory where a worker needs more than `worker_bytes`, or all together more than `machine_bytes`."""
    if worker_bytes is not None:
        worst = max(needs, key=lambda need: need.total_bytes)
        if worst.total_bytes > worker_bytes:
            raise NotEnoughMemory(
                f"the worker of stage {worst.stage} needs {readable(worst.total_bytes)}, but a worker has "
                f"{readable(worker_bytes)}; use more stages, smaller or fewer micro-batches, bfloat16, or a smaller model"
            )
    total = sum(need.total_bytes for need in needs)
    if machine_bytes is not None and total > machine_bytes:
        raise NotEnoughMemory(
            f"the {len(needs)} workers of this plan need {readable(total)} together, but this machine has "
            f"{readable(machine_bytes)} free; use a smaller model or batch, bfloat16, or more machines"
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


def readable(amount: int) -> str:
    """
    >>> readable(1536 * 1024)
    '1.5 MiB'
    """
    size = float(amount)
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{amount} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
