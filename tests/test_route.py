"""Routes as tables: seats at the start, after a takeover, after re-shadowing; who gets which tensor."""

from dataclasses import replace

import pytest

from holdfast.claim import Direction, Role
from holdfast.recover.skip import bypass
from holdfast.route import Route, plain_route, reshadowed, without

FORWARD, BACKWARD, GRADIENT, UPDATE = Direction
WORKERS = ("w0", "w1", "w2", "w3", "w4", "w5")


def plain(size=6, **options):
    workers = (*WORKERS[: size - 1], "w0")  # the initiator's machine holds both ends
    return plain_route(workers, ["w0"], shadowed=options.pop("shadowed", True), **options)


def seats(route):
    """Two rows: who is primary, who is shadow; a dash where nobody is."""
    return " ".join(route.primaries), " ".join(shadow or "-" for shadow in route.shadows)


def table(text):
    primaries, shadows = text.strip().splitlines()
    return " ".join(primaries.split()[1:]), " ".join(shadows.split()[1:])


START = """
    primary   w0   w1   w2   w3   w4   w0
    shadow    -    w2   w3   w4   w0   -
"""
TAKEN_OVER = {  # who is lost: the route without, and the route after re-shadowing
    "w1": (
        """
        primary   w0   w2   w2   w3   w4   w0
        shadow    -    -    w3   w4   w0   -
        """,
        """
        primary   w0   w2   w2   w3   w4   w0
        shadow    -    w3   w3   w4   w0   -
        """,
    ),
    "w2": (
        """
        primary   w0   w1   w3   w3   w4   w0
        shadow    -    -    -    w4   w0   -
        """,
        """
        primary   w0   w1   w3   w3   w4   w0
        shadow    -    w3   w4   w4   w0   -
        """,
    ),
    "w4": (
        """
        primary   w0   w1   w2   w3   w0   w0
        shadow    -    w2   w3   -    -    -
        """,
        """
        primary   w0   w1   w2   w3   w0   w0
        shadow    -    w2   w3   w0   -    -
        """,
    ),
}


def test_at_the_start_each_worker_shadows_the_stage_before_its_own():
    assert seats(plain()) == table(START)
    assert plain(shadowed=False).shadows == (None,) * 6


@pytest.mark.parametrize("lost", TAKEN_OVER)
def test_after_a_takeover_and_after_reshadowing(lost):
    route = without(plain(), {lost})
    assert seats(route) == table(TAKEN_OVER[lost][0])
    again = reshadowed(route)
    assert seats(again) == table(TAKEN_OVER[lost][1])
    assert [plain().epoch, route.epoch, again.epoch] == [1, 2, 3]


def test_reshadowing_a_full_route_changes_nothing():
    route = plain()
    assert reshadowed(route) is route


def test_a_shadow_that_stands_is_never_moved():
    route = replace(plain(), shadows=(None, "w4", "w3", None, "w0", None))
    assert reshadowed(route).shadows == (None, "w4", "w3", "w4", "w0", None)


@pytest.mark.parametrize("size", range(4, 7))
@pytest.mark.parametrize("lost", [{"w1", "w2"}, {"w0"}])
def test_a_stage_that_lost_both_holders_has_no_route(size, lost):
    assert without(plain(size), lost) is None


def test_losses_two_apart_are_carried_at_once():
    assert seats(without(plain(), {"w1", "w3"})) == table("primary w0 w2 w2 w4 w4 w0\nshadow - - - - w0 -")


def test_one_after_another_everybody_but_the_initiator_may_go():
    route = plain()
    for lost in ("w3", "w1", "w4", "w2"):
        route = reshadowed(without(route, {lost}))
        assert all(route.is_trusted(i) or len(set(route.holders(i))) == 2 for i in route.stages)
    assert set(route.primaries) == {"w0"}
    assert route.shadows == (None,) * 6


# -- who gets what -------------------------------------------------------------------------------------------------------

CONSUMERS = {  # stage: forward, backward
    0: ("w1 w2", ""),
    1: ("w2 w3", "w0"),
    2: ("w3 w4", "w1 w2"),
    3: ("w4 w0", "w2 w3"),
    4: ("w0", "w3 w4"),
    5: ("", "w4 w0"),
}


@pytest.mark.parametrize("stage", CONSUMERS)
def test_a_tensor_goes_to_every_holder_of_the_neighbour(stage):
    forward, backward = CONSUMERS[stage]
    assert " ".join(plain().consumers(FORWARD, stage)) == forward
    assert " ".join(plain().consumers(BACKWARD, stage)) == backward
    assert plain().consumers(GRADIENT, stage) == plain().consumers(UPDATE, stage) == ()


@pytest.mark.parametrize(("stage", "forward"), [(0, "w1"), (1, "w2"), (2, "w3"), (3, "w4"), (4, "w0"), (5, "")])
def test_without_the_jump_nothing_skips_a_stage(stage, forward):
    """The next primary is the own shadow as well, so one message does for both."""
    route = plain(jump=False)
    assert " ".join(route.consumers(FORWARD, stage)) == forward
    assert route.consumers(BACKWARD, stage) == plain().consumers(BACKWARD, stage)


def test_without_the_jump_a_shadow_elsewhere_is_told_the_input():
    route = reshadowed(without(plain(jump=False), {"w2"}))  # stage 2 sits on w3, its shadow on w4
    assert route.consumers(FORWARD, 2) == ("w3", "w4")
    assert route.consumers(FORWARD, 1) == ("w3",)


def test_after_a_takeover_the_heir_is_told_once_and_by_both_names():
    route = without(plain(), {"w2"})
    assert route.consumers(FORWARD, 1) == ("w3",)
    assert route.consumers(FORWARD, 2) == ("w3", "w4")
    assert route.consumers(BACKWARD, 3) == ("w3",)


def test_a_bypass_joins_the_neighbours():
    route = bypass(plain(), {"w2", "w3"})
    assert route.active == (0, 1, 4, 5)
    assert (route.after(1), route.before(4), route.after(5), route.before(0)) == (4, 1, None, None)
    assert route.consumers(FORWARD, 1) == ("w4", "w0")
    assert route.consumers(BACKWARD, 4) == ("w1",)


# -- small questions -----------------------------------------------------------------------------------------------------


def test_roles_and_seats():
    route = plain()
    assert [route.role(2, worker) for worker in ("w2", "w3", "w4")] == [Role.PRIMARY, Role.SHADOW, None]
    assert route.seats_of("w3") == ((2, Role.SHADOW), (3, Role.PRIMARY))
    assert route.seats_of("w0") == ((0, Role.PRIMARY), (4, Role.SHADOW), (5, Role.PRIMARY))
    assert route.seats_of("nobody") == ()
    assert route.workers == ("w0", "w1", "w2", "w3", "w4")
    assert [route.is_trusted(i) for i in route.stages] == [True, False, False, False, False, True]


def test_a_worker_that_holds_both_neighbours_is_primary_where_it_could_be_both():
    route = Route(0, ("w0", "w1", "w1", "w0"), (None, None, None, None), ("w0",))
    assert route.role(1, "w1") is Role.PRIMARY
    assert reshadowed(route).shadows == (None, "w0", "w0", None)
