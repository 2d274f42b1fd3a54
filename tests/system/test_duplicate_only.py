"""What the jump is worth: the defence without it (`duplicate-only`), and the attacker who knows that it is missing.

duplicate        w3 recomputes stage 2 from what w1 sent it: w2's word is not needed
duplicate-only   w3 recomputes stage 2 from what w2 says that it worked from
"""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.attacks import ATTACKS, Attack
from holdfast.claim import Direction
from holdfast.event import WorkerLost

WITHOUT_JUMP = "duplicate-only"
KNOWLEDGEABLE = "other-input"


def test_with_nobody_lying_it_is_the_same_run(lab: Any) -> None:
    checked, unchecked, ablated = (lab.run(defence=defence) for defence in ("duplicate", "none", WITHOUT_JUMP))
    assert ablated.digest == checked.digest == unchecked.digest
    assert ablated.losses == checked.losses
    assert ablated.counts.alerted == {}


CRUDE = [name for name, kind in ATTACKS.items() if issubclass(kind, Attack) and name != KNOWLEDGEABLE]


@pytest.mark.parametrize("stage", [1, 4])
def test_a_crude_lie_is_caught_without_the_jump(lab: Any, stage: int) -> None:
    check_caught(lab, f"sign-flip,direction=both,stages={stage}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("attack", CRUDE)
def test_every_crude_lie_is_caught_without_the_jump(lab: Any, attack: str, direction: str, stage: int) -> None:
    check_caught(lab, f"{attack},direction={direction},stages={stage}")


def check_caught(lab: Any, attack: str) -> None:
    result = lab.run(attack=attack, defence=WITHOUT_JUMP)
    assert result.attacked == result.detected > 0
    assert (result.missed, result.false_alarms) == (0, 0)
    assert result.blamed == set(result.ledger.by_worker)
    assert result.digest == lab.clean(result).digest


@pytest.mark.parametrize("stage", [2, 4, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 3))])
def test_the_knowledgeable_attacker_is_caught_by_the_jump_alone(lab: Any, stage: int) -> None:
    """It runs its stage honestly on another input, and shows its verifier that input.

    Without the jump every forward lie passes the forward check and stays in the weights. Worse: the backward pass of the
    deceived verifier then differs from the honest one, and the referee, who knows the true input, names the verifier.
    """
    attack = f"{KNOWLEDGEABLE},stages={stage}"
    fooled = lab.run(attack=attack, defence=WITHOUT_JUMP)
    assert fooled.attacked == fooled.missed == 4
    assert Direction.FORWARD not in {key.direction for key in fooled.counts.alerted}
    assert fooled.digest != lab.clean(fooled).digest
    assert f"w{stage}" not in fooled.blamed

    caught = lab.run(attack=attack, defence="duplicate")
    assert caught.attacked == caught.detected == 4
    assert (caught.missed, caught.false_alarms) == (0, 0)
    assert caught.blamed == {f"w{stage}"}
    assert caught.digest == lab.clean(caught).digest


# -- who does not show it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_what_a_shadow_was_not_shown_comes_through_the_coordinator(lab: Any, stage: int) -> None:
    """Without the jump its input comes from the primary alone; silent as it must be, it is not the one to lose its seat."""
    result = lab.run(attack=f"withhold,worker=w{stage}", defence=WITHOUT_JUMP)
    assert result.ledger.keys, "nothing was withheld; the test shows nothing"
    assert result.digest == lab.clean(result).digest
    assert not result.of(WorkerLost)
    assert (result.blamed, result.false_alarms, result.restarted, result.counts.rollbacks) == (set(), 0, 0, 0)
