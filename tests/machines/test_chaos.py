"""Processes that are killed, stopped and cut off while they train: the weights are those of a run that nobody disturbs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from holdfast.config import RunConfig, resolve
from holdfast.event import Event, Joined, RolledBack, StepRestarted, StepSealed, TakenOver, WorkerLost
from holdfast.machines import Machines
from holdfast.message import BeginStep, Deploy, Envelope, SendState
from holdfast.result import RunResult
from holdfast.settings import merge
from holdfast.stage import ARCHIVE
from holdfast.station import CUT_OFF
from holdfast.testing.chaos import Chaos, Kills, Lines, Spared, losses
from holdfast.toml import assign
from holdfast.trainer import Trainer

SMALL: dict[str, Any] = {
    "model": {"name": "gpt2:layers=6,width=32,heads=2"},
    "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 16, "validation_tokens": 512},
    "pipeline": {"stages": 5, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": 12},
}

pytestmark = pytest.mark.timeout(240)


def config_of(*assignments: str, **settings: Any) -> RunConfig:
    return resolve(assign(merge(SMALL, settings), ["pipeline.engine=processes", *assignments]))


@cache
def undisturbed(stages: int, steps: int) -> str:
    """The digest of the run in memory."""
    return Trainer(resolve(merge(SMALL, {"stages": stages, "steps": steps}))).run().weights_digest


def check(result: RunResult, config: RunConfig) -> None:
    assert result.weights_digest == undisturbed(config.pipeline.stages, config.training.steps)
    assert result.false_alarms == 0


def check_unharmed(chaos: Chaos, result: RunResult, config: RunConfig) -> None:
    """The right weights, without a step begun twice and without going back."""
    check(result, config)
    assert chaos.of(StepRestarted) == chaos.of(RolledBack) == []
    assert all(sealed.attempt == 0 for sealed in chaos.of(StepSealed))


def at_seal(step: int, strike: Any) -> Any:
    """An `at` that strikes once, when `step` is sealed."""
    struck = []

    def at(chaos: Chaos, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == step and not struck:
            struck.append(step)
            strike(chaos)

    return at


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# -- killed ---------------------------------------------------------------------------------------------------------------


def kill_one_after_another(seed: int, *, kills: int, steps: int) -> None:
    config = config_of(steps=steps)
    strikes = Kills(seed, kills)
    chaos = Chaos(config, strikes)
    result = chaos.run()
    check_unharmed(chaos, result, config)
    assert [lost.worker for lost in chaos.of(WorkerLost)] == [worker for worker, _ in strikes.strikes]
    found = losses(chaos, strikes.strikes)
    assert len(found) == kills, "a place was not filled again before the end"
    for loss in found:
        assert loss.examined < loss.pieces


def test_a_killed_worker_is_taken_over_and_its_place_filled_again() -> None:
    kill_one_after_another(1, kills=1, steps=24)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_workers_killed_at_random_moments(seed: int) -> None:
    kill_one_after_another(seed, kills=2, steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("w1", "w3")])
def test_two_that_are_not_neighbours_killed_at_once(pair: tuple[str, str]) -> None:
    config = config_of("machines.restart_workers=false", steps=8)
    chaos = Chaos(config, at_seal(2, lambda chaos: [chaos.kill(worker) for worker in pair]))
    check_unharmed(chaos, chaos.run(), config)
    assert {lost.worker for lost in chaos.of(WorkerLost)} == set(pair)
    assert chaos.of(Joined) == []


@pytest.mark.slow
def test_one_after_another_until_the_initiator_is_alone() -> None:
    config = config_of("machines.restart_workers=false", stages=6, steps=20)

    def at(chaos: Chaos, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step % 4 == 2 and chaos.workers:
            chaos.kill(chaos.workers[event.step % len(chaos.workers)])

    chaos = Chaos(config, at)
    check_unharmed(chaos, chaos.run(), config)
    assert {lost.worker for lost in chaos.of(WorkerLost)} == {"w1", "w2", "w3", "w4"}
    assert chaos.of(TakenOver)[-1].heir == "initiator"


@pytest.mark.slow
@pytest.mark.parametrize("restart", ["true", "false"])
@pytest.mark.parametrize("pair", [("w1", "w2"), ("w2", "w3"), ("w1", "w2", "w3")], ids="-".join)
def test_both_holders_of_a_stage_killed_go_back_to_the_checkpoint(pair: tuple[str, ...], restart: str, tmp_path: Path) -> None:
    config = config_of(f"machines.restart_workers={restart}", f"output.dir={tmp_path / 'run'}", steps=10, checkpoint_every=3)
    chaos = Chaos(config, at_seal(4, lambda chaos: [chaos.kill(worker) for worker in pair]))
    result = chaos.run()
    check(result, config)
    assert [back.version for back in chaos.of(RolledBack)] == [3]
    assert result.rollbacks == 1


# -- silent, slow, cut off ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_machine_is_lost_and_shut_out_when_it_goes_on(tmp_path: Path) -> None:
    """Nobody kills it here: once it goes on, it learns that the run has given it up, and leaves."""
    config = config_of("machines.silence_s=4", "machines.restart_workers=false", steps=10)

    def at(chaos: Chaos, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 2:
            stopped.append(time.monotonic())
            chaos.signal("w2", signal.SIGSTOP)
        if isinstance(event, WorkerLost):
            stopped.append(time.monotonic())
            assert "nothing was heard from it for 4 s" in event.reason
        if isinstance(event, StepSealed) and event.step == 4:
            chaos.signal("w2", signal.SIGCONT)
            wait_until(lambda: "w2" not in chaos.workers)

    stopped: list[float] = []
    chaos = Chaos(config, at, crew=Spared, logs=tmp_path)
    check_unharmed(chaos, chaos.run(), config)
    assert [lost.worker for lost in chaos.of(WorkerLost)] == ["w2"]
    assert stopped[1] - stopped[0] < 4 + 10
    told = (tmp_path / "w2.log").read_text()
    assert CUT_OFF in told
    assert "Fatal" not in told


@pytest.mark.slow
def test_a_machine_that_stops_again_and_again_for_less_than_the_limit_is_not_lost() -> None:
    config = config_of("machines.silence_s=6", steps=14)

    def flap(chaos: Chaos) -> None:
        for _ in range(6):
            chaos.signal("w2", signal.SIGSTOP)
            time.sleep(1.5)
            chaos.signal("w2", signal.SIGCONT)
            time.sleep(0.3)

    chaos = Chaos(config, at_seal(1, lambda chaos: threading.Thread(target=flap, args=(chaos,), daemon=True).start()))
    check_unharmed(chaos, chaos.run(), config)
    assert chaos.of(WorkerLost) == []


@pytest.mark.slow
def test_a_stalled_worker_does_no_harm() -> None:
    config = config_of("machines.silence_s=6", steps=8, faults=("stall stage=2 step=2 at=backward seconds=4",))
    chaos = Chaos(config)
    check_unharmed(chaos, chaos.run(), config)
    assert chaos.of(WorkerLost) == []


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


@pytest.mark.slow
def test_a_cut_line_between_two_workers_goes_through_the_relay(lines: Lines, tmp_path: Path) -> None:
    config = config_of(steps=10)
    strike = at_seal(2, lambda _chaos: lines.sever("w1", "w2"))
    chaos = Chaos(config, strike, crew=lines.crew, meddle=lines.meddle, logs=tmp_path)
    check_unharmed(chaos, chaos.run(), config)
    assert chaos.of(WorkerLost) == []
    assert "w2 relayed: through host" in (tmp_path / "w1.log").read_text()


@pytest.mark.slow
def test_a_machine_that_the_host_cannot_reach_is_lost(lines: Lines) -> None:
    config = config_of("machines.restart_workers=false", steps=10)
    chaos = Chaos(config, at_seal(2, lambda _: lines.sever("w2", "host")), crew=lines.crew, meddle=lines.meddle)
    check_unharmed(chaos, chaos.run(), config)
    assert [(lost.worker, "not back within" in lost.reason) for lost in chaos.of(WorkerLost)] == [("w2", True)]


# -- at bad moments -------------------------------------------------------------------------------------------------------


class When:
    """Kills `victim(envelope)` when the host has sent the first envelope for which it names somebody."""

    def __init__(self, victim: Callable[[Envelope], str | None]) -> None:
        self.victim = victim
        self.struck: list[str] = []
        self.chaos: Chaos

    def meddle(self, machines: Machines) -> None:
        transport: Any = machines._transport
        send = transport.send

        def sent(envelope: Envelope) -> None:
            send(envelope)
            victim = None if self.struck else self.victim(envelope)
            if victim is not None:
                self.struck.append(victim)
                self.chaos.kill(victim)

        transport.send = sent

    def run(self, config: RunConfig, at: Any = None) -> tuple[Chaos, RunResult]:
        self.chaos = Chaos(config, at, meddle=self.meddle)
        return self.chaos, self.chaos.run()


def is_deployed(envelope: Envelope) -> str | None:
    return "w2" if isinstance(envelope.message, Deploy) and envelope.recipient == "w2" else None


def sends_to(*receivers: str) -> Callable[[Envelope], str | None]:
    def victim(envelope: Envelope) -> str | None:
        message = envelope.message
        return message.to if isinstance(message, SendState) and message.to in receivers else None

    return victim


def sends_to_the_archive(envelope: Envelope) -> str | None:
    message = envelope.message
    sends = isinstance(message, SendState) and message.to == ARCHIVE and message.stage == 2
    return envelope.recipient if sends and envelope.recipient != "initiator" else None


def begins(step: int) -> Callable[[Envelope], str | None]:
    def victim(envelope: Envelope) -> str | None:
        return "w2" if isinstance(envelope.message, BeginStep) and envelope.message.step == step else None

    return victim


@pytest.mark.slow
@pytest.mark.parametrize("restart", ["true", "false"])
def test_a_worker_killed_while_it_is_deployed(restart: str) -> None:
    config = config_of(f"machines.restart_workers={restart}", steps=8)
    when = When(is_deployed)
    chaos, result = when.run(config)
    check_unharmed(chaos, result, config)
    assert when.struck == ["w2"]


@pytest.mark.slow
def test_a_new_holder_killed_while_it_is_sent_its_state() -> None:
    config = config_of("machines.restart_workers=false", stages=6, steps=8)
    when = When(sends_to("w4"))
    chaos, result = when.run(config, at_seal(2, lambda chaos: chaos.kill("w2")))
    check_unharmed(chaos, result, config)
    assert when.struck == ["w4"]
    assert {lost.worker for lost in chaos.of(WorkerLost)} == {"w2", "w4"}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [sends_to_the_archive, begins(7)], ids=["collection", "last step"])
def test_a_worker_killed_near_the_end(victim: Any, tmp_path: Path) -> None:
    config = config_of("machines.restart_workers=false", f"output.dir={tmp_path / 'run'}", steps=8, checkpoint_every=3)
    when = When(victim)
    chaos, result = when.run(config)
    check_unharmed(chaos, result, config)
    assert len(when.struck) == 1
    assert [lost.worker for lost in chaos.of(WorkerLost)] == when.struck
