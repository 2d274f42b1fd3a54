"""Virtual time is part of the contract: what detection costs in seconds of the described cluster, and in tensors sent."""

from __future__ import annotations

import pytest

from holdfast.claim import Claim, Direction
from holdfast.cluster import Cluster, Deployment
from holdfast.config import resolve
from holdfast.job import prepare
from holdfast.toml import assign

STAGES, MICRO_BATCHES = 6, 4


def one_step(defence: str, schedule: str) -> tuple[float, dict[Direction, int]]:
    """Virtual seconds of the second step, and how many boundary tensors crossed a link in it, by direction."""
    settings = [
        "model.name=gpt2:layers=6,width=16,heads=2",
        "data.name=synthetic:order=1,symbols=8,tokens=20000",
        "data.sequence_length=16",
        "pipeline.micro_batch_size=1",
        f"pipeline.stages={STAGES}",
        f"pipeline.micro_batches={MICRO_BATCHES}",
        f"pipeline.schedule={schedule}",
        f"defence.name={defence}",
        "training.steps=2",
    ]
    job = prepare(resolve(assign({}, settings)))
    cluster = Cluster(Deployment("time"), job, lambda _event, _seconds: None)
    cluster.deploy({stage: job.initial_state(stage) for stage in range(STAGES)}, 0)
    cluster.run_step(0)
    before, sent = cluster.launcher.now, dict.fromkeys((Direction.FORWARD, Direction.BACKWARD), 0)
    send = cluster.transport.send

    def counting(envelope):
        if isinstance(envelope.message, Claim) and envelope.sender != envelope.recipient:
            sent[envelope.message.header.key.direction] += 1
        send(envelope)

    cluster.transport.send = counting
    cluster.run_step(1)
    return cluster.launcher.now - before, sent


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_detection_hides_in_the_bubbles(schedule):
    clean, tensors = one_step("none", schedule)
    held, held_tensors = one_step("duplicate", schedule)
    assert held / clean <= 1.6, "the number to beat at K = 6, M = 4"
    assert held / clean < 1.40, "what the schedule gives; more means that shadow work has moved out of the bubbles"
    links = STAGES - 1
    assert tensors == {Direction.FORWARD: links * MICRO_BATCHES, Direction.BACKWARD: links * MICRO_BATCHES}
    jumps = (
        STAGES - 2
    )  # every forward tensor also jumps to the next stage's shadow; the last middle stage's has none to jump to
    assert held_tensors == {
        Direction.FORWARD: (links + jumps) * MICRO_BATCHES,
        Direction.BACKWARD: links * MICRO_BATCHES,
    }


def test_virtual_time_is_a_property_of_the_run_and_not_of_the_machine():
    assert one_step("duplicate", "1f1b") == one_step("duplicate", "1f1b")
