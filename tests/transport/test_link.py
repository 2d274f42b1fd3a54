"""Sessions, ways and time limits of one link, without a socket."""

from dataclasses import dataclass, replace

import pytest

from holdfast.errors import ConfigError
from holdfast.transport import Endpoint, WireOptions
from holdfast.transport.endpoint import AddressBook
from holdfast.transport.fences import MOST_REMEMBERED, Fences
from holdfast.transport.link import STREAMS, Link, Tally
from holdfast.transport.packet import Refusal

OPTIONS = WireOptions(heartbeat_s=2.0, silence_s=6.0, reconnect_s=3.0, queue_bytes=1000)
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


@dataclass(eq=False)
class Way:
    way: str = "direct"
    dialled_by: str = "a"
    heard_s: float = 0.0

    def kick(self):
        pass


def link(me="a", peer="b", incarnation=A, serial=1):
    return Link(me, peer, incarnation, serial, OPTIONS, Tally(), 0.0)


def pair():
    """Both ends of a link that has been connected."""
    a, b = link(), link("b", "a", B)
    a.peer_token, b.peer_token = b.token, a.token
    return a, b


def attach(one, other, way="direct", now_s=0.0):
    ways = [Way(way) for _ in STREAMS]
    events = []
    for kind, path in zip(STREAMS, ways, strict=True):
        one.streams[kind].attach(path, other.hello("r", kind))
        one.heard(path, now_s)
        events += one.settle(now_s)
    return ways, events


def code(verdict):
    return verdict.code if isinstance(verdict, Refusal) else verdict


def test_the_first_hello_and_later_ones_are_of_the_same_session():
    assert link().judge(link("b", "a", B).hello("r", "bulk")) == "same session"
    a, b = pair()
    assert a.judge(b.hello("r", "bulk")) == "same session"


def test_a_peer_that_started_anew_or_gave_up_begins_a_new_session():
    a, _ = pair()
    assert a.judge(link("b", "a", C).hello("r", "bulk")) == "new session"
    assert a.judge(link("b", "a", B, serial=2).hello("r", "bulk")) == "new session"


def test_who_remembers_a_session_that_is_over_is_told_so():
    _, b = pair()
    assert code(link(serial=2).judge(b.hello("r", "bulk"))) == "stale"
    assert code(link(incarnation=C).judge(b.hello("r", "bulk"))) == "stale"
    a, _ = pair()
    a.peer_token = B + (5).to_bytes(8, "big")
    assert code(a.judge(link("b", "a", B, serial=4).hello("r", "bulk"))) == "stale", "an old hello that came late"


def test_of_two_connections_dialled_crosswise_both_ends_keep_the_same():
    mine, theirs = Way(dialled_by="a"), Way(dialled_by="b")
    for there, new, keeps_new in ((mine, theirs, False), (theirs, mine, True), (mine, Way(dialled_by="a"), True)):
        one, other = pair()
        one.streams["control"].attach(there, other.hello("r", "control"))
        assert one.prefers("control", new) == keeps_new
        assert one.prefers("control", Way("relayed"))
        assert one.prefers("bulk", new)


def test_up_broken_back_and_relayed_are_told_once():
    one, other = pair()
    ways, events = attach(one, other)
    assert (events, one.state) == (["up"], "up")
    one.streams["bulk"].detach(ways[1])
    assert one.settle(1.0) == []
    assert one.state == "broken"
    assert attach(one, other, "relayed", 2.0)[1] == ["relayed"]
    assert (one.state, one.tally.reconnects) == ("up", 1)
    assert attach(one, other, "direct", 3.0)[1] == []
    assert not one.relayed


def test_when_a_peer_is_lost():
    one, other = pair()
    assert one.overdue(100.0) is None, "never up, never lost"
    ways, _ = attach(one, other)
    assert one.overdue(6.0) is None
    assert "6 s" in one.overdue(6.1)
    one.heard(ways[0], 5.0)
    one.streams["control"].detach(ways[0])
    one.settle(5.0)
    assert one.overdue(8.0) is None
    assert "3 s" in one.overdue(8.1)
    one.forgive(2.0)
    assert one.overdue(8.1) is None, "time in which this end stood still does not count"


def test_a_silent_way_is_given_up_before_the_peer_is_and_bulk_later():
    one, other = pair()
    ways, _ = attach(one, other)
    assert one.silent(4.0) == []
    assert one.silent(4.3) == [ways[0]]
    assert one.silent(21.1) == ways


def test_the_relay_is_wanted_at_once_where_nobody_can_dial_and_else_after_a_while():
    one, other = pair()
    assert one.wants_relay(False, 0.0)
    assert not one.wants_relay(True, 0.9)
    assert one.wants_relay(True, 1.1)
    attach(one, other)
    assert not one.wants_relay(False, 99.0)


def book(me, relay=None, *others):
    return AddressBook(me, relay, others)


def test_exactly_one_end_dials_where_one_can():
    a, b = Endpoint("a", ("a",), "h:1"), Endpoint("b", ("b",), "h:2")
    blind_a, blind_b = replace(a, address=None), replace(b, address=None)
    for one, other, dials in ((a, b, (True, False)), (a, blind_b, (False, True)), (blind_a, b, (True, False))):
        assert (book(one, None, other).dials(other.process), book(other, None, one).dials(one.process)) == dials
    assert not book(blind_a, None, blind_b).dials("b")
    assert not book(blind_a, "host", blind_b).direct("b")
    host = Endpoint("host", ("x", "y"), "h:3")
    assert book(Endpoint("w", ("w",), "h:4"), "host", host).dials("host")
    assert not book(host, "host", Endpoint("w", ("w",), "h:4")).dials("w")
    assert book(a, "host", b, host).opens_circuits("b")
    assert not book(b, "host", a, host).opens_circuits("a")
    assert book(host, None, a).process_of("y") == "host"


def test_impossible_books_and_options_are_refused():
    with pytest.raises(ConfigError, match="both speak for x"):
        book(Endpoint("a", ("x",)), None, Endpoint("b", ("x",)))
    for given in (
        {"part_bytes": 10},
        {"part_bytes": 1 << 30},
        {"window_bytes": 1 << 20},
        {"heartbeat_s": 9.0},
        {"reconnect_s": 0},
    ):
        with pytest.raises(ConfigError):
            WireOptions(**given)
    for name in ("", "w" * 200):
        with pytest.raises(ConfigError):
            Endpoint(name, ())


def test_fences():
    fences = Fences()
    fences.let_in("w", A)
    fences.give_up("w", A)
    assert fences.keeps_out("w", A)
    fences.pardon("w")
    assert not fences.keeps_out("w", A)
    fences.let_in("w", B)
    fences.pardon("w")
    assert fences.keeps_out("w", A), "who was replaced does not come back"
    assert not fences.keeps_out("v", A)
    for number in range(2 * MOST_REMEMBERED):
        fences.forget("w", number.to_bytes(16, "big"))
    assert len(fences._for_good["w"]) == MOST_REMEMBERED
