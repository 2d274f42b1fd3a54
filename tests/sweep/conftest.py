"""Small grids: cells that are real runs of a second, and cells whose runner only pretends."""

from __future__ import annotations

from typing import Any

import pytest

TINY: dict[str, Any] = {
    "model": {"name": "gpt2:layers=4,width=16,heads=2"},
    "data": {"name": "synthetic", "sequence_length": 16, "vocabulary": 300, "validation_tokens": 128},
    "pipeline": {"stages": 4, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": 2},
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    return {name: dict(table) for name, table in TINY.items()}
