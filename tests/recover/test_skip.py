"""A bypass, drawn: which stages are left out of a step, which take no update in it, for every alert and every pair."""

from itertools import combinations

import pytest

from holdfast.claim import ClaimKey, Direction
from holdfast.recover.remedy import Dispute, Investigate, Redo
from holdfast.recover.skip import Skip, bypass, frozen, leave_out
from holdfast.route import plain_route, reshadowed, without

SIZES = range(3, 8)


def plain(size):
    """The initiator w0 holds both ends; worker i holds stage i."""
    return plain_route(["w0", *(f"w{i}" for i in range(1, size - 1)), "w0"], ["w0"], shadowed=True)


def drawn(route):
    """One letter a stage: x bypassed (and frozen), f frozen only, . takes part."""
    letters = {(True, True): "x", (False, True): "f", (False, False): ".", (True, False): "BYPASSED BUT NOT FROZEN"}
    return "".join(letters[i in route.bypassed, i in route.frozen] for i in route.stages)


ALERTS = {  # K: the drawing for an alert about stage 1, 2, ..., K-2
    3: [".x."],
    4: [".xx.", ".fx."],
    5: [".xx..", ".fxx.", "..fx."],
    6: [".xx...", ".fxx..", "..fxx.", "...fx."],
    7: [".xx....", ".fxx...", "..fxx..", "...fxx.", "....fx."],
}


@pytest.mark.parametrize(("size", "stage"), [(size, stage) for size in SIZES for stage in range(1, size - 1)])
def test_an_alert_bypasses_both_suspects_and_freezes_the_stage_before(size, stage):
    """The last middle stage too, which the published code never bypasses: its verifier is trusted, so it goes alone."""
    route = plain(size)
    dispute = Dispute(ClaimKey(0, 0, Direction.FORWARD, stage, 0), "output", route.holders(stage), route)
    answer = Skip().answer(dispute)
    assert isinstance(answer, Redo)
    assert not answer.investigate
    assert drawn(answer.route) == ALERTS[size][stage - 1]
    assert answer.route.epoch == route.epoch + 1


EVERY_PAIR = [(size, pair) for size in SIZES for pair in combinations([f"w{i}" for i in range(1, size - 1)], 2)]


@pytest.mark.parametrize(("size", "pair"), EVERY_PAIR)
def test_any_pair_can_be_bypassed_and_what_is_updated_is_updated_by_both_holders(size, pair):
    route, out = plain(size), set(pair)
    skipping = bypass(route, pair)
    assert {route.primaries[i] for i in skipping.bypassed} == out
    for i in route.stages:
        assert (i in skipping.frozen) == bool(out & set(route.holders(i)))
        assert i in skipping.frozen or skipping.holders(i) == route.holders(i)
    for i in skipping.active:
        assert not out & {
            *skipping.holders(i),
            *skipping.consumers(Direction.FORWARD, i),
            *skipping.consumers(Direction.BACKWARD, i),
        }
    assert [skipping.after(i) for i in skipping.active] == [*skipping.active[1:], None]
    assert (skipping.active[0], skipping.active[-1]) == (0, size - 1)


FROZEN = {  # lost before (re-shadowed since), suspects: the drawing, K = 6
    ("", ""): "......",
    ("", "w0"): "......",
    ("", "w1"): ".x....",
    ("", "w1 w3"): ".xfx..",
    ("", "w1 w4"): ".x.fx.",
    ("", "w4 w0"): "...fx.",
    ("", "w1 w2 w3 w4"): ".xxxx.",
    ("w2", "w3"): ".fxx..",  # w3 carries stages 2 and 3 and shadows 1
    ("w2", "w4"): "..ffx.",  # w4 shadows 2 and 3
    ("w4", "w3"): "..fx..",
}


@pytest.mark.parametrize(("lost", "suspects"), FROZEN)
def test_what_freezes_follows_from_the_route_alone(lost, suspects):
    route = plain(6) if not lost else reshadowed(without(plain(6), {lost}))
    skipping = bypass(route, suspects.split())
    assert drawn(skipping) == FROZEN[lost, suspects]
    assert frozen(route, set(suspects.split()) - {"w0"}) == skipping.frozen


def test_a_second_alert_in_the_step_adds_to_the_first():
    twice = bypass(bypass(plain(6), {"w1"}), {"w4"})
    assert drawn(twice) == ".x.fx."
    assert twice.epoch == plain(6).epoch + 2


def test_without_an_untrusted_suspect_there_is_nobody_to_bypass():
    route = plain(4)
    dispute = Dispute(ClaimKey(0, 0, Direction.FORWARD, 2, 0), "output", ("w0",), route)
    assert Skip().answer(dispute) == Investigate()


@pytest.mark.parametrize(("size", "stage"), [(size, stage) for size in SIZES for stage in range(1, size - 1)])
def test_what_is_left_out_without_an_alert_is_what_skip_leaves_out_after_one(size, stage):
    """Whoever sits there: after a takeover too, when workers are no longer those of the stages' numbers."""
    assert drawn(leave_out(plain(size), [stage])) == ALERTS[size][stage - 1]
    bare = plain_route(["w0", *(f"w{i}" for i in range(1, size - 1)), "w0"], ["w0"], shadowed=False)
    assert drawn(leave_out(bare, [stage])) == ALERTS[size][stage - 1]
    if size > 3:
        moved = reshadowed(without(plain(size), {"w1"}))
        assert drawn(leave_out(moved, [stage])) == ALERTS[size][stage - 1]


def test_leaving_out_nothing_is_the_route_itself_and_two_stages_add_up():
    route = plain(6)
    assert leave_out(route, ()) is route
    assert drawn(leave_out(route, [1, 4])) == ".xxfx."
    assert leave_out(route, [1]).shadows == route.shadows
