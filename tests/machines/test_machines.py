"""A cluster whose workers live elsewhere ends as the one in memory does: same weights, same counts, whoever comes and goes."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.cast import Troupe
from holdfast.config import RunConfig, assign, resolve
from holdfast.event import Event, Joined, StepSealed, TakenOver, WorkerLost
from holdfast.result import RunResult
from holdfast.settings import merge, split_attack
from holdfast.trainer import Trainer

SMALL: dict[str, Any] = {
    "model": {"name": "gpt2:layers=5,width=32,heads=2"},
    "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 16, "validation_tokens": 512},
    "pipeline": {"stages": 5, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": 6},
}


def config_of(**changes: Any) -> RunConfig:
    attacks = [split_attack(attack) for attack in changes.pop("attack", ())]
    assignments = [f"defence.deadline_s={changes.pop('deadline_s', 4.0)}"]
    return resolve(assign({**merge(SMALL, changes), "attack": tuple(attacks)}, assignments))


def in_memory(config: RunConfig) -> RunResult:
    troupe = Troupe(config) if config.attack or config.faults else None
    observers = () if troupe is None else (troupe.observe,)
    return Trainer(config, cast=troupe, observers=observers).run()


class Run:
    """One run over machines in threads; `at` is called with each event."""

    def __init__(self, config: RunConfig, in_threads: Any, at: Any = None) -> None:
        troupe = Troupe(config) if config.attack or config.faults else None
        self.stage = in_threads(config, troupe)
        self.events: list[Event] = []
        self._at = at
        observers = [self._observe] + ([] if troupe is None else [troupe.observe])
        self.result = Trainer(config, cast=troupe, observers=observers, open_engine=self.stage.open).run()

    def _observe(self, event: Event, _seconds: float) -> None:
        self.events.append(event)
        if self._at is not None:
            self._at(self, event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.mark.parametrize("defence", ["duplicate", "none", "spot-check"])
def test_the_same_weights_as_in_memory(in_threads: Any, defence: str) -> None:
    config = config_of(defence=defence)
    got, want = Run(config, in_threads).result, in_memory(config)
    assert got.weights_digest == want.weights_digest
    assert (got.steps, got.tokens, got.train_loss) == (want.steps, want.tokens, want.train_loss)
    assert got.alerts == got.false_alarms == 0
    assert got.bytes_sent > 0


def test_liars_are_caught_and_named_as_in_memory(in_threads: Any) -> None:
    config = config_of(attack=["sign-flip,rate=0.7,direction=both"])
    got, want = Run(config, in_threads).result, in_memory(config)
    clean = in_memory(config_of())
    assert got.weights_digest == want.weights_digest == clean.weights_digest
    for field in (
        "attacked_claims",
        "detected",
        "missed",
        "false_alarms",
        "blamed_workers",
        "blamed_stages",
        "claims_replaced",
    ):
        assert getattr(got, field) == getattr(want, field), field
    assert got.detected > 0


def test_a_killed_machine_is_taken_over_and_comes_back(in_threads: Any) -> None:
    def kill(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 1:
            run.stage.crew.kill("w2")
        if isinstance(event, TakenOver):
            run.stage.crew.start("w2")

    run = Run(config_of(), in_threads, kill)
    assert [event.worker for event in run.of(WorkerLost)] == ["w2"]
    assert [event.worker for event in run.of(Joined)] == ["w2"]
    assert run.result.weights_digest == in_memory(config_of()).weights_digest
    assert run.result.steps_restarted == run.result.rollbacks == 0


def test_a_silent_machine_counts_as_lost_by_the_deadline(in_threads: Any) -> None:
    def freeze(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 1:
            run.stage.crew.freeze("w2")

    run = Run(config_of(deadline_s=1.0), in_threads, freeze)
    assert [event.worker for event in run.of(WorkerLost)] == ["w2"]
    assert run.result.weights_digest == in_memory(config_of()).weights_digest


def test_a_crash_fault_ends_the_machine(in_threads: Any) -> None:
    config = config_of(faults=("crash stage=2 step=2 at=backward",))
    run = Run(config, in_threads)
    assert [event.worker for event in run.of(WorkerLost)] == ["w2"]
    assert run.result.weights_digest == in_memory(config_of()).weights_digest
