"""A cluster whose workers live elsewhere ends as the one in memory does: same weights, same counts, whoever comes and goes."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import pytest

from holdfast.bench.workshop import job_of
from holdfast.cast import Troupe
from holdfast.claim import ClaimKey, Direction
from holdfast.config import RunConfig, resolve
from holdfast.event import Event, Joined, Paused, Placed, Reseated, RolledBack, StepSealed, TakenOver, WorkerLost
from holdfast.message import Accepted, Envelope, Loss, Seal, SendState, Tally
from holdfast.placement.load import Needs
from holdfast.result import RunResult
from holdfast.settings import merge, split_attack
from holdfast.toml import assign
from holdfast.trainer import Trainer

from .hosted import wait_for

SMALL: dict[str, Any] = {
    "model": {"name": "gpt2:layers=5,width=32,heads=2"},
    "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 16, "validation_tokens": 512},
    "pipeline": {"stages": 5, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": 6},
}


def config_of(**changes: Any) -> RunConfig:
    attacks = [split_attack(attack) for attack in changes.pop("attack", ())]
    assignments = [f"defence.deadline_s={changes.pop('deadline_s', 60.0)}"]
    return resolve(assign({**merge(SMALL, changes), "attack": tuple(attacks)}, assignments))


def in_memory(config: RunConfig) -> RunResult:
    troupe = Troupe(config) if config.attack or config.faults else None
    observers = () if troupe is None else (troupe.observe,)
    return Trainer(config, cast=troupe, observers=observers).run()


class Run:
    """One run over machines in threads; `at` is called with each event, and the run goes on when it is done."""

    def __init__(self, config: RunConfig, in_threads: Any, at: Any = None, prepare: Any = None) -> None:
        troupe = Troupe(config) if config.attack or config.faults else None
        self.stage = in_threads(config, troupe, prepare)
        self.events: list[Event] = []
        self._at = at
        observers = [self._observe] + ([] if troupe is None else [troupe.observe])
        self.trainer = Trainer(config, cast=troupe, observers=observers, open_engine=self.stage.open)
        self.result = self.trainer.run()

    def _observe(self, event: Event, _seconds: float) -> None:
        self.events.append(event)
        if self._at is not None:
            self._at(self, event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def await_deployed(self, *names: str) -> None:
        """However short the run, it lasts until they are there."""
        wait_for(lambda: set(names) <= self.stage.machines.deployed)


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
        if isinstance(event, StepSealed) and event.step == 3:
            run.await_deployed("w2")

    run = Run(config_of(), in_threads, kill)
    assert [event.worker for event in run.of(WorkerLost)] == ["w2"]
    assert [event.worker for event in run.of(Joined)] == ["w2"]
    assert run.result.weights_digest == in_memory(config_of()).weights_digest
    assert run.result.steps_restarted == run.result.rollbacks == 0


def test_a_silent_machine_counts_as_lost_by_the_deadline(in_threads: Any) -> None:
    def freeze(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 1:
            run.stage.crew.freeze("w2")

    run = Run(config_of(deadline_s=3.0), in_threads, freeze)
    assert [event.worker for event in run.of(WorkerLost)] == ["w2"]
    assert run.stage.crew.fenced == ["w2"], "who is lost to the run must not go on somewhere"
    assert run.result.weights_digest == in_memory(config_of()).weights_digest


def test_a_crash_fault_ends_the_machine(in_threads: Any) -> None:
    config = config_of(faults=("crash stage=2 step=2 at=backward",))
    run = Run(config, in_threads)
    assert [event.worker for event in run.of(WorkerLost)] == ["w2"]
    assert run.result.weights_digest == in_memory(config_of()).weights_digest


def test_a_machine_that_dies_before_it_has_its_part_gets_it_when_it_is_back(in_threads: Any) -> None:
    """w3 is still getting ready when w2 is there again, so nobody has to be lost."""

    def prepare(crew: Any) -> None:
        crew.stumbles, crew.ready = {"w2"}, {"w3": lambda machines: "w2" in machines.deployed}

    run = Run(config_of(), in_threads, prepare=prepare)
    assert run.of(WorkerLost) == []
    assert run.stage.crew.starts.count("w2") == 2
    assert run.result.weights_digest == in_memory(config_of()).weights_digest


def test_a_machine_that_is_gone_before_it_has_its_part_is_taken_over(in_threads: Any) -> None:
    """Its stage was sent to nobody yet, and its shadow's machine has it from the start."""

    def prepare(crew: Any) -> None:
        crew.stumbles, crew.stays_away = {"w2"}, {"w2"}
        crew.ready = {"w3": lambda machines: "w2" in machines._gone}

    run = Run(config_of(), in_threads, prepare=prepare)
    assert [event.worker for event in run.of(WorkerLost)] == ["w2"]
    assert run.result.rollbacks == 0
    assert run.result.weights_digest == in_memory(config_of()).weights_digest


def test_who_comes_back_while_the_run_goes_back_is_a_spare_and_gets_a_seat(in_threads: Any) -> None:
    """Both holders of stage 2 go at once; the new cluster is made without them, and they join it."""

    def at(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 3 and not run.of(RolledBack):
            run.stage.crew.kill("w2")
            run.stage.crew.kill("w3")
        if isinstance(event, RolledBack):
            run.stage.crew.start("w2")
            run.stage.crew.start("w3")
        if isinstance(event, StepSealed) and event.step == 1 and run.of(RolledBack):
            run.await_deployed("w2", "w3")

    run = Run(config_of(), in_threads, at)
    assert {event.worker for event in run.of(WorkerLost)} == {event.worker for event in run.of(Joined)} == {"w2", "w3"}
    assert {"w1", "w2", "w3"} <= set(run.of(Reseated)[-1].primaries)
    assert run.result.rollbacks == 1
    assert run.result.weights_digest == in_memory(config_of()).weights_digest


def test_one_message_that_nobody_may_send_ends_no_machine(in_threads: Any) -> None:
    def at(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 1:
            for victim in ("w1", "w3"):
                for order in (Seal(7), SendState(1, 0, "w2", None), Accepted(claim, b""), Loss(1, 0, 0, 0.0)):
                    run.stage.hub.ends["w2"].send(Envelope("w2", victim, order))

    claim = ClaimKey(1, 0, Direction.FORWARD, 1, 0)
    run = Run(config_of(), in_threads, at)
    assert run.of(WorkerLost) == []
    assert run.result.alerts == 0
    assert run.result.weights_digest == in_memory(config_of()).weights_digest


def test_what_a_machine_says_of_itself_cannot_spoil_the_report(in_threads: Any) -> None:
    said = (("forward", math.inf), ("forward", math.nan), ("backward", -5.0), ("<b>", 1.0), ("update", 1e12))

    def at(run: Run, event: Event) -> None:
        run.stage.hub.change = lambda envelope: (
            replace(envelope, message=replace(envelope.message, seconds=said, bytes_sent=-(1 << 60)))
            if isinstance(envelope.message, Tally) and envelope.sender == "w2"
            else envelope
        )

        if isinstance(event, StepSealed) and event.step == 3:
            used.update(run.stage.machines.launcher.seconds_by_kind)

    used: dict[str, float] = {}
    run = Run(config_of(), in_threads, at)
    assert "<b>" not in used
    assert used["forward"] > 0
    assert all(0 <= seconds < 1000 for seconds in used.values())
    assert run.result.bytes_sent > 0


def test_who_never_says_what_it_has_used_is_waited_for_once(in_threads: Any) -> None:
    def at(run: Run, event: Event) -> None:
        run.stage.hub.change = lambda envelope: None if isinstance(envelope.message, Tally) else envelope
        if isinstance(event, StepSealed) and event.step == 2:
            machines, began = run.stage.machines, time.monotonic()
            machines.tally()
            waited.append(time.monotonic() - began)
            for _ in range(50):
                machines.tally()
            waited.append(time.monotonic() - began - waited[0])

    waited: list[float] = []
    Run(config_of(), in_threads, at)
    assert waited[0] >= 2.0
    assert waited[1] < 50 * 2.0 / 4


def test_where_nobody_can_hold_more_the_run_waits_until_the_lost_machine_is_back(in_threads: Any) -> None:
    """Every worker has what its own stage and its shadow need: w2 goes, nobody can carry its stage beside his own."""
    layers, needs = job_of(config_of()).plan.layers, Needs(job_of(config_of()))
    own = [needs((layers[i], layers[i - 1]) if i > 1 else (layers[i],)) for i in range(1, 4)]
    first = needs((layers[0], layers[4], layers[3]))
    config = config_of(cluster={"memories": (first, *own, first)})

    def at(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 1:
            run.stage.crew.kill("w2")
        if isinstance(event, Paused):
            run.stage.crew.start("w2")

    run = Run(config, in_threads, at)
    (paused,) = run.of(Paused)
    assert "or for w2 to come back" in paused.reason
    assert [event.worker for event in run.of(Joined)] == ["w2"]
    assert run.of(Reseated)[-1].primaries.count("w2") == 1
    assert run.result.weights_digest == in_memory(config_of()).weights_digest


def test_a_run_that_is_stopped_while_it_waits_keeps_what_is_sealed(in_threads: Any) -> None:
    layers, needs = job_of(config_of()).plan.layers, Needs(job_of(config_of()))
    own = [needs((layers[i], layers[i - 1]) if i > 1 else (layers[i],)) for i in range(1, 4)]
    first = needs((layers[0], layers[4], layers[3]))

    def at(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 1:
            run.stage.crew.kill("w2")
        if isinstance(event, Paused):
            run.trainer.stop()

    run = Run(config_of(cluster={"memories": (first, *own, first)}), in_threads, at)
    assert run.result.interrupted
    assert run.result.steps == run.of(Paused)[0].step
    assert run.result.tokens == run.result.steps * 4 * 16


def test_machines_are_placed_as_they_say_they_are_and_the_weights_are_the_same(in_threads: Any) -> None:
    measured = {"placement": "measured", "move_every": 100, "memories": (10**9, 1000, 10**9, 10**9, 10**9)}
    run = Run(config_of(cluster=measured), in_threads)
    (placed,) = run.of(Placed)
    assert "w1" not in placed.primaries, "it has no room"
    assert run.result.weights_digest == in_memory(config_of()).weights_digest
    assert run.result.predicted_step_seconds > 0
    assert run.result.step_seconds > 0
