"""The catalogue's lies of the protocol, told by a process: the same weights as in memory, and nobody honest is blamed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from holdfast import Experiment

SMALL: dict[str, Any] = {
    "model": {"name": "gpt2:layers=5,width=32,heads=2"},
    "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 16, "validation_tokens": 512},
    "pipeline": {"stages": 5, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": 5},
    "defence": {"deadline_s": 3.0},
}
LIES = (
    "framing",
    "equivocation",
    "flood",
    "lie-on-jump",
    "lie-on-direct",
    "wrong-parent",
    "withhold",
    "delay",
    "replay-claim",
    "substitute",
    "wrong-update",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@cache
def clean() -> str:
    return Experiment(SMALL).run().weights_digest


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_the_protocol_told_by_a_process(lie: str) -> None:
    attack = [f"{lie},rate=1.0,stages=2"]
    want = Experiment(SMALL, attack=attack).run()
    got = Experiment(SMALL, attack=attack, engine="processes").run()
    assert got.weights_digest == want.weights_digest == clean()
    assert got.false_alarms == got.missed == 0
    # where a liar is banned its heir has the stage, and the part that goes with it
    assert set(got.blamed_workers) <= set(want.blamed_workers) | {"w2"}
    if lie not in ("withhold", "delay", "flood", "substitute"):  # in these the clock decides how often, and who is asked first
        assert got.detected == want.detected
        assert got.blamed_workers == want.blamed_workers
