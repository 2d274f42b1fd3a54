"""The engine `ray` on a real Ray of this machine: the result of the engine in memory, whoever is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.actors import actors
from holdfast.config import resolve
from holdfast.crew import Staging
from holdfast.event import Event, Joined, StepSealed, TakenOver, WorkerLost
from holdfast.machines import Machines, Patience
from holdfast.trainer import Trainer

from .alike import SMALL, assert_counts_equal

if importlib.util.find_spec("ray") is None:  # it must not be imported before it is told to stay on loopback
    pytest.skip("Ray is not installed; scripts/test-ray installs it and runs this file", allow_module_level=True)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.filterwarnings("default")]


def test_attacked_and_crashed_actors_give_the_result_of_memory(tmp_path: Path) -> None:
    against = {"attack": ["sign-flip,rate=0.7"], "faults": ["crash stage=2 step=3 at=backward"]}
    want = Experiment(SMALL, **against).run()
    exposed: list[set[str]] = []

    def look(event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed) and event.step == 1:
            exposed.append(_listening_beyond_loopback())

    got = Experiment(SMALL, **against, engine="ray", out=str(tmp_path / "run"), observers=[look]).run()
    assert exposed == [set()], "neither Ray nor the wire may be reached from outside, unless told to"
    assert not _descendants(), "Ray was left behind"
    clean = Experiment(SMALL).run()
    assert got.weights_digest == want.weights_digest == clean.weights_digest
    assert_counts_equal(got, want)


@pytest.mark.parametrize("how", ["ray.kill", "kill -9", "kill -STOP"])
def test_a_killed_actor_is_taken_over_started_by_ray_and_let_in_again(how: str) -> None:
    config = resolve({**SMALL, "training": {"steps": 16}, "machines": {"silence_s": 3.0}, "pipeline": {**SMALL["pipeline"]}})
    events: list[Event] = []
    opened: list[Machines] = []
    pids: list[int] = []

    def open_engine() -> Machines:
        opened.append(actors(Staging(config), patience=Patience(90.0, 90.0, 2.0, 90.0)))
        return opened[0]

    def strike(event: Event, _seconds: float) -> None:
        events.append(event)
        children: Any = opened[0].crew.children if opened else None  # type: ignore[attr-defined]
        match event:
            case StepSealed(step=1):
                place = children.place("w2")
                pids.append(place.pid)
                if how == "ray.kill":
                    children.kill("w2")
                else:
                    os.kill(place.pid, signal.SIGKILL if how == "kill -9" else signal.SIGSTOP)
            case StepSealed(step=step) if step > 4 and len(pids) == 1:  # a short run must last until it is there
                _wait_for(opened[0], "w2")
                pids.append(children.place("w2").pid)

    result = Trainer(config, observers=[strike], open_engine=open_engine).run()
    assert [event.worker for event in events if isinstance(event, WorkerLost)] == ["w2"]
    assert [event.worker for event in events if isinstance(event, Joined)] == ["w2"]
    assert any(isinstance(event, TakenOver) for event in events)
    assert len(set(pids)) == 2
    assert result.weights_digest == Trainer(config).run().weights_digest
    assert result.steps_restarted == result.rollbacks == result.false_alarms == 0


def _descendants() -> set[int]:
    """The processes that come from this one, by number; those that have ended and were not waited for are none."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def _listening_beyond_loopback() -> set[str]:
    """Addresses, as the kernel writes them, at which this process and those that come from it listen."""
    sockets = set()
    for pid in {os.getpid(), *_descendants()}:
        with contextlib.suppress(OSError):
            sockets |= {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1])
    assert found, "this looks at nothing"
    return {address for address in found if not address.startswith(("0100007F", "0000000000000000FFFF00000100007F"))}


def _wait_for(machines: Machines, name: str) -> None:
    deadline = time.monotonic() + 60
    while name not in machines.deployed and time.monotonic() < deadline:
        time.sleep(0.02)
