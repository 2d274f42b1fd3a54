"""Machines prove slow, or go: seats and cuts change between two steps, and the final weights do not."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from holdfast.bench.workshop import job_of
from holdfast.cast import Troupe
from holdfast.claim import StageState
from holdfast.cluster import Cluster
from holdfast.config import RunConfig, resolve
from holdfast.engine import MemoryEngine
from holdfast.errors import CheckpointError, ConfigError, FaultWindowExceeded, NotEnoughMemory
from holdfast.event import CheckpointFailed, CheckpointWritten, Event, Paced, Paused, Placed, Reseated, Resumed, StepSealed
from holdfast.evidence.identity import generate
from holdfast.journal import FOLDER, Journal
from holdfast.placement.load import Needs
from holdfast.placement.recut import recut
from holdfast.result import RunResult
from holdfast.settings import merge
from holdfast.trainer import Trainer

SMALL: dict[str, Any] = {
    "model": {"name": "gpt2:layers=8,width=16,heads=2"},
    "data": {"name": "synthetic", "sequence_length": 8, "vocabulary": 300, "validation_tokens": 64},
    "pipeline": {"stages": 6, "micro_batches": 4, "micro_batch_size": 1},
    "training": {"steps": 12},
}
SLOW = ["slow worker=w2 step=3 factor=4"]
MEASURED = {"placement": "measured", "move_every": 5}


def config_of(**changes: Any) -> RunConfig:
    return resolve(merge(SMALL, changes))


class Run:
    def __init__(self, config: RunConfig, engine: MemoryEngine | None = None, **more: Any) -> None:
        self.events: list[tuple[Event, float]] = []
        troupe = Troupe(config) if config.faults else None
        opened = {} if engine is None else {"open_engine": lambda: engine}
        observe = lambda event, seconds: self.events.append((event, seconds))  # noqa: E731
        trainer = Trainer(config, cast=troupe, observers=[observe], job=job_of(config), **opened, **more)
        self.result: RunResult = trainer.run()

    def of(self, kind: type) -> list[Any]:
        return [event for event, _ in self.events if isinstance(event, kind)]

    @property
    def step_times(self) -> list[float]:
        sealed = [seconds for event, seconds in self.events if isinstance(event, StepSealed)]
        return [after - before for before, after in itertools.pairwise(sealed)]


@cache
def clean_digest() -> str:
    return Run(config_of(defence="none")).result.weights_digest


# -- another cut, the same bits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defence", ["none", "duplicate"])
def test_an_unlike_cut_gives_the_weights_of_the_even_one(defence):
    speeds = {"speeds": (1.0, 0.5, 1.0, 0.8, 0.3, 1.0), **MEASURED}
    run = Run(config_of(defence=defence, cluster=speeds))
    assert run.of(Placed)[0].layers != job_of(config_of()).plan.layers
    assert run.result.weights_digest == clean_digest()
    assert run.result.step_seconds == pytest.approx(run.result.predicted_step_seconds, rel=0.005)


def test_the_plan_is_told_before_the_first_step_and_the_real_time_after_three():
    run = Run(config_of())
    (placed,), (paced,) = run.of(Placed), run.of(Paced)
    assert placed.primaries == ("initiator", "w1", "w2", "w3", "w4", "initiator")
    assert placed.layers == job_of(config_of()).plan.layers
    assert (paced.step, paced.predicted_s) == (3, placed.step_s)
    assert paced.measured_s == pytest.approx(placed.step_s, rel=0.005)


# -- slow machines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defence", "schedule"), [("duplicate", "1f1b"), ("duplicate", "gpipe"), ("none", "1f1b"), ("spot-check", "1f1b")]
)
def test_a_machine_that_proves_slow_gets_less_to_do(defence, schedule):
    run = Run(config_of(defence=defence, schedule=schedule, faults=SLOW, cluster=MEASURED))
    first, second, *_ = run.of(Placed)
    assert "w2 takes 4.0 times as long as expected" in second.cause
    slow, before = run.step_times[3], run.step_times[0]
    assert slow > 1.5 * before
    assert run.step_times[-1] < 0.75 * slow
    assert run.result.step_seconds == pytest.approx(second.step_s, rel=0.02)
    assert run.result.weights_digest == clean_digest()
    assert second.step - first.step >= MEASURED["move_every"]


def test_nothing_moves_where_nothing_is_off():
    run = Run(config_of(cluster={**MEASURED, "move_every": 1, "latency_s": 0.02}))
    assert len(run.of(Placed)) == 1
    assert not run.of(Reseated)


def test_who_lists_its_machines_keeps_them():
    run = Run(config_of(faults=SLOW))
    assert len(run.of(Placed)) == 1
    assert run.step_times[-1] > 1.5 * run.step_times[0]


def test_a_gain_below_the_threshold_moves_nobody():
    run = Run(config_of(faults=SLOW, cluster={**MEASURED, "move_gain": 0.9}))
    assert len(run.of(Placed)) == 1


def test_moves_keep_their_distance():
    faults = [*SLOW, "slow worker=w3 step=7 factor=4"]
    run = Run(config_of(faults=faults, cluster={**MEASURED, "move_every": 4, "move_gain": 0.02}))
    steps = [placed.step for placed in run.of(Placed)]
    assert len(steps) == 3
    assert all(after - before >= 4 for before, after in itertools.pairwise(steps))
    assert run.result.weights_digest == clean_digest()


def test_with_a_layer_a_stage_only_seats_change():
    """Nothing can be cut anew, so states go from holder to holder, and the cluster stays."""
    settings = {"model": {"name": "gpt2:layers=6,width=16,heads=2"}, "cluster": {**MEASURED, "latency_s": 0.05}}
    clean = Run(config_of(**settings, defence="none"))
    run = Run(config_of(**settings, faults=["slow worker=w4 step=3 factor=6"]))
    assert run.of(Reseated)
    assert len(run.of(Placed)) == 2
    assert run.of(Placed)[-1].primaries == run.of(Reseated)[-1].primaries
    assert run.step_times[-1] < run.step_times[3]
    assert run.result.weights_digest == clean.result.weights_digest


def test_chance_and_measurement_cannot_both_seat_workers():
    with pytest.raises(ConfigError, match=r"placement 'measured' and redraw_every"):
        config_of(cluster=MEASURED, redraw_every=4)


def test_states_are_put_together_for_another_cut_or_not_at_all():
    job = job_of(config_of())
    states = {i: job.initial_state(i) for i in range(6)}
    other = job.recut(((0, 1), (1, 2), (2, 4), (4, 6), (6, 7), (7, 8)))
    found = recut(states, other.plan)
    assert found is not None
    back = recut(found, job.plan)
    assert back is not None
    assert all(back[i].weights.keys() == states[i].weights.keys() for i in states)
    old = states[2]
    states[2] = StageState(2, old.version, old.updates + 1, old.weights, old.moments)
    assert recut(states, other.plan) is None, "a skipped stage is younger than its neighbours"


class Death(Exception):
    """The host dies here."""


class Lives:
    """A run with a journal, as a host has it; it dies where it has told of its second placement."""

    def __init__(self, out: Path) -> None:
        self.config = config_of(stages=4, faults=["slow worker=w2 step=3 factor=6"], cluster=MEASURED, out=str(out))
        self.events: list[Event] = []
        self.journal = Journal(out / FOLDER, generate())

    def live(self, *, dies: bool, resume: Path | None = None) -> RunResult:
        def at(event: Event, _seconds: float) -> None:
            self.events.append(event)
            if dies and isinstance(event, Placed) and event.step:
                raise Death

        config, cast = self.config, Troupe(self.config)
        return Trainer(config, cast=cast, observers=[at], job=job_of(config), journal=self.journal, resume=resume).run()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_a_host_that_dies_when_its_stages_are_cut_anew_repeats_no_step(tmp_path):
    """Machines forget the old stages when they get the new ones, and the journal knows only of the old."""
    run = Lives(tmp_path / "run")
    with pytest.raises(Death):
        run.live(dies=True)
    cut = run.of(Placed)[-1]
    assert cut.layers != run.of(Placed)[0].layers
    result = run.live(dies=False, resume=tmp_path / "run")
    assert [event.version for event in run.of(Resumed)] == [cut.step]
    assert [event.step for event in run.of(StepSealed)] == list(range(12))
    assert result.weights_digest == clean_digest()


def test_what_cannot_be_kept_is_not_cut_anew(tmp_path, monkeypatch):
    def full(*_args, **_more):
        raise CheckpointError("no space left")

    monkeypatch.setattr("holdfast.keeper.write_checkpoint", full)
    run = Lives(tmp_path / "run")
    result = run.live(dies=True)
    assert len(run.of(Placed)) == 1
    assert run.of(CheckpointFailed)
    assert result.weights_digest == clean_digest()


# -- memory ---------------------------------------------------------------------------------------------------------------


def tight(initiator: int) -> dict[str, Any]:
    """Every worker has what its stage and its shadow need, and no more; the initiator so many times what it needs."""
    layers, needs = job_of(config_of()).plan.layers, Needs(job_of(config_of()))
    own = [needs((layers[i], layers[i - 1]) if i > 1 else (layers[i],)) for i in range(1, 5)]
    first = initiator * needs((layers[0], layers[5], layers[4]))
    return {"memories": (first, *own, first)}


CRASH = ["crash stage=2 step=4 at=backward"]


def test_survivors_carry_more_as_far_as_their_memory_goes():
    run = Run(config_of(faults=CRASH, cluster=tight(10)))
    (seats,) = run.of(Reseated)
    assert seats.primaries.count("initiator") == 3, "the heir has too little, the initiator enough"
    assert not run.of(Paused)
    assert run.result.weights_digest == clean_digest()


def test_where_nobody_has_enough_the_run_says_so_and_keeps_what_it_has(tmp_path):
    config = config_of(faults=CRASH, cluster=tight(1), out=str(tmp_path / "run"))
    events: list[Event] = []
    trainer = Trainer(config, cast=Troupe(config), observers=[lambda event, _seconds: events.append(event)], job=job_of(config))
    with pytest.raises(
        NotEnoughMemory, match=r"before step 5: w3 would hold stages 1, 2, 3: .*or for w2 to come back, and nobody"
    ):
        trainer.run()
    (written,) = [event for event in events if isinstance(event, CheckpointWritten)]
    assert written.step == 5
    assert sum(isinstance(event, Paused) for event in events) == 1


def test_that_the_states_cannot_be_kept_does_not_hide_why_the_run_ends(monkeypatch):
    def lacking(cluster):
        raise FaultWindowExceeded("no holder of stages [2] has sent the state that was sealed")

    monkeypatch.setattr(Cluster, "collect", lacking)
    with pytest.raises(NotEnoughMemory, match=r"w3 would hold stages 1, 2, 3: .* could not be kept: no holder of stages \[2\]"):
        Run(config_of(faults=CRASH, cluster=tight(1)))


class Returning(MemoryEngine):
    """w2 is back at virtual second 60."""

    def deploy(self, ensemble, hooks):
        launcher = super().deploy(ensemble, hooks)
        launcher.later(60.0, lambda: launcher.join(ensemble.builder.worker("w2", ensemble.sign("w2"))))
        return launcher


def test_the_run_waits_and_goes_on_when_a_machine_comes():
    config = config_of(faults=CRASH, cluster=tight(1))
    run = Run(config, Returning(config, Troupe(config)))
    (paused,) = run.of(Paused)
    assert "waits for a machine with at least" in paused.reason
    assert max(run.step_times) > 30, "it has waited"
    assert run.of(Reseated)[-1].primaries.count("w2") == 1
    assert run.result.weights_digest == clean_digest()


def test_a_plan_that_a_machine_cannot_hold_is_refused_at_once():
    with pytest.raises(NotEnoughMemory, match=r"w1 has .*, but its stages and shadows need"):
        Run(config_of(cluster={"memories": (10**9, 10, 10**9, 10**9, 10**9, 10**9)}))


def test_a_measured_placement_goes_round_who_has_no_memory():
    run = Run(config_of(cluster={**MEASURED, "memories": (10**9, 10, 10**9, 10**9, 10**9, 10**9)}))
    assert "w1" not in run.of(Placed)[0].primaries
    assert run.result.weights_digest == clean_digest()
