"""What a run comes to: alerts held against what was really forged, and every field from its own source."""

import dataclasses
import json
import math

import pytest

from holdfast.claim import ClaimKey, Direction
from holdfast.evaluate import Evaluation
from holdfast.event import (
    Alert,
    Banned,
    ClaimReplaced,
    RolledBack,
    Ruling,
    SpotChecked,
    StagesSkipped,
    StepRestarted,
    StepSealed,
    WorkerLost,
)
from holdfast.result import Counts, Meter, RunFacts, RunResult, summarise


def key(step, attempt=0, stage=1):
    return ClaimKey(step, attempt, Direction.FORWARD, stage, 0)


def sealed(step, attempt=0, loss=1.0):
    return StepSealed(step, attempt, loss, 1.0, 0.1, 64)


def counted(*events):
    counts = Counts()
    for event in events:
        counts(event, 0.0)
    return counts


def alert(about, reason="output"):
    return Alert(about, reason, ("w1", "w2"))


class Truth:
    def __init__(self, *keys):
        self.keys = self.standing = frozenset(keys)

    def explains(self, about):
        return about in self.keys


TABLE = [  # forged, alerts, sealed --> detected, missed, false alarms
    ([key(0)], [alert(key(0))], [sealed(0)], (1, 0, 0)),
    ([key(0)], [], [sealed(0)], (0, 1, 0)),
    ([], [alert(key(0))], [sealed(0)], (0, 0, 1)),
    ([key(0)], [], [sealed(0, attempt=1)], (0, 0, 0)),  # dropped with its attempt before anybody had to rule
    ([key(0)], [], [], (0, 0, 0)),
    ([key(0), key(0, 1)], [alert(key(0))], [sealed(0, attempt=1)], (1, 1, 0)),
    ([key(0)], [alert(key(0)), alert(key(0), "delivery"), alert(key(0, stage=2))], [sealed(0)], (1, 0, 1)),
    ([], [alert(key(0), "withheld")], [sealed(0)], (0, 0, 0)),  # it accuses nobody
    ([], [alert(key(0), "delivery")], [sealed(0)], (0, 0, 1)),
]


@pytest.mark.parametrize(("forged", "alerts", "seals", "expected"), TABLE)
def test_alerts_against_the_truth(forged, alerts, seals, expected):
    counts, truth = counted(*alerts, *seals), Truth(*forged)
    assert (counts.detected(truth.keys), counts.missed(truth.keys), counts.false_alarms(truth)) == expected


def test_a_false_accusation_counts_even_where_the_claim_was_late_before():
    counts = counted(alert(key(0), "withheld"), alert(key(0), "output"), sealed(0))
    assert counts.false_alarms(Truth()) == 1


def test_where_nobody_lies_every_accusation_is_false():
    assert counted(alert(key(0)), alert(key(1)), alert(key(1))).false_alarms(None) == 2


def test_blame_is_counted_by_culprit_and_by_the_stage_lied_about():
    counts = counted(
        Ruling(key(0, stage=1), ("w1",), 1, "output"),
        Ruling(key(1, stage=1), ("w2",), 1, "output"),  # its shadow
        Ruling(key(2, stage=2), ("w2", "w3"), 2, "output"),
        Ruling(key(3), (), 1, "inconclusive"),
    )
    assert counts.blamed_workers == {"w1": 1, "w2": 2, "w3": 1}
    assert counts.blamed_stages == {"1": 2, "2": 2}


def test_other_events_are_counted_or_let_pass():
    counts = counted(
        StepRestarted(0, 1, "why"),
        StagesSkipped(1, (2, 3), (1, 2, 3)),
        StagesSkipped(2, (1,), (1,)),
        ClaimReplaced(key(0), "w2"),
        Banned("w1", 3, 4),
        WorkerLost("w1", 0, "why"),
    )
    assert (counts.steps_restarted, counts.stages_skipped, counts.claims_replaced) == (1, 3, 1)


def test_a_step_that_is_done_again_after_a_rollback_counts_as_it_ended():
    counts = counted(sealed(0, attempt=1, loss=5.0), sealed(0, attempt=0, loss=4.0))
    assert counts.losses == {0: 4.0}
    assert counts.missed({key(0, 1)}) == 0


def test_spot_checks_of_one_stage_and_step_add_up_once():
    counts = counted(SpotChecked(3, 1, 2, 0), SpotChecked(3, 1, 6, 1), SpotChecked(3, 2, 6, 0))
    assert counts.claims_checked == 12


def test_what_a_rollback_undoes_is_no_longer_in_the_weights():
    before, after = key(1), key(2)
    counts = counted(sealed(1), sealed(2), alert(after, "spot-check"), RolledBack(2, 2, "a lie"), sealed(2))
    assert counts.detected({before, after}) == 1
    assert counts.missed({after}) == 1, "forged again in the new attempt, and not seen there"
    assert counts.missed(()) == 0
    assert counts.false_alarms(Truth(after)) == 0
    assert counts.false_alarms(Truth()) == 1


def test_checks_are_counted_anew_after_a_rollback():
    counts = counted(SpotChecked(1, 1, 6, 0), SpotChecked(2, 1, 6, 1), RolledBack(2, 2, "a lie"), SpotChecked(2, 1, 6, 0))
    assert counts.claims_checked == 18


def test_a_meter_adds_clusters_up():
    meter = Meter(latest_s=3.0)
    meter.add(10.0, 100, {"forward": 1.0, "referee": 0.5})
    meter.add(5.0, 50, {"forward": 2.0})
    assert (meter.virtual_s, meter.latest_s, meter.bytes_sent) == (15.0, 0.0, 150)
    assert meter.seconds == {"forward": 3.0, "referee": 0.5}


FACTS = RunFacts("id", 2, 128, 5.0, 4.0, "digest", True, False, "out", clock="run")
SCORE = Evaluation(**{field.name: float(place + 2) for place, field in enumerate(dataclasses.fields(Evaluation))})


def summary(truth=None, facts=FACTS):
    counts = counted(alert(key(0)), sealed(0, loss=3.0), sealed(1, loss=2.0), Ruling(key(0), ("w1",), 1, "output"))
    counts.rollbacks, counts.claims_checked = 7, 12
    meter = Meter()
    meter.add(10.0, 100, {"forward": 9.0, "shadow-forward": 1.0, "shadow-backward": 2.0, "referee": 0.5, "checker": 0.25})
    return summarise(facts, SCORE, counts, meter, truth)


def test_every_field_comes_from_its_own_source():
    assert summary(Truth(key(0), key(1))) == RunResult(
        run_id="id",
        steps=2,
        tokens=128,
        seconds=5.0,
        training_seconds=4.0,
        clock="run",
        virtual_seconds=10.0,
        tokens_per_second=32.0,
        train_loss=2.0,
        validation_perplexity=SCORE.perplexity,
        validation_bits_per_byte=SCORE.bits_per_byte,
        weights_digest="digest",
        attacked_claims=2,
        detected=1,
        missed=1,
        false_alarms=0,
        alerts=1,
        blamed_stages={"1": 1},
        blamed_workers={"w1": 1},
        steps_restarted=0,
        stages_skipped=0,
        claims_replaced=0,
        rollbacks=7,
        claims_checked=12,
        bytes_sent=100,
        verify_seconds=3.0,
        referee_seconds=0.5,
        check_seconds=0.25,
        certified=True,
        interrupted=False,
        out="out",
    )


def test_without_adversaries_nothing_was_attacked():
    result = summary()
    assert (result.attacked_claims, result.detected, result.missed, result.false_alarms) == (0, 0, 0, 1)


def test_json_has_no_word_for_what_is_not_finite():
    poisoned = dataclasses.replace(summary(), train_loss=math.nan, validation_perplexity=math.inf)
    plain = json.loads(json.dumps(poisoned.to_json(), allow_nan=False))
    assert (plain["train_loss"], plain["validation_perplexity"]) == (None, None)
    assert plain["tokens_per_second"] == 32.0
    assert plain.keys() == {field.name for field in dataclasses.fields(RunResult)}


def test_a_run_without_a_step_has_no_loss():
    assert summary(facts=dataclasses.replace(FACTS, steps=0)).to_json()["train_loss"] is None
