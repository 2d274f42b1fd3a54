"""An open run: a host, machines that knock, a host that dies and comes back; books, door, wire and engine together."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.admission.control import ask, control_path
from holdfast.admission.invite import Invite
from holdfast.config import RunConfig, resolve
from holdfast.errors import ConfigError, NetworkError
from holdfast.evidence.audit_log import Status, audit
from holdfast.evidence.log import FILE
from holdfast.host import Host, Premises
from holdfast.join import Guest, Machine
from holdfast.result import RunResult
from holdfast.verify import referee

SMALL: dict[str, Any] = {
    "model": {"name": "gpt2:layers=4,width=32,heads=2"},
    "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 16, "validation_tokens": 512},
    "pipeline": {"stages": 4, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": 12},
    "output": {"checkpoint_every": 4},
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Opened:
    """A host in a thread of its own."""

    def __init__(self, out: Path, premises: Premises = Premises(uses=4), **changes: Any) -> None:  # noqa: B008  # frozen
        self.told: list[str] = []
        config: RunConfig = resolve({**SMALL, "output": {**SMALL["output"], "dir": str(out)}, **changes})
        resume = out if (out / "config.toml").is_file() else None
        self.host = Host(config, out, premises, self.told.append)
        self.experiment = Experiment(config, observers=(self.host.observe,), resume=resume, host=self.host)
        self.result: RunResult | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self.experiment.run()
        except BaseException as error:  # noqa: BLE001  # shown by the test
            self.error = error
        finally:
            self.host.close()

    def invite(self) -> Invite:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for line in list(self.told):
                found = re.search(r"holdfast1:\S+", line)
                if found:
                    return Invite.parse(found[0])
            assert self.error is None, self.error
            time.sleep(0.02)
        raise AssertionError("no invite was told")

    def end(self) -> RunResult:
        self.thread.join(60)
        assert self.error is None, self.error
        assert self.result is not None
        return self.result


class Visitor:
    """A guest in a thread of its own, with a home of its own."""

    def __init__(self, invite: Invite, home: Path, **machine: Any) -> None:
        home.mkdir(exist_ok=True)
        self.told: list[str] = []
        self.reason: str | None = None
        self.error: BaseException | None = None
        self.guest = Guest(invite, Machine(home=home, patience_s=20.0, **machine), self.told.append)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.reason = self.guest.run()
        except BaseException as error:  # noqa: BLE001  # shown by the test
            self.error = error

    def end(self) -> None:
        self.guest.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def visitors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Visitor]]:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    came: list[Visitor] = []
    yield came
    for visitor in came:
        visitor.end()


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
