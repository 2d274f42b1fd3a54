"""Processes that are killed, stopped and cut off while they train: the weights are those of a run that nobody disturbs."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import pytest

from holdfast.config import RunConfig, assign, resolve
from holdfast.event import Event, Joined, RolledBack, StepRestarted, StepSealed, TakenOver, WorkerLost
from holdfast.result import RunResult
from holdfast.settings import merge
from holdfast.testing.chaos import Chaos, Kills, losses
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
def test_both_holders_of_a_stage_killed_go_back_to_the_checkpoint(pair: tuple[str, ...], restart: str, tmp_path: Any) -> None:
    config = config_of(f"machines.restart_workers={restart}", f"output.dir={tmp_path / 'run'}", steps=10, checkpoint_every=3)
    chaos = Chaos(config, at_seal(4, lambda chaos: [chaos.kill(worker) for worker in pair]))
    result = chaos.run()
    check(result, config)
    assert [back.version for back in chaos.of(RolledBack)] == [3]
    assert result.rollbacks == 1
