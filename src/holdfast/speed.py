"""How fast a machine is: the one number by which stages are placed, measured where the worker will compute."""

from __future__ import annotations

import statistics
import time

import torch

WIDTH = 512
REPEATS = 7


def measure_speed(device: str) -> float:
    """Floating-point operations a second, in units of 1e9, of a feed-forward block with one thread: the median of several.

    It says which of two machines is faster, not how fast either will be in a model.
    """
    block = torch.randn(WIDTH, WIDTH, device=device)
    rows = torch.randn(4 * WIDTH, WIDTH, device=device)
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        torch.nn.functional.gelu(rows @ block).sum().item()
        times.append(time.perf_counter() - began)
    return 2 * rows.numel() * WIDTH / statistics.median(times) / 1e9
