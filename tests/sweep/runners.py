"""Runners for tests, in a module of their own so that a spawned process finds them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.sweep import Cell


def pretend(cell: Cell) -> dict[str, Any]:
    """No run at all."""
    return {
        "validation_perplexity": 100.0 + cell.config.training.seed,
        "process": os.getpid(),
        "threads": os.environ["OMP_NUM_THREADS"],
    }


def stumble(cell: Cell) -> dict[str, Any]:
    """Seed 1 is refused, seed 2 breaks, seed 3 takes its process along."""
    seed = cell.config.training.seed
    if seed == 1:
        raise DataError("no text for seed 1")
    if seed == 2:
        raise ZeroDivisionError("a defect")
    if seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return pretend(cell)


def linger(cell: Cell) -> dict[str, Any]:
    """Says which process it is, in the file that the cell calls its text, and does not come back."""
    path = Path(cell.config.data.name)
    path.write_text(str(os.getpid()))
    while True:
        time.sleep(1)
