"""Misconduct that forges no claim, or that no neighbour catches: lateness, false complaints, false states, two who agree."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.event import Alert, Banned, Ruling, TakenOver, WorkerLost
from holdfast.experiment import Experiment
from holdfast.result import RunResult

ALERTS_OF_SILENCE = {"withheld"}


def lost(result: Any) -> set[str]:
    return {event.worker for event in result.of(WorkerLost)}


def check_nobody_named(lab: Any, result: Any) -> None:
    """No alarm, no name, no restart, the clean weights."""
    assert result.digest == lab.clean(result).digest
    assert result.losses == lab.clean(result).losses
    assert (result.blamed, result.false_alarms) == (set(), 0)
    assert (result.restarted, result.counts.rollbacks) == (0, 0)


# -- honest bytes --------------------------------------------------------------------------------------------------------


HONEST_BYTES = [
    "delay,direction=forward",
    "delay,direction=backward",
    "delay",
    "replay-claim",
    "replay-claim,direction=both",
    "lazy,mode=copy",
]


@pytest.mark.parametrize(("attack", "stage"), [(attack, 1 + i % 3) for i, attack in enumerate(HONEST_BYTES)])
def test_honest_bytes_name_nobody(lab: Any, attack: str, stage: int) -> None:
    check_honest_bytes(lab, attack, stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize("attack", HONEST_BYTES)
def test_all_honest_bytes_name_nobody(lab: Any, attack: str, stage: int) -> None:
    check_honest_bytes(lab, attack, stage)


def check_honest_bytes(lab: Any, attack: str, stage: int) -> None:
    result = lab.run(attack=f"{attack},stages={stage}", steps=3)
    check_nobody_named(lab, result)
    assert (result.attacked, result.of(Alert), lost(result)) == (0, [], set())
    if attack.startswith("delay"):
        assert result.virtual_s > lab.clean(result).virtual_s, "nothing was late; the test shows nothing"
    if attack.startswith("replay"):
        headers = [header for sender, header in result.posted if sender == f"w{stage}"]
        assert len(headers) > len(set(headers)), "nothing was sent twice; the test shows nothing"


def test_a_worker_that_waits_for_its_own_claims_costs_a_deadline_and_no_seat(lab: Any) -> None:
    """After three pieces of work: there are not as many before its own claim is needed."""
    result = lab.run(attack="delay,pieces=3,stages=2")
    check_nobody_named(lab, result)
    assert result.attacked == 0
    assert {event.reason for event in result.of(Alert)} == ALERTS_OF_SILENCE
    assert not lost(result)


@pytest.mark.parametrize("how", ["instead", "relabelled"])
def test_who_only_repeats_itself_says_nothing_and_is_lost(lab: Any, how: str) -> None:
    """The old header is of another step, and the old signature fits no other: neither proves a lie, neither is a claim."""
    result = lab.run(attack=f"replay-claim,how={how},worker=w2", steps=3)
    check_nobody_named(lab, result)
    assert lost(result) == {"w2"}
    assert [event.heir for event in result.of(TakenOver)] == ["w3"]
    assert result.attacked == result.detected > 0
    assert result.missed == 0


# -- stale weights and disguises under other remedies --------------------------------------------------------------------


@pytest.mark.parametrize("remedy", ["restart", "relay"])
def test_a_stale_worker_computes_with_the_true_weights_again(lab: Any, remedy: str) -> None:
    """The second attempt is not struck: what was put aside must be back."""
    result = lab.run(attack="stale-weights,stages=3,worker=w3", steps=3, on_alert=remedy)
    assert result.digest == lab.clean(result).digest
    assert result.blamed == {"w3"}
    assert (result.missed, result.false_alarms) == (0, 0)
    assert result.restarted == 2


def test_a_clean_twin_lies_less_often_and_is_caught_each_time(lab: Any) -> None:
    result = lab.run(attack="clean-twin,shy=1,stages=2", steps=5)
    assert {key.step for key in result.ledger.keys} == {0, 2, 4}
    assert (result.detected, result.missed, result.false_alarms) == (result.attacked, 0, 0)
    assert result.blamed == {"w2"}
    assert result.digest == lab.clean(result).digest


def test_a_sleeper_that_steps_away_from_its_threshold(lab: Any) -> None:
    """Inside one numerics class no lie is small enough, the first of a long growth neither."""
    result = lab.run(attack="sleeper,sleep=1,then=creep+start=1e-4,stages=3", steps=3)
    assert {key.step for key in result.ledger.keys} == {1, 2}
    assert (result.detected, result.missed, result.false_alarms) == (result.attacked, 0, 0)
    assert result.blamed == {"w3"}
    assert result.digest == lab.clean(result).digest


# -- false states --------------------------------------------------------------------------------------------------------


def test_a_false_state_for_the_checkpoint_is_not_taken(lab: Any) -> None:
    result = lab.run(attack="substitute,stages=2,times=0")
    assert result.digest == lab.clean(result).digest
    assert result.blamed <= {"w2"}, "named where its state comes before the run is over"
    assert result.false_alarms == 0
    assert result.ledger.misdeeds == {("w2", key) for _, key in result.ledger.misdeeds} != set()
    assert result.attacked == 0


def test_a_false_state_for_the_referee_is_not_computed_from(lab: Any) -> None:
    result = lab.run(attack=["sign-flip,stages=2", "substitute,stages=2,times=0"])
    assert len(result.ledger.misdeeds) > 1, "the referee asked for none; the test shows nothing"
    assert (result.detected, result.missed, result.false_alarms) == (result.attacked, 0, 0)
    assert result.blamed == {"w2"}
    assert result.digest == lab.clean(result).digest


@pytest.mark.parametrize("stage", [2, 4])
def test_a_false_state_for_a_new_holder_is_asked_for_again(lab: Any, stage: int) -> None:
    """w3 is lost: its neighbours' stages need new shadows, and one of the sources sends another state first."""
    result = lab.run(attack=f"substitute,stages={stage}", faults=["crash stage=3 step=1 at=forward"], steps=3)
    assert result.digest == lab.clean(result).digest
    assert result.blamed <= {f"w{stage}"}, "named where a trusted holder was among those who asked"
    assert result.false_alarms == 0
    assert lost(result) == {"w3"}
    assert result.ledger.misdeeds, "no false state was sent; the test shows nothing"


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


@pytest.mark.parametrize("liar", [1, 2, 3])
def test_who_sends_false_states_only_is_out_and_not_the_new_holder(clean_run: RunResult, liar: int) -> None:
    """Workers change stages, and nobody else has that one: its new holder gets nothing right, through no fault of its own."""
    experiment = Experiment(**WHOLE_RUN, defence="spot-check", redraw_every=1, attack=f"substitute,worker=w{liar},times=0")
    result = experiment.run()
    events = [event for event, _ in experiment._recorder.events]
    assert [event.worker for event in events if isinstance(event, WorkerLost)] == [f"w{liar}"]
    assert result.blamed_workers.keys() == {f"w{liar}"}
    assert {event.reason for event in events if isinstance(event, Ruling)} == {"state"}
    assert (result.weights_digest, result.false_alarms, result.rollbacks) == (clean_run.weights_digest, 0, 1)
    assert result.virtual_seconds < 30, "no deadline had to pass"


# -- complaints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize("attack", ["flood", "flood,direction=backward"])
def test_a_flood_of_complaints_names_its_author(lab: Any, attack: str, stage: int) -> None:
    """Of what another holder sent, then of what the coordinator itself did; where the sender is trusted, at once."""
    result = lab.run(attack=f"{attack},worker=w{stage}")
    assert result.digest == lab.clean(result).digest
    assert result.losses == lab.clean(result).losses
    assert result.blamed == {f"w{stage}"}
    assert {event.reason for event in result.of(Ruling)} == {"complaint"}
    assert (result.missed, result.false_alarms, result.restarted, result.counts.rollbacks) == (0, 0, 0, 0)


@pytest.mark.parametrize("remedy", ["restart", "relay", "skip"])
def test_a_flood_costs_no_step_whatever_the_remedy(lab: Any, remedy: str) -> None:
    result = lab.run(attack="flood,worker=w2", on_alert=remedy)
    assert result.digest == lab.clean(result).digest
    assert (result.blamed, result.false_alarms, result.restarted) == ({"w2"}, 0, 0)


def test_who_floods_loses_its_seat_whatever_the_ban_policy(lab: Any) -> None:
    result = lab.run(attack="flood,worker=w2", steps=3)
    assert {event.worker for event in result.of(Banned)} == {"w2"}
    assert result.digest == lab.clean(result).digest


def test_one_complaint_a_step_costs_one_more_delivery_and_proves_nothing(lab: Any) -> None:
    """About the first delivery of w1 only: it is sent again, and who is right stays open."""
    result = lab.run(attack="flood,per_step=1,stages=3")
    check_nobody_named(lab, result)
    assert result.attacked == result.detected == 2


# -- as it is today: collusion -------------------------------------------------------------------------------------------


CONSPIRACIES = [
    "collusion",
    "collusion,then=gaussian",
    "collusion,then=perturb+epsilon=0.01+direction=both",
    "collusion,then=replay",
    "collusion,then=other-input",
    "collusion,what=gradient",
    "collusion,what=update",
]


@pytest.mark.parametrize(("attack", "stage"), [(attack, 1 + i % 3) for i, attack in enumerate(CONSPIRACIES)])
def test_two_who_agree_are_not_caught_by_their_neighbours(lab: Any, attack: str, stage: int) -> None:
    check_uncaught(lab, attack, stage, "replace")


@pytest.mark.slow
@pytest.mark.parametrize("remedy", ["replace", "restart", "relay", "skip"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("attack", CONSPIRACIES)
def test_no_two_who_agree_are_caught_by_their_neighbours(lab: Any, attack: str, stage: int, remedy: str) -> None:
    check_uncaught(lab, attack, stage, remedy)


def check_uncaught(lab: Any, attack: str, stage: int, remedy: str) -> None:
    """Neighbours see nothing; spot checks of claims or whole steps do (tests/system/test_spot_checks.py)."""
    result = lab.run(attack=f"{attack},stages={stage}", on_alert=remedy)
    assert result.ledger.by_worker.keys() == {f"w{stage}", f"w{stage + 1}"}, "both of them lie, about the same claims"
    assert len(set(result.ledger.by_worker.values())) == 1
    assert result.missed == result.attacked > 0
    assert (result.detected, result.of(Alert), result.blamed) == (0, [], set())
    assert result.digest != lab.clean(result).digest


def test_where_the_shadow_is_the_initiators_nobody_is_there_to_agree_with(lab: Any) -> None:
    result = lab.run(attack="collusion,stages=4")
    check_nobody_named(lab, result)
    assert result.attacked == 0


@pytest.mark.parametrize("attack", ["collusion,then=gaussian", "collusion,what=gradient", "collusion,what=update"])
def test_one_of_two_alone_is_caught(lab: Any, attack: str) -> None:
    """The accomplice does not keep its word: as primary of 2 and as shadow of 1, w2 lies alone."""
    result = lab.run(attack=f"{attack},worker=w2,stages=1+2")
    assert result.blamed == {"w2"}
    assert {key.stage for key in result.ledger.keys} == {1, 2}
    assert (result.detected, result.missed, result.false_alarms) == (result.attacked, 0, 0)
    assert result.digest == lab.clean(result).digest


def test_a_copier_takes_the_word_of_a_liar(lab: Any) -> None:
    """Two neighbours that never spoke: one lies, the other would rather not compute. To be turned round by spot checks."""
    result = lab.run(attack=["sign-flip,stages=2", "lazy,mode=copy,stages=2"])
    assert (result.detected, result.blamed) == (0, set())
    assert result.missed == result.attacked > 0
    assert result.digest != lab.clean(result).digest
