"""Settings that have a name: the demo's four runs, about the smallest in which an attack hurts and a defence holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

DEMO: Mapping[str, Mapping[str, Any]] = {
    "model": {"name": "gpt2:layers=6,width=64,heads=4"},
    "data": {"name": "embedded", "sequence_length": 64, "vocabulary": 512},
    "pipeline": {"stages": 6, "micro_batches": 4, "micro_batch_size": 4, "schedule": "1f1b"},
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 10, "schedule": "cosine", "final_ratio": 0.1, "clip_norm": 1.0},
    "training": {"steps": 150, "seed": 0},
}
"""GPT-2 with 6 layers in 6 stages, 150 steps of 4x(4x64) tokens of Python's own documentation."""

DEMO_ATTACK: Mapping[str, Any] = {"spec": "sign-flip", "rate": 0.7}

DEMO_RUNS: Mapping[str, Mapping[str, Any]] = {
    "clean": {"defence": {"name": "none"}},
    "attacked": {"defence": {"name": "none"}, "attack": (DEMO_ATTACK,)},
    "skip": {"defence": {"name": "duplicate", "on_alert": "skip"}, "attack": (DEMO_ATTACK,)},
    "replace": {"defence": {"name": "duplicate", "on_alert": "replace"}, "attack": (DEMO_ATTACK,)},
}


def demo_tables(run: str, out: Path, steps: int | None = None, seed: int = 0) -> dict[str, Any]:
    """The tables of one of DEMO_RUNS, with its own directory below `out`."""
    tables: dict[str, Any] = {**{name: dict(table) for name, table in DEMO.items()}, **DEMO_RUNS[run]}
    tables["training"] = {**tables["training"], "seed": seed, **({} if steps is None else {"steps": steps})}
    tables["output"] = {"dir": str(out / run)}
    return tables


def default_out(root: Path | None = None) -> str:
    """A fresh directory name `runs/YYYYMMDD-HHMMSS`, numbered where that one is taken."""
    stem = (root or Path("runs")) / datetime.now().strftime("%Y%m%d-%H%M%S")
    taken = (number for number in range(1, 10_000) if not os.path.lexists(f"{stem}-{number}"))
    return str(stem) if not os.path.lexists(stem) else f"{stem}-{next(taken)}"
