"""Whole runs without shadows: signed claims stand until they are drawn; who lied is named, and the end is the clean one."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.event import Alert, Banned, Event, Reseated, RolledBack, Ruling, SpotChecked, WorkerLost
from holdfast.evidence.audit_log import Status, audit
from holdfast.evidence.casebook import Law
from holdfast.result import RunResult
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge, misstates

TINY: dict[str, Any] = {
    "model": "gpt2:layers=6,width=16,heads=2",
    "data": "synthetic",
    "seq_length": 8,
    "vocabulary": 300,
    "steps": 8,
    "stages": 6,
    "micro_batches": 2,
    "micro_batch_size": 2,
    "warmup_steps": 2,
    "seed": 5,
    "wire_check": True,
}


class Told(list[Event]):
    """Every event of a run."""

    def __call__(self, event: Event, _seconds: float) -> None:
        self.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]


def run(**settings: Any) -> tuple[RunResult, Told]:
    told = Told()
    return Experiment(**{**TINY, **settings}, observers=[told]).run(), told


@cache
def clean_digest(steps: int = 8) -> str:
    return run(defence="none", steps=steps)[0].weights_digest


def test_with_nobody_lying_the_checks_change_no_bit() -> None:
    for settings in ({"defence": "spot-check"}, {"defence": "statistics"}, {"check_claims": 0.2, "check_steps": 0.2}):
        result, told = run(**settings)
        assert result.weights_digest == clean_digest()
        assert (result.alerts, result.rollbacks, result.certified) == (0, 0, True)
        assert result.claims_checked == sum(event.claims for event in told.of(SpotChecked)) > 0


LIES = {
    "a forged activation": "sign-flip,worker=w2,rate=1.0",
    "a forged gradient of the input": "gaussian,worker=w2",
    "one forged claim": "zeros,worker=w3,micro_batches=1",
    "an honest run on another input": "other-input,worker=w2",
    "a false weight gradient": "wrong-gradient,mode=state,worker=w1",
    "false norms": "wrong-norm,worker=w4",
    "a false update": "wrong-update,mode=state,worker=w2",
    "a false update, hidden": "wrong-update,mode=secret,worker=w2",
}


@pytest.mark.parametrize("lie", LIES)
def test_with_every_step_checked_any_lie_is_seen_in_its_own_step(lie: str) -> None:
    attack = f"{LIES[lie]},first_step=3"
    result, told = run(defence="spot-check", check_steps=1.0, attack=attack)
    liar = attack.partition("worker=")[2].partition(",")[0]
    assert result.weights_digest == clean_digest()
    assert set(result.blamed_workers) == {liar}
    assert (result.missed, result.false_alarms, result.rollbacks) == (0, 0, 1)
    assert [event.worker for event in told.of(Banned)] == [liar]
    assert min(event.key.step for event in told.of(Ruling)) == 3


def test_a_liar_is_caught_within_some_steps_and_its_lies_are_undone() -> None:
    """With q = 0.3 and a window that reaches back to the first lie, the end is the clean one, whenever the draw falls."""
    result, told = run(defence="spot-check", check_steps=0.3, window=8, attack="sign-flip,worker=w2,first_step=2")
    (back,) = told.of(RolledBack)
    assert back.version == 2
    assert back.step > 3
    assert result.weights_digest == clean_digest()
    assert set(result.blamed_workers) == {"w2"}


def test_who_will_not_open_its_state_is_guilty_of_the_update_that_made_it() -> None:
    """The hidden update was signed honestly; the state that was sealed exists nowhere any more, the one before it does."""
    result, told = run(defence="spot-check", check_steps=1.0, attack="wrong-update,mode=secret,worker=w2,first_step=3")
    reasons = {event.reason for event in told.of(Ruling)}
    assert {"state", "unopened"} <= reasons
    assert 30 < result.virtual_seconds < 60, "it is asked twice within one deadline"
    assert [event.version for event in told.of(RolledBack)] == [3]


def test_the_campaign_of_the_paper_ends_with_the_clean_weights() -> None:
    """Whoever sits on a struck stage lies: one after another is convicted, until the initiator has the rest to itself."""
    result, _ = run(defence="spot-check", check_steps=1.0, attack="sign-flip,rate=0.7,direction=both")
    assert result.weights_digest == clean_digest()
    assert result.missed == 0
    assert result.false_alarms == 0


def test_what_is_withheld_from_a_neighbour_comes_through_the_coordinator() -> None:
    result, told = run(defence="spot-check", attack="withhold,what=direct,worker=w2,first_step=4")
    assert result.weights_digest == clean_digest()
    assert told.of(WorkerLost) == []
    assert result.rollbacks == 0


@pytest.mark.parametrize("what", ["everyone", "board"])
def test_who_withholds_from_the_coordinator_is_lost_and_not_its_victim(what: str) -> None:
    result, told = run(defence="spot-check", attack=f"withhold,what={what},worker=w2,first_step=4")
    assert result.weights_digest == clean_digest()
    assert {event.worker for event in told.of(WorkerLost)} == {"w2"}


def test_another_tensor_under_the_claimed_header_is_proven_by_asking_for_it() -> None:
    """To one receiver it sends what it did not claim, to the coordinator the truth: nobody is named, nothing is lost."""
    result, told = run(defence="spot-check", attack="lie-on-direct,header=false,worker=w2,first_step=4")
    assert result.weights_digest == clean_digest()
    assert told.of(Ruling) == []
    assert result.rollbacks == 0
    assert {event.reason for event in told.of(Alert)} == {"delivery"}


def test_a_crash_sends_the_run_back_to_a_certified_checkpoint() -> None:
    result, told = run(defence="spot-check", fault=["crash stage=2 step=5"])
    assert [event.version for event in told.of(RolledBack)] == [0]
    assert result.weights_digest == clean_digest()


def test_seats_change_and_no_bit_does() -> None:
    for settings in ({"defence": "spot-check"}, {"defence": "duplicate"}, {"defence": "duplicate", "check_steps": 0.5}):
        result, told = run(redraw_every=2, **settings)
        assert len(told.of(Reseated)) == 3
        assert result.weights_digest == clean_digest()
        assert (result.alerts, result.rollbacks) == (0, 0)


def test_a_lie_in_another_seat_is_traced_to_whoever_sat_there() -> None:
    """w2 lies wherever it sits; every step is checked."""
    result, _ = run(defence="spot-check", check_steps=1.0, redraw_every=2, attack="sign-flip,worker=w2,first_step=5")
    assert set(result.blamed_workers) == {"w2"}
    assert result.weights_digest == clean_digest()


def test_the_draw_is_a_secret_of_the_coordinator() -> None:
    def drawn(**settings: Any) -> list[tuple[int, int]]:
        return sorted((e.step, e.stage) for e in run(defence="spot-check", check_steps=0.5, **settings)[1].of(SpotChecked))

    def secret(seed: int) -> dict[str, Any]:
        return {"defence": {"name": "spot-check", "check_steps": 0.5, "check_seed": seed}}

    assert drawn() == drawn()
    one, other = ([(e.step, e.stage) for e in run(**secret(seed))[1].of(SpotChecked)] for seed in (1, 2))
    assert one != other


def test_evidence_of_a_spot_check_holds_without_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(defence="spot-check", check_steps=1.0, attack="sign-flip,worker=w2,first_step=3", out=str(out))
    found = audit((out / "evidence.jsonl").read_bytes(), Law(compare, judge, misstates))
    assert found.status is Status.INTACT, found.fault
    assert set(found.guilty) == {"w2"}
    told = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert "claims_checked" in json.dumps(told)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = Told()
    first = Experiment(
        **{**TINY, "out": str(out), "checkpoint_every": 2, "defence": "spot-check", "check_steps": 0.5}, observers=[told]
    )
    first._trainer._chronicle.observers += (lambda event, _s: first.stop() if getattr(event, "step", None) == 4 else None,)
    assert first.run().interrupted
    result = Experiment(resume=out).run()
    assert result.weights_digest == clean_digest()
    assert result.certified


def test_checkpoints_after_a_lie_are_removed(tmp_path: Path) -> None:
    """A checkpoint is written when all that was drawn has come back; the lie in it was drawn by a later step of its author."""
    out = tmp_path / "run"
    settings = {"defence": "spot-check", "check_steps": 0.15, "checkpoint_every": 1, "keep": 8, "out": str(out)}
    result, told = run(attack="sign-flip,worker=w2,first_step=2", **settings)
    (back,) = told.of(RolledBack)
    assert back.version == 2
    assert result.weights_digest == clean_digest()
    written = [event.step for event in told if type(event).__name__ == "CheckpointWritten"]
    assert written.count(3) == 2, "once with the lie in it, once without"


# -- two who agree -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["claims", "gradient", "update"])
def test_two_adjacent_liars_who_agree_pass_every_neighbour_and_are_caught_by_the_draw(what: str) -> None:
    attack = f"collusion,what={what},stages=2,first_step=3"
    unchecked, _ = run(attack=attack)
    assert unchecked.detected == 0
    assert unchecked.weights_digest != clean_digest()
    result, told = run(attack=attack, check_steps=1.0)
    assert result.weights_digest == clean_digest()
    assert set(result.blamed_workers) == {"w2", "w3"}
    assert (result.missed, result.false_alarms) == (0, 0)
    assert [event.version for event in told.of(RolledBack)] == [3]


def test_drawn_claims_find_them_too() -> None:
    result, _ = run(attack="collusion,stages=2,first_step=3", check_claims=0.5)
    assert set(result.blamed_workers) == {"w2", "w3"}
    assert result.weights_digest == clean_digest()


def test_a_lie_about_an_update_that_was_never_made_alarms_about_nothing_else() -> None:
    """Only the header lies: nobody has a state with the sealed digest."""
    result, _ = run(defence="spot-check", attack="wrong-update,worker=w2,first_step=2", check_steps=0.5)
    assert result.weights_digest == clean_digest()
    assert (set(result.blamed_workers), result.false_alarms) == ({"w2"}, 0)
