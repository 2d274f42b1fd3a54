"""The roster: one name, one key, what the operator may do to whom, and a restart."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from holdfast.admission.roster import Offer, Roster, Status
from holdfast.errors import ConfigError, ProtocolError, SetupError
from holdfast.evidence.identity import derived

from .conftest import OFFER, Clock

KEYS = [derived(2, str(number)) for number in range(5)]


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def roster(tmp_path: Path, clock: Clock) -> Roster:
    return Roster(tmp_path / "roster.json", clock=clock)


def test_names_are_given_in_turn_and_taken_ones_left_out(roster: Roster) -> None:
    assert roster.enrol(KEYS[0].public, OFFER, wish="w2").name == "w2"
    assert [roster.enrol(key.public, OFFER).name for key in KEYS[1:3]] == ["w1", "w3"]


def test_a_name_has_one_key_and_a_key_one_name(roster: Roster) -> None:
    roster.enrol(KEYS[0].public, OFFER, wish="alice")
    with pytest.raises(ProtocolError, match=f"belongs to the key {KEYS[0].fingerprint[:16]}; a changed key is refused"):
        roster.enrol(KEYS[1].public, OFFER, wish="alice")
    with pytest.raises(ProtocolError, match="this key is 'alice'"):
        roster.enrol(KEYS[0].public, OFFER, wish="bob")
    assert [member.name for member in roster.list()] == ["alice"]
    roster.release("alice")
    with pytest.raises(ProtocolError, match="changed key"):
        roster.enrol(KEYS[1].public, OFFER, wish="alice")


@pytest.mark.parametrize("wish", ["host", "door", "coordinator", "initiator", "A", "a b", "../x", "w" * 33])
def test_names_that_nobody_gets(roster: Roster, wish: str) -> None:
    with pytest.raises(ProtocolError):
        roster.enrol(KEYS[0].public, OFFER, wish=wish)
    assert roster.list() == []


def test_who_comes_back_keeps_name_and_standing(roster: Roster, clock: Clock) -> None:
    roster.enrol(KEYS[0].public, OFFER)
    roster.quarantine("w1")
    clock.now += 5
    again = roster.enrol(KEYS[0].public, Offer(speed=99.0), waiting=True)
    assert (again.name, again.status, again.offer.speed) == ("w1", Status.QUARANTINED, 99.0)
    assert (again.first_seen, again.last_seen) == (1000.0, 1005.0)


def test_what_the_operator_may_do(roster: Roster) -> None:
    roster.enrol(KEYS[0].public, OFFER, waiting=True)
    key = KEYS[0].public
    assert not roster.may_connect("w1", key)
    with pytest.raises(ConfigError, match="w1 is waiting: only who is in the run"):
        roster.quarantine("w1")
    assert roster.accept("w1").status is Status.ACCEPTED
    assert roster.may_connect("w1", key)
    assert roster.quarantine("w1", "lied in step 3").note == "lied in step 3"
    assert roster.may_connect("w1", key), "in quarantine it keeps its seat"
    assert roster.accept("w1").status is Status.ACCEPTED
    assert roster.release("w1").status is Status.RELEASED
    assert not roster.may_connect("w1", key)
    assert roster.accept("w1").status is Status.ACCEPTED
    roster.ban("w1", "record r7")
    for move in (roster.accept, roster.release):
        with pytest.raises(ConfigError, match=r"banned \(record r7\)"):
            move("w1")
    assert not roster.may_connect("w1", key)


def test_a_connection_needs_name_and_key(roster: Roster) -> None:
    for key in KEYS[:2]:
        roster.enrol(key.public, OFFER)
    assert roster.may_connect("w1", KEYS[0].public)
    assert not roster.may_connect("w1", KEYS[1].public)
    assert not roster.may_connect("w9", KEYS[1].public)


def test_a_member_is_found_by_name_or_by_the_beginning_of_its_fingerprint(roster: Roster) -> None:
    for key in KEYS:
        roster.enrol(key.public, OFFER)
    assert roster.find("w3").public == KEYS[2].public.hex()
    assert roster.find(KEYS[2].fingerprint[:12].upper()).name == "w3"
    for id in ("", "w9", KEYS[2].fingerprint[:3], "zzzz"):
        with pytest.raises(ConfigError, match="known: w1, w2, w3, w4, w5"):
            roster.find(id)


def test_two_that_begin_alike_are_not_mixed_up(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.admission.roster.fingerprint", lambda public: "abcd" + public.hex()[4:])
    for key in KEYS[:2]:
        roster.enrol(key.public, OFFER)
    with pytest.raises(ConfigError, match="begins the fingerprints of w1, w2"):
        roster.accept("abcd")


def test_a_restart_keeps_the_roster(tmp_path: Path, roster: Roster, clock: Clock) -> None:
    path = tmp_path / "roster.json"
    for key in KEYS[:3]:
        roster.enrol(key.public, OFFER)
    roster.ban("w2", "lied")
    clock.now += 60
    roster.seen("w1", speed=3.5)
    roster.seen("nobody")
    before = Roster(path).get("w1")
    assert before is not None
    assert before.last_seen == 1000.0, "a heartbeat does not wait for a disk"
    roster.flush()
    again = Roster(path)
    assert again.list() == roster.list()
    assert again.list()[0].offer.speed == 3.5
    assert again.free_name() == "w4"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_roster_is_not_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_text('{"schema":1,"members":[{"name":"w1"}]}')
    path.chmod(0o600)
    with pytest.raises(SetupError, match="damaged"):
        Roster(path)


def test_what_may_be_shown(roster: Roster) -> None:
    told = roster.enrol(KEYS[0].public, OFFER).to_json()
    assert told["name"] == "w1"
    assert told["status"] == "accepted"
    assert told["device"] == "cpu"
    assert told["fingerprint"] == KEYS[0].fingerprint
