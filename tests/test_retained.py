"""A worker keeps what it may be asked to open, and no more."""

import pytest

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.retained import Retained


def state(stage, version):
    return StageState(stage, version, version, {}, {})


def claims(stage, step):
    key = ClaimKey(step, 0, Direction.FORWARD, stage, 0)
    return {key: Claim(Header("run", key, step, 0, "w", Role.PRIMARY, (), b""), None)}


def sealed(window, steps, stages=(1, 2)):
    retained = Retained(window)
    for step in range(steps):
        for stage in stages:
            retained.keep(state(stage, step), claims(stage, step))
    return retained


@pytest.mark.parametrize("window", [1, 3, 8])
def test_the_last_steps_of_every_stage_are_kept(window):
    retained = sealed(window, 10)
    for step in range(10):
        for stage in (1, 2):
            kept = step >= 10 - window
            (key,) = claims(stage, step)
            assert retained.state(stage, step) == (state(stage, step) if kept else None)
            assert retained.claim(key) == (claims(stage, step)[key] if kept else None)


def test_without_a_window_nothing_is_kept():
    retained = sealed(0, 3)
    assert retained.state(1, 2) is None
    assert retained.claim(next(iter(claims(1, 2)))) is None


def test_a_seat_that_was_given_up_can_still_be_opened():
    retained = sealed(4, 3)
    retained.keep(state(3, 3), claims(3, 3))
    assert retained.state(1, 2) == state(1, 2)
    for step in range(4, 7):
        retained.keep(state(3, step), {})
    assert retained.state(1, 2) is None
