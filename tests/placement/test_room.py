"""Whoever is left carries what he can hold; where nobody can, it is said what would help."""

import pytest

from holdfast.placement.room import Room
from holdfast.route import Route, plain_route, reshadowed, without

ROUTE = plain_route(["i", "w1", "w2", "w3", "w4", "i"], ["i"], shadowed=True)


def room(**limits: int) -> Room:
    """A stage needs 10 bytes, the outer ones none."""
    return Room(lambda stages: 10 * sum(0 < i < 5 for i in stages), limits.get)


def after(lost: str) -> Route:
    route = without(ROUTE, {lost})
    assert route is not None
    return route


def test_what_fits_is_let_be():
    assert room(w1=20, w2=20, w3=20, w4=20).lacking(ROUTE) == []
    assert room(w1=20, w2=20, w3=20, w4=20).resettle(ROUTE, []) == ROUTE.primaries


def test_without_stated_memory_the_heir_carries_on():
    assert room().lacking(reshadowed(after("w2"))) == []


def test_who_has_too_little_is_named():
    (lack,) = room(w3=20).lacking(reshadowed(after("w2")))
    assert (lack.worker, lack.stages, lack.needed_bytes, lack.has_bytes) == ("w3", (1, 2, 3), 30, 20)


def test_others_take_over_what_the_heir_cannot_hold():
    found = room(w1=20, w3=20, w4=20).resettle(after("w2"), [])
    assert found is not None
    assert found.count("i") == 3, "the initiator, which has room, and no more of it than is needed"
    assert room(w1=20, w3=20, w4=20).fits(after("w2"), found)


def test_a_spare_goes_before_the_initiator():
    found = room(w1=20, w3=20, w4=20, w9=20).resettle(after("w2"), ["w9"])
    assert found is not None
    assert (found.count("w9"), found.count("i")) == (1, 2)


def test_a_spare_with_too_little_is_of_no_use():
    assert room(w1=20, w3=20, w4=20, i=10, w9=5).resettle(after("w2"), ["w9"]) is None


def test_where_nobody_can_it_is_said_what_would_help():
    told = room(w1=20, w3=20, w4=20, i=10).wanted(after("w2"), {"w2"})
    assert told == (
        "w3 would hold stages 1, 2, 3: 30 bytes, and has 20 bytes; w4 would hold stages 2, 3, 4: 30 bytes, and has 20 bytes; "
        "waits for a machine with at least 10 bytes, or for w2 to come back"
    )


def test_where_one_machine_would_not_do_that_is_said():
    assert "waits for more than one machine" in room(w1=0, w3=20, w4=0, i=0).wanted(after("w2"), set())


@pytest.mark.parametrize("stages", [6, 12])
def test_a_way_is_found_among_many(stages):
    """With twelve stages not every way is looked at."""
    names = ["i", *(f"w{n}" for n in range(1, stages - 1)), "i"]
    route = without(plain_route(names, ["i"], shadowed=True), {"w2"})
    assert route is not None
    tight = Room(lambda held: 10 * len(held), lambda worker: {"i": 40, "w1": 30}.get(worker, 20))
    assert tight.lacking(reshadowed(route)) != []
    found = tight.resettle(route, ["w99"])
    assert found is not None
    assert tight.fits(route, found)
