"""A small run that every engine must carry out alike, and what must be equal then."""

from __future__ import annotations

from typing import Any

from holdfast.result import RunResult

SMALL: dict[str, Any] = {
    "model": {"name": "gpt2:layers=4,width=32,heads=2"},
    "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 16, "validation_tokens": 512},
    "pipeline": {"stages": 4, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": 6},
}


def assert_counts_equal(got: RunResult, want: RunResult) -> None:
    """Of an attacked run, with nothing lost."""
    for field in ("attacked_claims", "detected", "missed", "false_alarms", "alerts", "blamed_workers", "claims_replaced"):
        assert getattr(got, field) == getattr(want, field), field
    assert got.detected > 0
    assert got.steps_restarted == got.rollbacks == 0
