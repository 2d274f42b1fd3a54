"""The archive: what comes together for a checkpoint is what was sealed, and of trusted stages what their holder shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holdfast.claim import StageState
from holdfast.cluster import Archive
from holdfast.digest import state_digest
from holdfast.message import Envelope, StateRefused, StateTransfer


def state(stage: int, value: float = 1.0, version: int = 3) -> StageState:
    return StageState(stage, version, 3, {"w": torch.full((2,), value)}, {})


@pytest.fixture
def archive() -> Archive:
    made = Archive()
    made.expect({0: b"", 1: state_digest(state(1))}, 3, ("initiator",), checked=True)
    return made


def say(archive: Archive, sender: str, found: StageState) -> list[Any]:
    return [envelope.message for envelope in archive.receive(Envelope(sender, "archive", StateTransfer(found, None)))]


def test_a_trusted_stage_has_the_digest_that_its_holder_shows(archive: Archive) -> None:
    assert say(archive, "initiator", state(0)) == say(archive, "w1", state(1)) == []
    assert archive.digests == {stage: state_digest(state(stage)) for stage in (0, 1)}
    assert sorted(archive.states) == [0, 1]


def test_nobody_else_shows_a_trusted_stage(archive: Archive) -> None:
    assert say(archive, "w1", state(0, 9.0)) == [], "there is nothing to hold it against"
    assert (archive.states, archive.digests[0]) == ({}, b"")
    say(archive, "initiator", state(0))
    (refused,) = say(archive, "w1", state(0, 9.0))
    assert isinstance(refused, StateRefused)
    assert archive.states[0].weights["w"].tolist() == [1.0, 1.0]


def test_another_state_than_the_sealed_one_is_reported_whoever_has_sent_it_before(archive: Archive) -> None:
    say(archive, "w1", state(1))
    (refused,) = say(archive, "w2", state(1, 9.0))
    assert refused == StateRefused(1, 3, "w2", state_digest(state(1, 9.0)), state_digest(state(1)))
    assert archive.refused == 1


@pytest.mark.parametrize("other", [state(0, version=2), state(2)], ids=["version", "stage"])
def test_what_was_not_asked_for_is_dropped(archive: Archive, other: StageState) -> None:
    assert say(archive, "initiator", other) == []
    assert archive.states == {}


def test_with_defences_off_nothing_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive()
    archive.expect({0: b"", 1: b""}, 3, ("initiator",), checked=False)
    monkeypatch.setattr("holdfast.cluster.state_digest", None)
    assert say(archive, "w1", state(1)) == say(archive, "initiator", state(0)) == []
    assert sorted(archive.states) == [0, 1]
