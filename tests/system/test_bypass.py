"""Steps that leave stages out from their start come to the bits of the remedy `skip`, whatever else happens."""

from __future__ import annotations

import pytest

from holdfast import Experiment
from holdfast.attacks import Campaign
from holdfast.errors import ConfigError

SMALL = {
    "model": {"name": "gpt2:layers=6,width=16,heads=2"},
    "data": {"name": "synthetic", "sequence_length": 16, "vocabulary": 300, "validation_tokens": 64},
    "pipeline": {"stages": 6, "micro_batches": 2, "micro_batch_size": 1},
    "training": {"steps": 4, "seed": 1},
}
LIE = {"spec": "sign-flip", "rate": 0.7, "seed": 3}
DRAWS = [(step, stage) for step in range(4) if (stage := Campaign((1, 2, 3, 4), 0.7, 3).strike(step)) is not None]


def digest(bypass=(), **settings):
    return Experiment(SMALL | {"training": {**SMALL["training"], "bypass": tuple(bypass)}}, **settings).run().weights_digest


@pytest.fixture(scope="module")
def left_out():
    """The reference: nobody checks, nobody lies, the stages are left out."""
    return digest(DRAWS, defence="none")


def test_the_draws_are_several_stages_and_change_the_weights(left_out):
    assert len({stage for _step, stage in DRAWS}) > 1
    assert left_out != digest(defence="none")


def test_it_is_what_skip_comes_to_under_attack(left_out):
    assert digest(attack=[LIE], on_alert="skip") == left_out


@pytest.mark.parametrize("defence", ["duplicate", "spot-check"])
def test_a_defence_changes_no_bit_of_it(left_out, defence):
    assert digest(DRAWS, defence=defence) == left_out


def test_nor_does_a_lie_that_is_replaced(left_out):
    assert digest(DRAWS, attack=[{**LIE, "rate": 1.0, "seed": 8}]) == left_out


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_nor_does_a_crash_in_such_a_step(left_out, stage):
    assert digest(DRAWS, faults=[f"crash stage={stage} step={DRAWS[0][0]}"]) == left_out


@pytest.mark.parametrize("pair", [(0, 0), (0, 5), (-1, 1)])
def test_what_cannot_be_left_out_is_refused(pair):
    with pytest.raises(ConfigError, match=r"training\.bypass names step .*can be left out are 1 to 4"):
        digest([pair])
