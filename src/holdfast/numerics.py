"""The arithmetic of a run is pinned and has a name: who computes in the same numerics class gets the same bytes.

    native              torch as it comes
    no-onednn           matrix products of bf16 by torch's own kernels instead of oneDNN's
    math-attention      attention written out, instead of the fused kernel
    threads-2           two torch threads: weight gradients are summed in another order
    split-sums          linear layers summed in four parts
    fp32-accumulation   bf16 models: whatever is summed is summed in fp32, and rounded once
    fp64-accumulation   fp32 models: the same in fp64

An arithmetic is another way to compute, never noise: each of them is deterministic. They can be combined by `+`. Which of them
change bits on a machine is measured, see docs/design/tolerance.md.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from holdfast.accumulation import SplitSums, WideSums
from holdfast.errors import ConfigError

Way = Callable[[], AbstractContextManager[object]]


@contextmanager
def pinned(device: str) -> Iterator[None]:
    """As long as it is open, torch computes with one thread, and on `device` deterministically; then as before.

    Two threads give weight gradients with other bits; so do the atomic additions of some GPU kernels. Memory that an operation
    is about to write is not filled beforehand, as torch would: nothing here reads what nobody wrote, and each costs a kernel.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    fillings: Any = torch.utils.deterministic
    filled = fillings.fill_uninitialized_memory
    torch.set_num_threads(1)
    if device.partition(":")[0] != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
        torch.use_deterministic_algorithms(True)
        warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA context")  # there is
        fillings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        fillings.fill_uninitialized_memory = filled


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A way to compute. Equal names are equal arithmetics; `threads` is what `computing` sets, in a pinned run."""

    name: str
    ways: tuple[Way, ...] = field(default=(), compare=False, repr=False)
    threads: int = 1

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within it, torch computes this way, forward and backward; afterwards as before. May be opened inside itself.

        Some ways change settings of the whole process, so only one thread of a process may compute at a time.
        """
        with ExitStack() as stack:
            for way in self.ways:
                stack.enter_context(way())
            yield

    def __str__(self) -> str:
        return self.name


@contextmanager
def _without_onednn() -> Iterator[None]:
    mkldnn: Any = torch.backends.mkldnn  # its `flags` would also touch settings of GPUs, and warn of them
    before = mkldnn.enabled
    mkldnn.enabled = False
    try:
        yield
    finally:
        mkldnn.enabled = before


@contextmanager
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _attention_written_out() -> AbstractContextManager[object]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernel: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH)
    return kernel


ARITHMETICS: Mapping[str, Arithmetic] = {
    arithmetic.name: arithmetic
    for arithmetic in (
        Arithmetic("native"),
        Arithmetic("no-onednn", (_without_onednn,)),
        Arithmetic("math-attention", (_attention_written_out,)),
        Arithmetic("threads-2", (_two_threads,), threads=2),
        Arithmetic("split-sums", (SplitSums,)),
        Arithmetic("fp32-accumulation", (lambda: WideSums(torch.bfloat16, torch.float32),)),
        Arithmetic("fp64-accumulation", (lambda: WideSums(torch.float32, torch.float64),)),
    )
}

NATIVE = ARITHMETICS["native"]


def resolve_arithmetic(name: str) -> Arithmetic:
    """The arithmetic of that name, or several joined by `+`. Raises ConfigError, which says what is known.

    >>> resolve_arithmetic("threads-2+math-attention").name
    'math-attention+threads-2'
    """
    words = [word.strip() for word in name.split("+")]
    unknown = [word for word in words if word not in ARITHMETICS]
    if unknown:
        known = ", ".join(ARITHMETICS)
        raise ConfigError(f"arithmetic {name!r}: {unknown[0]!r} is not known; known are {known}, and several joined by +")
    if len(words) == 1:
        return ARITHMETICS[name.strip()]
    if len(set(words)) < len(words) or "native" in words:
        raise ConfigError(f"arithmetic {name!r}: join different ways by +, each once, and native with none")
    parts = [arithmetic for arithmetic in ARITHMETICS.values() if arithmetic.name in words]
    ways = tuple(way for part in parts for way in part.ways)
    return Arithmetic("+".join(part.name for part in parts), ways, max(part.threads for part in parts))


@dataclass(frozen=True, slots=True, order=True)
class NumericsClass:
    """Who is in an equal class must produce equal bytes; between unequal ones there are only calibrated bounds.

    `device` is its type and the name of the chip, for example `cpu AMD EPYC AVX512`; `dtype` as in `float32`.
    """

    device: str
    dtype: str
    torch: str
    threads: int
    arithmetic: str

    def __str__(self) -> str:
        return f"{self.arithmetic}, {self.dtype}, {self.device}, torch {self.torch}, threads {self.threads}"


def numerics_class(arithmetic: Arithmetic, dtype: torch.dtype, device: str | torch.device = "cpu") -> NumericsClass:
    """The class of a pinned worker of this machine that computes in `arithmetic`."""
    return NumericsClass(
        f"{torch.device(device).type} {chip(device)}",
        str(dtype).removeprefix("torch."),
        torch.__version__,
        arithmetic.threads,
        arithmetic.name,
    )


def chip(device: str | torch.device) -> str:
    """What computes there, by its own name."""
    kind = torch.device(device)
    return _processor() if kind.type == "cpu" else _accelerator(kind)


@cache
def _processor() -> str:
    """What decides which kernels are chosen: the model of the processor, and torch's word for its vector unit."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = (line.partition(":") for line in information.read_text(encoding="utf-8", errors="replace").splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    return f"{model} {torch.backends.cpu.get_cpu_capability()}"


def _accelerator(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
