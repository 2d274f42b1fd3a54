"""A worker that crashes or stalls at any point of a step costs time and nothing else: no step, no bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, get_args

import pytest

from holdfast import Experiment, Faults
from holdfast.event import Reshadowed, TakenOver, WorkerLost
from holdfast.faults import Moment
from holdfast.result import RunResult

STAGES = (1, 2, 3, 4)
MOMENTS: tuple[Moment, ...] = get_args(Moment)
DEADLINE_S = 30.0
SHORT_S, LONG_S = 5.0, 500.0
NO_SHADOW_WORK = 1
"""Stage 0 has no shadow, so the worker of stage 1 keeps none."""


def check_lost(lab: Any, result: Any, lost: set[str]) -> None:
    """These workers are lost, nothing else is."""
    assert {event.worker for event in result.of(WorkerLost)} == lost
    assert result.digest == lab.clean(result).digest
    assert result.losses == lab.clean(result).losses
    assert (result.restarted, result.counts.rollbacks) == (0, 0)
    assert (result.counts.blamed_workers, result.false_alarms) == ({}, 0)


def strike(lab: Any, fault: str, lost: set[str], **settings: Any) -> Any:
    """A run with one fault that really strikes."""
    result = lab.run(faults=[fault], **settings)
    check_lost(lab, result, lost)
    return result


def reaches(stage: int, at: str) -> bool:
    """Whether the worker of the stage ever comes to this moment."""
    return not (stage == NO_SHADOW_WORK and at.startswith("shadow"))


QUICK = [(at, 1 + i % 4, i % 3) for i, at in enumerate(MOMENTS) if reaches(1 + i % 4, at)]
EVERY = [case for case in itertools.product(MOMENTS, STAGES, (0, 1, 2)) if reaches(case[1], case[0])]


@pytest.mark.parametrize(("at", "stage", "sent"), QUICK)
def test_a_crash_in_the_middle_of_a_step(lab: Any, at: str, stage: int, sent: int) -> None:
    result = strike(lab, f"crash stage={stage} step=0 at={at} sent={sent}", {f"w{stage}"}, steps=3)
    (taken,) = result.of(TakenOver)
    heir = f"w{stage + 1}" if stage < 4 else "initiator"
    assert (taken.stage, taken.lost, taken.heir) == (stage, f"w{stage}", heir)
    bare = {stage, stage - 1} - {0} - ({4} if heir == "initiator" else set())  # the initiator's own stages need no shadow
    assert {event.stage for event in result.of(Reshadowed)} == bare


@pytest.mark.parametrize(("at", "stage", "sent"), QUICK[::3])
def test_a_stall_past_the_deadline_is_a_crash(lab: Any, at: str, stage: int, sent: int) -> None:
    strike(lab, f"stall stage={stage} step=0 at={at} sent={sent} seconds={LONG_S}", {f"w{stage}"})


@pytest.mark.parametrize(("at", "stage", "sent"), QUICK[1::4])
def test_a_short_stall_costs_its_time(lab: Any, at: str, stage: int, sent: int) -> None:
    result = strike(lab, f"stall stage={stage} step=0 at={at} sent={sent} seconds={SHORT_S}", set())
    assert result.virtual_s > lab.clean(result).virtual_s + 0.8 * SHORT_S


def test_a_crash_at_the_last_seal(lab: Any) -> None:
    """The run is over before anybody notices; the shadow shows the state that was sealed."""
    strike(lab, "crash stage=2 step=0 at=seal", set(), steps=1)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "schedule"), [(0, "1f1b"), (1, "gpipe"), (1, "1f1b"), (2, "1f1b")])
@pytest.mark.parametrize(("at", "stage", "sent"), EVERY)
def test_a_crash_at_every_moment(lab: Any, at: str, stage: int, sent: int, step: int, schedule: str) -> None:
    fault = f"crash stage={stage} step={step} at={at} sent={sent}"
    over = step == 2 and (at == "seal" or (at == "update" and sent > 0))  # before anybody notices
    strike(lab, fault, set() if over else {f"w{stage}"}, steps=3, schedule=schedule)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [SHORT_S, 1.5 * DEADLINE_S, LONG_S])
@pytest.mark.parametrize(("at", "stage", "sent"), EVERY)
def test_a_stall_at_every_moment(lab: Any, at: str, stage: int, sent: int, seconds: float) -> None:
    fault = f"stall stage={stage} step=1 at={at} sent={sent} seconds={seconds}"
    strike(lab, fault, {f"w{stage}"} if seconds == LONG_S else set(), steps=3)


# -- more than one -------------------------------------------------------------------------------------------------------


PAIRS = [(1, 3), (2, 4), (1, 4)]


@pytest.mark.parametrize(("first", "second"), PAIRS[:2])
def test_two_that_are_not_neighbours_crash_in_one_step(lab: Any, first: int, second: int) -> None:
    faults = Faults().crash(stage=first, step=0, at="backward").crash(stage=second, step=0, at="forward", sent=1)
    check_lost(lab, lab.run(faults=faults), {f"w{first}", f"w{second}"})


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize(("one", "other"), list(itertools.product(MOMENTS, MOMENTS)))
def test_two_that_are_not_neighbours_crash_at_every_pair_of_moments(
    lab: Any, one: Moment, other: Moment, first: int, second: int
) -> None:
    if not reaches(first, one):
        one = "forward"
    faults = Faults().crash(stage=first, step=1, at=one).crash(stage=second, step=1, at=other)
    check_lost(lab, lab.run(faults=faults, steps=3), {f"w{first}", f"w{second}"})


def one_after_another(order: tuple[int, ...]) -> Faults:
    """A crash a step, each at another moment."""
    moments: tuple[Moment, ...] = ("backward", "begin", "update", "forward")
    faults = Faults()
    for step, worker in enumerate(order):
        faults = faults.crash(worker=f"w{worker}", step=step, at=moments[step])
    return faults


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (3, 2, 4, 1)])
def test_one_after_another_until_only_the_initiator_is_left(lab: Any, order: tuple[int, ...]) -> None:
    result = lab.run(faults=one_after_another(order), steps=5)
    check_lost(lab, result, {"w1", "w2", "w3", "w4"})
    assert result.of(TakenOver)[-1].heir == "initiator"


@pytest.mark.slow
@pytest.mark.parametrize("order", list(itertools.permutations(STAGES)))
def test_one_after_another_in_any_order(lab: Any, order: tuple[int, ...]) -> None:
    check_lost(lab, lab.run(faults=one_after_another(order), steps=5), {"w1", "w2", "w3", "w4"})


def check_lost_among_lies(lab: Any, attack: str, liar: int, lost: int, at: str) -> None:
    result = lab.run(attack=f"{attack},worker=w{liar}", faults=[f"crash worker=w{lost} step=1 at={at}"], steps=3)
    assert {event.worker for event in result.of(WorkerLost)} == {f"w{lost}"}
    assert result.attacked == result.detected > 0
    assert (result.missed, result.false_alarms) == (0, 0)
    assert result.blamed <= {f"w{liar}"}
    assert (result.restarted, result.counts.rollbacks) == (0, 0)
    assert result.digest == lab.clean(result).digest


@pytest.mark.parametrize(
    ("attack", "liar", "lost", "at"),
    [
        ("sign-flip,direction=both", 1, 3, "backward"),
        ("framing,direction=both", 4, 2, "forward"),
        ("wrong-update", 1, 4, "update"),
    ],
)
def test_a_crash_while_somebody_else_lies(lab: Any, attack: str, liar: int, lost: int, at: str) -> None:
    check_lost_among_lies(lab, attack, liar, lost, at)


LIES = ("sign-flip,direction=both", "gaussian,direction=both", "wrong-gradient,mode=state", "wrong-update", "wrong-norm")
LIES_OF_SHADOWS = ("framing,direction=both", "corrupt-shadow")


@pytest.mark.slow
@pytest.mark.parametrize("at", MOMENTS)
@pytest.mark.parametrize(("liar", "lost"), [(1, 3), (1, 4), (2, 4), (3, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("attack", [*LIES, *LIES_OF_SHADOWS])
def test_a_crash_at_every_moment_while_somebody_else_lies(lab: Any, attack: str, liar: int, lost: int, at: str) -> None:
    if not reaches(lost, at) or (liar == 1 and attack in LIES_OF_SHADOWS):
        pytest.skip("the worker of stage 1 keeps no shadow")
    check_lost_among_lies(lab, attack, liar, lost, at)


# -- beyond the fault window ---------------------------------------------------------------------------------------------


WHOLE_RUN: dict[str, Any] = {
    "model": {"name": "gpt2:layers=6,width=16,heads=2"},
    "data": {"name": "synthetic", "sequence_length": 8, "validation_tokens": 64},
    "cluster": {"wire_check": True},
    "micro_batches": 2,
    "micro_batch_size": 2,
    "steps": 3,
}


@pytest.fixture(scope="module")
def clean_run() -> RunResult:
    return Experiment(**WHOLE_RUN).run()


def check_fallen_back(clean: RunResult, faults: Faults, **settings: Any) -> None:
    result = Experiment(**WHOLE_RUN, faults=faults, **settings).run()
    assert (result.rollbacks, result.steps_restarted) == (1, 0)
    assert result.weights_digest == clean.weights_digest
    assert result.train_loss == clean.train_loss
    assert (result.false_alarms, result.blamed_workers) == (0, {})


def test_both_holders_of_a_stage_are_lost(clean_run: RunResult) -> None:
    """The run falls back to what is certified, here the start, and ends as if nothing had been."""
    check_fallen_back(clean_run, Faults().crash(stage=2, step=1, at="backward").crash(stage=3, step=1, at="forward"))


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("at", [at for at in MOMENTS if at != "shadow-backward"])  # by then the shadow is primary
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_both_holders_of_any_stage_are_lost(clean_run: RunResult, tmp_path: Path, stage: int, at: Moment, every: int) -> None:
    """To the start where there is no checkpoint, to the last one where there is."""
    faults = Faults().crash(stage=stage, step=1, at="forward").crash(stage=stage + 1, step=1, at=at)
    check_fallen_back(clean_run, faults, out=str(tmp_path / "run"), checkpoint_every=every)
