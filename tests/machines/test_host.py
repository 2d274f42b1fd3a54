"""An open run: a host, machines that knock, a host that dies and comes back; books, door, wire and engine together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.admission.control import ask, control_path
from holdfast.admission.door import Door
from holdfast.admission.invite import Invite
from holdfast.admission.knock import knock
from holdfast.admission.roster import FILE as ROSTER
from holdfast.admission.roster import Offer, Roster
from holdfast.config import resolve
from holdfast.errors import CannotListen, ConfigError, NetworkError, SetupError, StoppedWaiting
from holdfast.event import CheckpointTaken, CheckpointWritten, Event, Placed, Reseated, StepSealed, WorkerLost
from holdfast.evidence.audit_log import Status, audit
from holdfast.evidence.identity import derived
from holdfast.evidence.log import FILE
from holdfast.host import Host, Premises
from holdfast.report.tally import tell
from holdfast.station import numerics_of
from holdfast.toml import to_toml
from holdfast.verify import referee

from .hosted import PATIENCE_S, SMALL, Opened, Visitor, free_port, wait_for


@pytest.mark.timeout(240)
def test_machines_join_and_the_weights_are_those_of_memory(tmp_path: Path, visitors: list[Visitor]) -> None:
    run = tmp_path / "run"
    opened = Opened(run)
    invite = opened.invite()
    visitors.append(Visitor(invite, tmp_path / "a", listen=f"127.0.0.1:{free_port()}"))
    visitors.append(Visitor(invite, tmp_path / "b"))
    result = opened.end()
    assert result.weights_digest == Experiment(SMALL).run().weights_digest
    for visitor in visitors:
        visitor.thread.join(PATIENCE_S)
        assert visitor.reason == "the run is over"
        (seated,) = [line for line in visitor.told if line.startswith("this machine carries")]
        assert re.search(r"carries layers? [-0-9]+ \(stage [12]\).*; the run is at step 0 of 12$", seated)
    found = audit((run / FILE).read_bytes(), referee)
    assert found.status is Status.INTACT
    secret = invite.text()
    assert not any(secret in path.read_text("utf-8", "replace") for path in run.rglob("*") if path.is_file())
    assert not control_path(run).exists()


@pytest.mark.timeout(240)
def test_a_third_machine_is_a_spare_that_relieves_who_was_left_with_two_stages(tmp_path: Path, visitors: list[Visitor]) -> None:
    """Once all three are there and step 3 is sealed, w1 leaves in good order; w3 has its place in the end."""

    def at(event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 3:
            wait_for(lambda: len(opened.deployed) == 3)
            assert len(ask(control_path(tmp_path / "run"), "status")["members"]) == 3
            next(visitor for visitor in visitors if any("let in as w1;" in line for line in visitor.told)).end()
            wait_for(lambda: len(opened.deployed) == 2)
        events.append(event)

    events: list[Event] = []
    opened = Opened(tmp_path / "run", at=at)
    invite = opened.invite()
    visitors += [Visitor(invite, tmp_path / name) for name in "abc"]
    result = opened.end()
    assert result.weights_digest == Experiment(SMALL).run().weights_digest
    assert result.steps_restarted == result.rollbacks == 0
    assert [event.worker for event in events if isinstance(event, WorkerLost)] == ["w1"]
    assert set([event for event in events if isinstance(event, Reseated)][-1].primaries) == {"initiator", "w2", "w3"}


@pytest.mark.timeout(240)
def test_a_host_that_was_stopped_goes_on_with_the_machines_and_the_invites_that_it_had(
    tmp_path: Path, visitors: list[Visitor]
) -> None:
    """Nobody is dismissed before the run is over; the door is where invites say that it is, also where any port would do."""

    def stop(event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 3:
            first.experiment.stop()

    def let_another_in(event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 6:
            wait_for(lambda: len(again.deployed) == 3)

    run = tmp_path / "run"
    first = Opened(run, Premises(f"127.0.0.1:{free_port()}", uses=4), at=stop)
    invite = first.invite()
    visitors += [Visitor(invite, tmp_path / name) for name in "ab"]
    stopped = first.end()
    assert (stopped.steps, stopped.interrupted) == (4, True)
    assert [visitor.thread.is_alive() for visitor in visitors] == [True, True]
    again = Opened(run, at=let_another_in)
    assert again.invite().doors == invite.doors
    assert any("earlier invites still open what they did" in line for line in again.told)
    visitors.append(Visitor(invite, tmp_path / "c"))
    result = again.end()
    assert (result.steps, result.interrupted) == (12, False)
    assert result.weights_digest == Experiment(SMALL).run().weights_digest
    for visitor in visitors:
        visitor.thread.join(PATIENCE_S)
        assert visitor.reason == "the run is over", visitor.told
    assert any(line.startswith("let in as") for line in visitors[2].told)


def test_a_door_that_has_moved_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    told: list[list[str]] = []
    doors = []
    for port in (free_port(), 0, free_port()):
        told.append([])
        host = Host(resolve(SMALL), tmp_path / "run", Premises(door=f"127.0.0.1:{port}"), told[-1].append)
        engine = host.engine()
        host.close()
        engine.close()
        doors.append(next(line for line in told[-1] if line.startswith("door at")))
    assert doors[0] == doors[1] != doors[2]
    assert not any("before" in line for line in told[0])
    assert any("earlier invites do not lead here" in line and "give --door 127.0.0.1:" in line for line in told[2])


def test_a_host_that_is_refused_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one in the same directory, or one whose port is taken: the first one's door is still known afterwards."""
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    told: list[str] = []
    host = Host(resolve(SMALL), tmp_path / "run", Premises(), told.append)
    engine = host.engine()
    books = {path.name: path.read_bytes() for path in (tmp_path / "run" / "host").iterdir()}
    with pytest.raises(SetupError, match=r"a host runs in .* already"):
        Host(resolve(SMALL), tmp_path / "run", Premises(), told.append).engine()
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "host").iterdir()} == books
    door = books["door"].decode()
    for option, premises in {"--door": Premises(door=door), "--wire": Premises(wire=door)}.items():
        with pytest.raises(
            CannotListen, match=f"cannot listen at {door}: address already in use; choose another with {option}"
        ):
            Host(resolve(SMALL), tmp_path / "new" / "run", premises, told.append).engine()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run"]
    host.close()
    engine.close()
    assert len([line for line in told if "holdfast join" in line]) == 1


def test_who_was_let_in_before_is_known_at_the_wire_before_the_door_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines that wait for a host knock at once: they were strangers at the wire, and had to knock again."""
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    known: list[set[str]] = []
    start = Door.start

    async def look(door: Door) -> Any:
        assert host._machines is not None
        known.append({end.process for end in host._machines._expected})
        return await start(door)

    monkeypatch.setattr(Door, "start", look)
    for _ in range(2):
        host = Host(resolve(SMALL), tmp_path / "run", Premises(), lambda _line: None)
        engine = host.engine()
        host.close()
        engine.close()
        roster = Roster(tmp_path / "run" / "host" / ROSTER)
        if roster.get("w1") is None:
            roster.enrol(derived(1, "one").public, Offer())
            roster.flush()
    assert known == [set(), {"w1"}]


def test_a_door_that_outlives_the_wire_answers_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a host leaves: who knocked in that moment heard an error that sent it away for good."""
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    told: list[str] = []
    host = Host(resolve(SMALL), tmp_path / "run", Premises(), told.append)
    host.engine().close()
    invite = Invite.parse(re.findall(r"holdfast1:\S+", told[-1])[0])
    assert knock(invite, derived(1, "one"), Offer(numerics=numerics_of("cpu"))).name == "w1"
    with pytest.raises(NetworkError, match="opens nothing here"):
        knock(invite, derived(1, "two"), Offer(numerics=numerics_of("cpu")))
    host.close()


def test_what_status_shows_is_in_the_words_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    host = Host(resolve(SMALL), tmp_path / "run", Premises(), lambda _line: None)
    placed = Placed(0, "as given", ((0, 1), (1, 3)), ("initiator", "w1"), (None, None), 0.1, {}, {})
    lost = WorkerLost("w1", 1, "its link was silent\x1b[31m")
    events = [placed, CheckpointTaken(1, "a"), StepSealed(0, 0, 1.0, 1.0, 0.1, 9), CheckpointWritten(1, "a"), lost]
    for event in events:
        host.observe(event, 0.0)
    assert [text for _, text in host._events] == [tell(placed), tell(lost)]
    assert "layers: initiator 0, w1 1-2" in host._events[0][1]


COMMAND = """
import sys
from holdfast.cli.main import main
main(["host", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_host_that_is_killed_goes_on_by_the_same_command(tmp_path: Path) -> None:
    """Real processes; `kill -9` in the middle of the run. The machines knock until the host is back."""
    environment = {**os.environ, "HOLDFAST_HOME": str(tmp_path / "home")}
    config, run = tmp_path / "run.toml", tmp_path / "run"
    steps = {"steps": 60}
    config.write_text(to_toml(resolve({**SMALL, "training": steps, "output": {}})))
    words = [
        str(config),
        "--out",
        str(run),
        "--door",
        "127.0.0.1:0",
        "--wire",
        "127.0.0.1:0",
        "--checkpoint-every",
        "4",
        "--json",
    ]
    processes: list[subprocess.Popen[str]] = []

    def start(name: str, command: list[str], **more: Any) -> subprocess.Popen[str]:
        with (tmp_path / f"{name}.log").open("w") as errors:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command], env={**environment, **more}, text=True, stdout=subprocess.PIPE, stderr=errors
                )
            )
        return processes[-1]

    def until(what: Callable[[], object]) -> Any:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            found = what()
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError({path.name: path.read_text()[-2000:] for path in tmp_path.glob("*.log")})

    try:
        host = start("first", ["-c", COMMAND, *words])
        invite = until(lambda: re.search(r"holdfast1:\S+", (tmp_path / "first.log").read_text()))[0]
        guests = [
            start(name, ["-m", "holdfast", "join", invite], HOLDFAST_HOME=str(tmp_path / name)) for name in ("one", "two")
        ]
        until(lambda: (run / "checkpoints" / "step-000008").is_dir())
        host.kill()
        host.wait()
        again = start("again", ["-c", COMMAND, *words])
        out, _ = again.communicate(timeout=120)
        assert again.returncode == 0, (tmp_path / "again.log").read_text()
        assert (
            json.loads(out.splitlines()[-1])["weights_digest"] == Experiment({**SMALL, "training": steps}).run().weights_digest
        )
        assert [guest.wait(30) for guest in guests] == [0, 0]
        assert "knocking again" in (tmp_path / "one.log").read_text()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_an_address_that_others_reach_must_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    config = resolve(SMALL)
    with pytest.raises(ConfigError, match="--expose"):
        Host(config, tmp_path / "run", Premises(door="0.0.0.0:7700"), print)
    with pytest.raises(ConfigError, match="--expose"):
        Host(config, tmp_path / "run", Premises(wire="0.0.0.0:7701"), print)
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(240)
def test_a_machine_of_another_numerics_class_is_refused_and_told_why(
    tmp_path: Path, visitors: list[Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.join.numerics_of", lambda _device: "native, float32, cuda Something, torch 9, threads 1")
    opened = Opened(tmp_path / "run")
    visitor = Visitor(opened.invite(), tmp_path / "a")
    visitor.thread.join(PATIENCE_S)
    assert isinstance(visitor.error, NetworkError)
    assert "another numerics class" in str(visitor.error)
    opened.experiment.stop()  # nobody is there: it does not wait any longer
    opened.thread.join(PATIENCE_S)
    assert isinstance(opened.error, StoppedWaiting)
    assert any("refused at the door" in line and "offer" in line for line in opened.told)
