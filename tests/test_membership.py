"""Seats count by digest; what is missing is sent by who has it; who goes takes the seats along."""

import pytest

from holdfast.claim import Role
from holdfast.membership import Membership
from holdfast.message import SendState, StateAdopted
from holdfast.route import plain_route

ROUTE = plain_route(["w0", "w1", "w2", "w3", "w0"], ["w0"], shadowed=True)
DIGESTS = {i: f"v0 of {i}".encode() for i in range(5)}
ALL_SEATS = [(0, "w0"), (1, "w1"), (1, "w2"), (2, "w2"), (2, "w3"), (3, "w3"), (3, "w0"), (4, "w0")]


def show(members, stage, worker, digest=None, version=None):
    version = members.version if version is None else version
    return members.adopted(worker, StateAdopted(stage, version, Role.PRIMARY, digest or members.digests[stage]))


def founded(**options):
    """Everybody has shown the first states."""
    members = Membership(ROUTE, 0, DIGESTS, shadowed=options.get("shadowed", True))
    for stage, worker in members.missing():
        show(members, stage, worker)
    members.settle()
    return members


def orders(members):
    return [(source, order.stage, order.to, order.role) for source, order in members.transfers()]


def test_at_the_start_every_seat_is_missing_and_nobody_is_asked():
    """Whoever deploys the run sends the first states."""
    members = Membership(ROUTE, 0, DIGESTS, shadowed=True)
    assert members.missing() == ALL_SEATS
    show(members, 1, "w1")
    assert (1, "w1") not in members.missing()
    assert members.transfers() == []


@pytest.mark.parametrize(("digest", "version"), [(b"other", 0), (b"v0 of 2", 0), (None, 1), (None, -1)])
def test_a_seat_counts_only_with_the_sealed_digest_and_version(digest, version):
    members = Membership(ROUTE, 0, DIGESTS, shadowed=True)
    assert not show(members, 1, "w1", digest, version)
    assert (1, "w1") in members.missing()
    assert show(members, 1, "w1")
    assert not show(members, 1, "w1", digest, version)  # a stranger may have sent it another: that unseats nobody
    assert (1, "w1") not in members.missing()


def test_a_false_state_is_asked_for_again_through_the_coordinator_of_all_who_have_it():
    members = founded()
    members.distrust(1, "w2")
    members.vouch(1, "referee")
    assert orders(members) == [("w1", 1, "w2", Role.SHADOW)]
    assert orders(members) == []  # asked once
    show(members, 1, "w2", b"false")
    assert orders(members) == [("w1", 1, "coordinator", Role.SHADOW), ("referee", 1, "coordinator", Role.SHADOW)]
    members.ask_again()
    members.failed(1, "w1")
    assert members.exhausted == []
    assert orders(members) == [("referee", 1, "coordinator", Role.SHADOW)]
    assert (members.awaiting(1, "w1"), members.awaiting(1, "referee")) == ([], ["w2"])
    members.failed(1, "referee")
    assert members.exhausted == ["w1", "referee"]
    show(members, 1, "w2")
    assert members.missing() == members.transfers() == members.exhausted == []


def test_a_worker_that_shows_false_states_for_ever_has_one_more_sent():
    """A word of a hundred bytes had an honest holder send a whole stage, as often as it was said."""
    members = founded()
    members.distrust(1, "w2")
    sent = []
    for number in range(100):
        sent += orders(members)
        show(members, 1, "w2", b"false %d" % number)
    assert sent == [("w1", 1, "w2", Role.SHADOW), ("w1", 1, "coordinator", Role.SHADOW)]
    members.handed.add((1, "w2"))
    members.ask_again()
    assert orders(members) == members.owing() == [], "it was handed the right one, and has a deadline of its own"
    assert show(members, 1, "w2")


def test_who_owes_a_missing_state():
    members = Membership(ROUTE, 0, DIGESTS, shadowed=True)
    for stage, worker in ALL_SEATS[:-3]:
        show(members, stage, worker) if (stage, worker) != (2, "w3") else None
    assert members.owing() == ["w3", "w3", "w0", "w0"]
    members.ask_again()
    assert members.owing() == ["w2", "w3", "w0", "w0"], "w2 has a state for w3; for the others nobody has one"


def test_who_goes_takes_its_doubts_along():
    members = founded()
    members.distrust(1, "w2")
    show(members, 1, "w2", b"false")
    members.handed.add((1, "w2"))
    members.lose("w2")
    assert orders(members) == [("w1", 1, "w3", Role.SHADOW), ("w3", 2, "w0", Role.SHADOW)]


def test_a_shadow_can_mend_its_primary():
    members = founded()
    members.distrust(2, "w2")
    assert orders(members) == [("w3", 2, "w2", Role.PRIMARY)]


def test_nobody_can_be_asked_where_nobody_holds_but_the_referee():
    members = founded()
    members.distrust(2, "w2")
    members.distrust(2, "w3")
    assert members.transfers() == []
    members.vouch(2, "referee")
    assert orders(members) == [("referee", 2, "w2", Role.PRIMARY), ("referee", 2, "w3", Role.SHADOW)]
    assert members.sources(2) == ["referee"]
    show(members, 2, "w3")
    show(members, 2, "w2")
    members.settle()
    assert members.sources(2) == ["w3", "w2"]
    members.distrust(2, "w2")
    members.distrust(2, "w3")
    assert members.transfers() == []  # the referee vouched for one boundary only


def test_a_takeover_leaves_two_stages_to_be_shadowed_anew():
    members = founded()
    members.lose("w2")
    assert members.route.primaries == ("w0", "w1", "w3", "w3", "w0")
    assert members.route.shadows == (None, None, None, "w0", None)
    assert members.missing() == members.new_shadows() == [(1, "w3"), (2, "w0")]
    assert orders(members) == [("w1", 1, "w3", Role.SHADOW), ("w3", 2, "w0", Role.SHADOW)]
    for stage, worker in [(1, "w3"), (2, "w0")]:
        show(members, stage, worker)
    assert members.settle().shadows == (None, "w3", "w0", "w0", None)
    assert members.new_shadows() == []


def test_losing_both_holders_is_seen_before_it_is_done():
    members = founded()
    assert members.without("w2") is not None
    members.lose("w2")
    assert members.without("w1") is None
    assert members.without("w3") is None
    with pytest.raises(AssertionError):
        members.lose("w1")


def test_when_a_source_goes_another_one_is_asked():
    members = founded()
    members.distrust(2, "w3")
    assert orders(members) == [("w2", 2, "w3", Role.SHADOW)]
    members.lose("w1")  # whatever was asked may have been asked of the dead
    assert ("w2", 2, "w3", Role.SHADOW) in orders(members)


def test_who_has_no_seat_cannot_offer_itself_as_a_source():
    members = founded()
    show(members, 1, "wicked")
    members.lose("w2")
    assert orders(members)[0] == ("w1", 1, "w3", Role.SHADOW)


def test_a_seal_raises_the_version_and_keeps_the_digests_of_frozen_stages():
    members = founded()
    members.seal({0: b"v1", 1: b"v1", 4: b"v1"})
    assert members.version == 1
    assert members.digests == {0: b"v1", 1: b"v1", 2: b"v0 of 2", 3: b"v0 of 3", 4: b"v1"}
    assert members.missing() == []
    assert not show(members, 1, "w2", DIGESTS[1])


def test_without_a_defence_nobody_shadows():
    members = Membership(plain_route(ROUTE.primaries, ["w0"], shadowed=False), 0, DIGESTS, shadowed=False)
    assert members.missing() == list(enumerate(ROUTE.primaries))
    assert members.target() is members.route
    assert members.without("w2") is None


def test_settling_needs_every_seat():
    members = founded()
    members.distrust(1, "w1")
    with pytest.raises(AssertionError):
        members.settle()


def test_the_sender_of_a_state_is_told_its_version_its_digest_and_whose_it_will_be():
    members = founded()
    members.seal({})
    members.distrust(3, "w0")
    assert members.transfers() == [("w3", SendState(3, 1, "w0", Role.SHADOW, members.digests[3]))]


def test_with_defences_off_a_state_that_nobody_sealed_a_digest_of_is_believed():
    """Without a check there is no sealed digest to hold it against; a worker that comes late would never get a seat."""
    members = founded(shadowed=False)
    members.seal(dict.fromkeys(DIGESTS, b""))
    members.reseat(("w0", "w1", "w9", "w3", "w0"))
    assert members.missing() == [(2, "w9")]
    assert show(members, 2, "w9", b"as it came")
    assert members.missing() == []
    assert members.digests[2] == b"as it came", "which is what the worker is told to use"
    assert not show(members, 2, "w2", b"another")
