import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.attacks import Campaign
from holdfast.claim import ClaimKey, Direction
from holdfast.config import AttackConfig
from holdfast.errors import ConfigError

MIDDLE = (1, 2, 3, 4)

DRAWING = """
stage 1                X   X
stage 2    X   X
stage 3
stage 4                            X
"""


def key(step, stage=2, micro_batch=0, attempt=0, direction=Direction.FORWARD):
    return ClaimKey(step, attempt, direction, stage, micro_batch)


def test_the_drawing_above_the_code():
    campaign = Campaign(MIDDLE, rate=0.5, seed=7)
    drawn = {
        column: int(line[6])
        for line in DRAWING.strip("\n").split("\n")
        for column in range(8)
        if line[11 + 4 * column : 12 + 4 * column] == "X"
    }
    assert {step: stage for step in range(8) if (stage := campaign.strike(step)) is not None} == drawn


@given(st.integers(0, 2**40), st.integers(0, 10_000))
def test_rate_one_always_strikes_and_rate_zero_never(seed, step):
    assert Campaign(MIDDLE, rate=1.0, seed=seed).strike(step) in MIDDLE
    assert Campaign(MIDDLE, rate=0.0, seed=seed).strike(step) is None


@pytest.mark.parametrize("rate", [0.3, 0.7])
def test_the_share_of_struck_steps_is_the_rate_and_stages_are_hit_alike(rate):
    struck = [Campaign(MIDDLE, rate=rate, seed=5).strike(step) for step in range(40_000)]
    hits = [stage for stage in struck if stage is not None]
    assert len(hits) / 40_000 == pytest.approx(rate, abs=0.02)
    for stage in MIDDLE:
        assert hits.count(stage) / len(hits) == pytest.approx(0.25, abs=0.02)


def test_a_higher_rate_strikes_the_same_steps_and_more():
    low, high = (Campaign(MIDDLE, rate=rate, seed=1) for rate in (0.3, 0.7))
    assert all(high.strike(step) == low.strike(step) for step in range(200) if low.strike(step) is not None)


def test_nothing_before_the_first_step():
    campaign = Campaign(MIDDLE, first_step=5)
    assert [campaign.strike(step) is not None for step in (3, 4, 5, 6)] == [False, False, True, True]


def test_every_micro_batch_of_the_stage_and_no_other_stage():
    campaign = Campaign((2,))
    assert all(campaign.strikes(key(0, micro_batch=m), "w2") for m in range(4))
    assert not campaign.strikes(key(0, stage=3), "w3")


def test_micro_batches_narrow_but_whole_steps_stay():
    campaign = Campaign((2,), micro_batches=(1,))
    assert [campaign.strikes(key(0, micro_batch=m), "w2") for m in (0, 1, -1)] == [False, True, True]


def test_first_attempt_only_unless_persistent():
    assert not Campaign((2,)).strikes(key(0, attempt=1), "w2")
    assert Campaign((2,), persistent=True).strikes(key(0, attempt=1), "w2")


def test_a_pinned_liar_strikes_wherever_it_sits_and_nobody_else_does():
    campaign = Campaign(MIDDLE, worker="w3")
    assert all(campaign.strikes(key(0, stage=stage), "w3") for stage in MIDDLE)
    assert not any(campaign.strikes(key(0, stage=stage), "w2") for stage in MIDDLE)
    assert not campaign.strikes(key(0, stage=0), "w3")


def test_forging_seeds_differ_by_claim_and_by_campaign():
    keys = [key(0), key(1), key(0, stage=3), key(0, micro_batch=1), key(0, attempt=1), key(0, direction=Direction.BACKWARD)]
    seeds = {Campaign(MIDDLE, seed=seed).generator_seed(k) for seed in (0, 1) for k in keys}
    assert len(seeds) == 12


def test_from_config_fills_in_stages_and_seed():
    config = AttackConfig(spec="sign-flip", rate=0.7)
    first, second = (Campaign.from_config(config, stages=6, seed=0, index=index) for index in (0, 1))
    assert first.stages == MIDDLE
    assert first.rate == 0.7
    assert first.seed != second.seed
    assert Campaign.from_config(AttackConfig(spec="x", seed=9), stages=6, seed=0).seed == 9


@pytest.mark.parametrize(
    ("changes", "stages", "message"),
    [
        ({"stages": (5,)}, 6, "names stage 5; attackable are stages 1 to 4"),
        ({"stages": (0,)}, 6, "names stage 0"),
        ({}, 2, "no stage to strike; attackable are none with 2 stages"),
        ({"worker": "initiator"}, 6, "names worker 'initiator'; untrusted are w1, w2"),
        ({"micro_batches": (4,)}, 6, "names micro-batch 4; there are 0 to 3"),
    ],
)
def test_a_campaign_that_could_not_strike_is_refused(changes, stages, message):
    with pytest.raises(ConfigError, match=message):
        Campaign.from_config(
            AttackConfig(spec="sign-flip", **changes), stages=stages, seed=0, micro_batches=4, workers=("w1", "w2")
        )


def test_bad_numbers_are_refused():
    with pytest.raises(ConfigError, match=r"between 0 and 1, got 1\.5"):
        Campaign(MIDDLE, rate=1.5)
    with pytest.raises(ConfigError, match="at least one stage"):
        Campaign(())
