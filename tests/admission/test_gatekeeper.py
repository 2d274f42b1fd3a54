"""The gatekeeper without sockets: replay, foreign signatures, limits, and that a crowd costs no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.admission import wording
from holdfast.admission.gatekeeper import Gatekeeper, Terms
from holdfast.admission.invitations import Invitations
from holdfast.admission.roster import Offer, Roster
from holdfast.admission.turnstile import MOST_PEERS, Challenges, Turnstile, peer_group, peer_host
from holdfast.admission.wording import Hello, Request
from holdfast.evidence.authority import Authority
from holdfast.evidence.identity import Identity, derived
from holdfast.evidence.request import AdmissionRequest, sign_request
from holdfast.evidence.tls_key import new_tls_key

from .conftest import HOST, OFFER, RUN, Clock

PEER = "ipv4:127.0.0.1:4000"
ONE, TWO = derived(3, "one"), derived(3, "two")
TLS = new_tls_key()


class Gate:
    """A gatekeeper, its books, and requests as a joiner makes them, or nearly so."""

    def __init__(self, directory: Path, **terms: Any) -> None:
        self.pace = Clock(0.0)
        self.invitations = Invitations(directory / "invites.json")
        self.roster = Roster(directory / "roster.json")
        self.told: list[str] = []
        settings = {"burst": 1000, "per_second": 1.0, **terms}
        self.keeper = Gatekeeper(
            Authority.generate(HOST, RUN),
            self.invitations,
            self.roster,
            Terms((":1",), **settings),
            tell=self.told.append,
            pace=self.pace,
        )

    def challenge(self) -> bytes:
        return self.answer(self.keeper.greet(PEER, wording.encode(Hello()))).challenge

    @staticmethod
    def answer(content: bytes) -> Any:
        return wording.decode(content, wording.Answer, 1 << 16)

    def request(self, identity: Identity = ONE, *, host: str = HOST.fingerprint, offer: Any = OFFER, **changes: Any) -> bytes:
        said = {
            "run": RUN,
            "secret": self.invitations.create()[1],
            "public": identity.public,
            "wish": "",
            "tls_public": TLS.public,
            "challenge": changes.get("challenge") or self.challenge(),
            "details": wording.encode(offer) if not isinstance(offer, bytes) else offer,
        }
        said |= {name: value for name, value in changes.items() if name in said}
        signed = AdmissionRequest(host, said["run"], said["wish"], said["tls_public"], said["challenge"], said["details"])
        said["signature"] = sign_request(signed, identity)
        said |= {name: value for name, value in changes.items() if name not in ("challenge",)}
        return wording.encode(Request(**said))

    def admit(self, content: bytes, peer: str = PEER) -> Any:
        return self.answer(self.keeper.admit(peer, content))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def test_an_honest_request_is_admitted(gate: Gate) -> None:
    assert gate.admit(gate.request()).name == "w1"
    assert gate.told == [f"w1 came in with key {ONE.fingerprint[:16]}: accepted"]


def test_a_recorded_request_opens_nothing(gate: Gate) -> None:
    recorded = gate.request()
    assert gate.admit(recorded).name == "w1"
    assert gate.admit(recorded).code == "challenge"
    assert gate.admit(recorded, "ipv4:203.0.113.9:1").code == "challenge"


def test_a_challenge_is_fresh_ours_and_good_once(gate: Gate, tmp_path: Path) -> None:
    old = gate.challenge()
    gate.pace.now += 121
    (tmp_path / "other").mkdir()
    other = Gate(tmp_path / "other")
    other.pace.now = gate.pace.now
    for challenge in (old, other.challenge(), bytes(56), gate.challenge()[:-1], b"x"):
        assert gate.admit(gate.request(challenge=challenge)).code == "challenge"
    assert gate.roster.list() == []


def test_a_request_is_signed_by_the_key_that_it_names(gate: Gate) -> None:
    for content in (
        gate.request(ONE, public=TWO.public),
        gate.request(ONE, signature=bytes(64)),
        gate.request(ONE, signature=b""),
        gate.request(ONE, public=b"\x01" + bytes(31), signature=b"\x01" + bytes(63)),
    ):
        assert gate.admit(content).code == "signature"
    assert gate.roster.list() == []
    assert all(invite["used_by"] == [] for invite in gate.invitations.list())


def test_a_request_to_another_host_cannot_be_passed_on(gate: Gate) -> None:
    """A host that a joiner trusts gets our challenge signed, and hands the request to us."""
    assert gate.admit(gate.request(host=TWO.fingerprint)).code == "signature"


def test_nothing_of_a_signed_request_can_be_changed(gate: Gate) -> None:
    content = msgspec.msgpack.decode(gate.request())
    for name, value in (("wish", "bob"), ("tls_public", new_tls_key().public), ("details", wording.encode(Offer()))):
        changed = msgspec.msgpack.encode({**content, name: value, "challenge": content["challenge"]})
        assert gate.admit(changed).code == "signature", name
        content = msgspec.msgpack.decode(gate.request())


def test_a_member_cannot_be_impersonated_with_a_good_secret(gate: Gate) -> None:
    """An invite lets a newcomer in; it makes nobody a member that is there already."""
    gate.admit(gate.request(ONE))
    assert gate.admit(gate.request(TWO, public=ONE.public)).code == "signature"
    assert gate.admit(gate.request(TWO)).name == "w2"


def test_another_run_and_a_wrong_secret_have_the_same_answer(gate: Gate) -> None:
    answers = [
        gate.admit(gate.request(run="run-2")),
        gate.admit(gate.request(secret=b"")),
        gate.admit(gate.request(secret=bytes(16))),
    ]
    assert answers[0] == answers[1] == answers[2]


BAD_OFFERS = [
    b"",
    b"\xc0",
    wording.encode(Offer(device="x" * 201)),
    wording.encode(Offer(numerics="a\x1b[2Jb")),
    wording.encode(Offer(memory_bytes=-1)),
    wording.encode(Offer(memory_bytes=1 << 61)),
    wording.encode(Offer(speed=-1.0)),
    wording.encode(Offer(speed=float("nan"))),
    wording.encode(Offer(speed=float("inf"))),
    wording.encode(Offer(listen="nowhere")),
    wording.encode(Offer(listen=":0")),
    msgspec.msgpack.encode({"device": 5}),
    msgspec.msgpack.encode({"unknown": 5}),
]


@pytest.mark.parametrize("offer", BAD_OFFERS)
def test_an_offer_out_of_bounds_is_refused_before_an_invite_is_spent(gate: Gate, offer: bytes) -> None:
    assert gate.admit(gate.request(offer=offer)).code == "malformed"
    assert gate.roster.list() == []


def test_a_tls_key_that_is_none_is_refused_before_an_invite_is_spent(gate: Gate) -> None:
    assert gate.admit(gate.request(tls_public=b"x")).code == "malformed"
    assert gate.roster.list() == []
    assert all(invite["used_by"] == [] for invite in gate.invitations.list())


@pytest.mark.parametrize(
    ("listen", "peer", "address"),
    [
        (None, PEER, None),
        (":7000", "ipv4:203.0.113.5:999", "203.0.113.5:7000"),
        (":7000", "ipv6:%5B2001:db8::1%5D:999", "[2001:db8::1]:7000"),
        ("worker.example:7000", PEER, "worker.example:7000"),
    ],
)
def test_the_address_to_dial_is_where_it_came_from_unless_it_says(gate: Gate, listen: Any, peer: str, address: Any) -> None:
    gate.admit(gate.request(offer=Offer(listen=listen)), peer)
    assert gate.roster.list()[0].offer.listen == address


def test_versions_are_read_first_and_alone(gate: Gate) -> None:
    for content in ({"protocol": 2}, {"protocol": 7, "type": "request", "anything": [1]}):
        answer = gate.admit(msgspec.msgpack.encode(content))
        assert answer.code == "version"
        assert f"version {content['protocol']}" in answer.reason


@given(st.binary(max_size=300))
def test_any_bytes_get_a_refusal(noise: bytes) -> None:
    for call in (FUZZED.greet, FUZZED.admit):
        assert Gate.answer(call(PEER, noise)).code in ("malformed", "version")


FUZZED = Gatekeeper(Authority.generate(HOST, RUN), None, None, Terms((":1",), burst=10**9))  # type: ignore[arg-type]


def test_visits_of_one_address_are_limited_and_come_back(tmp_path: Path) -> None:
    gate = Gate(tmp_path, burst=3, per_second=0.5)
    for _ in range(3):
        gate.challenge()
    slow = gate.answer(gate.keeper.greet("ipv4:127.0.0.1:9", wording.encode(Hello())))
    assert (slow.code, slow.retry_s) == ("slow", 2.0)
    assert gate.answer(gate.keeper.greet("ipv4:127.0.0.2:9", wording.encode(Hello()))).challenge
    gate.pace.now += 2
    gate.challenge()


def test_trouble_with_the_books_is_told_to_the_operator_alone(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    content = gate.request()
    with monkeypatch.context() as patched:
        patched.setattr("holdfast.atomic.write_file", full)
        answer = gate.admit(content)
    assert answer.code == "trouble"
    assert "space" not in answer.reason
    assert "No space left" in "".join(gate.told)
    assert gate.admit(gate.request()).name == "w1"


def test_strangers_cost_no_memory() -> None:
    turnstile, challenges = Turnstile(1, 1.0, clock=Clock(0.0)), Challenges(clock=(clock := Clock(0.0)))
    for number in range(MOST_PEERS + 100):
        turnstile.wait_s(str(number))
        challenges.make()
    assert len(turnstile) == MOST_PEERS
    assert len(challenges) == 0
    for _ in range(100):
        assert challenges.spend(challenges.make())
    clock.now += 121
    assert challenges.spend(challenges.make())
    assert len(challenges) == 1


@pytest.mark.parametrize(
    ("peer", "group"),
    [
        ("ipv4:203.0.113.5:1", "203.0.113.5"),
        ("ipv6:[2001:db8::1]:1", "2001:db8::/64"),
        ("ipv6:%5B2001:db8::2%5D:1", "2001:db8::/64"),
        ("ipv6:[::ffff:203.0.113.5]:1", "203.0.113.5"),
        ("unix:/x", "unix:/x"),
        ("", ""),
    ],
)
def test_whose_visits_count_together(peer: str, group: str) -> None:
    assert peer_group(peer_host(peer)) == group


def test_no_secret_is_told(gate: Gate) -> None:
    secret = gate.invitations.create()[1]
    for changes in ({}, {"signature": b""}, {"run": "x"}, {"wish": "host"}):
        gate.admit(gate.request(secret=secret, **changes))
    assert gate.told
    assert secret.hex() not in "".join(gate.told)
    assert repr(secret)[2:-1] not in "".join(gate.told)
    assert repr(secret)[2:-1] not in repr(Request(RUN, secret, b"", "", b"", b"", b"", b""))
