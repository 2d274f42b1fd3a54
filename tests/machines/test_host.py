"""An open run: a host, machines that knock, a host that dies and comes back; books, door, wire and engine together."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from holdfast import Experiment
from holdfast.admission.control import ask, control_path
from holdfast.config import resolve
from holdfast.errors import ConfigError, NetworkError
from holdfast.evidence.audit_log import Status, audit
from holdfast.evidence.log import FILE
from holdfast.host import Host, Premises
from holdfast.verify import referee

from .hosted import SMALL, Opened, Visitor, free_port


@pytest.mark.timeout(120)
def test_machines_join_and_the_weights_are_those_of_memory(tmp_path: Path, visitors: list[Visitor]) -> None:
    run = tmp_path / "run"
    opened = Opened(run)
    invite = opened.invite()
    visitors.append(Visitor(invite, tmp_path / "a", listen=f"127.0.0.1:{free_port()}"))
    visitors.append(Visitor(invite, tmp_path / "b"))
    result = opened.end()
    assert result.weights_digest == Experiment(SMALL).run().weights_digest
    for visitor in visitors:
        visitor.thread.join(10)
        assert visitor.reason == "the run is over"
    found = audit((run / FILE).read_bytes(), referee)
    assert found.status is Status.INTACT
    secret = invite.text()
    assert not any(secret in path.read_text("utf-8", "replace") for path in run.rglob("*") if path.is_file())
    assert not control_path(run).exists()


@pytest.mark.timeout(120)
def test_a_third_machine_is_a_spare_that_relieves_who_was_left_with_two_stages(tmp_path: Path, visitors: list[Visitor]) -> None:
    opened = Opened(tmp_path / "run", training={"steps": 40})
    invite = opened.invite()
    visitors += [Visitor(invite, tmp_path / name) for name in "abc"]
    while not any(len(ask(control_path(tmp_path / "run"), "status")["members"]) == 3 for _ in range(1)):
        time.sleep(0.05)
    while ask(control_path(tmp_path / "run"), "status")["step"] < 3:
        time.sleep(0.05)
    visitors[0].end()  # it leaves in good order
    result = opened.end()
    clean = Experiment({**SMALL, "training": {"steps": 40}}).run()
    assert result.weights_digest == clean.weights_digest
    assert result.steps_restarted == result.rollbacks == 0


def test_an_address_that_others_reach_must_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    config = resolve(SMALL)
    with pytest.raises(ConfigError, match="--expose"):
        Host(config, tmp_path / "run", Premises(door="0.0.0.0:7700"), print)
    with pytest.raises(ConfigError, match="--expose"):
        Host(config, tmp_path / "run", Premises(wire="0.0.0.0:7701"), print)
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(60)
def test_a_machine_of_another_numerics_class_is_refused_and_told_why(
    tmp_path: Path, visitors: list[Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.join.numerics_of", lambda _device: "native, float32, cuda Something, torch 9, threads 1")
    opened = Opened(tmp_path / "run")
    visitor = Visitor(opened.invite(), tmp_path / "a")
    visitor.thread.join(30)
    assert isinstance(visitor.error, NetworkError)
    assert "another numerics class" in str(visitor.error)
    opened.experiment.stop()
    monkeypatch.undo()
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    visitors += [Visitor(opened.invite(), tmp_path / name) for name in "bc"]
    opened.end()
