"""The arithmetic of a run is pinned: one torch thread, and deterministic algorithms where a device has others.

Two threads give weight gradients with other bits; so do the atomic additions of some GPU kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def pinned(device: str) -> Iterator[None]:
    """As long as it is open, torch computes with one thread, and on `device` deterministically; then as before."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    if device.partition(":")[0] != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
