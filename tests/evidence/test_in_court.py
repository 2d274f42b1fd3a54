"""Signatures in court: what is not signed counts for nothing, what is signed twice convicts, whoever shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from holdfast.claim import ClaimKey, Direction, Header, Role
from holdfast.coordinator import Coordinator
from holdfast.event import Alert, Ruling
from holdfast.evidence.envelope import sign_header, verify_header
from holdfast.evidence.identity import Identity, derived
from holdfast.evidence.notary import Notary, Register
from holdfast.membership import Membership
from holdfast.message import Accepted, Complaint, Envelope, StateAdopted, Supply
from holdfast.optimizer import Clipping
from holdfast.recover.replace import Replace
from holdfast.route import plain_route
from holdfast.step import Policy
from holdfast.verify.board import Board

NAMES = ("w0", "w1", "w2", "w3", "coordinator")
KEYS: Mapping[str, Identity] = {name: derived(1, name) for name in NAMES}
TRUE, FALSE = b"t" * 32, b"f" * 32
A0, A1 = (ClaimKey(0, 0, Direction.FORWARD, stage, 0) for stage in (0, 1))


class Bench:
    """A step of four stages that has begun; a_0 stands accepted. w2 verifies w1, w3's seat needs a_1 too."""

    def __init__(self) -> None:
        route = plain_route(["w0", "w1", "w2", "w3", "w0"], ["w0"], shadowed=True)
        members = Membership(route, 0, dict.fromkeys(route.stages, b"v0"), shadowed=True)
        for stage, worker in members.missing():
            members.adopted(worker, StateAdopted(stage, 0, Role.PRIMARY, b"v0"))
        policy = Policy(True, Replace(), 1, lambda _norms: Clipping(0.0, 1.0), lambda _step: 1.0, 1, deadline_s=9.0)
        keys = {name: identity.public for name, identity in KEYS.items()}
        self.notary = Notary(Register("run", b"", keys, NAMES))
        self.coordinator = Coordinator("run", members, policy, self.notary)
        self.coordinator.begin(0)
        self.post("w0", header("w0", A0))

    def post(self, sender: str, message: Any) -> list[Any]:
        return [envelope.message for envelope in self.coordinator.receive(Envelope(sender, "coordinator", message))]

    def events(self, kind: type) -> list[Any]:
        return [event for event in self.coordinator.pending_events() if isinstance(event, kind)]

    def accept(self) -> Bench:
        self.post("w1", header("w1"))
        assert Accepted(A1, TRUE) in self.post("w2", header("w2"))
        return self


def header(worker: str, key: ClaimKey = A1, *, signer: str | None = None, **change: Any) -> Header:
    role = Role.PRIMARY if (worker, key.stage) != ("w2", 1) else Role.SHADOW
    made = Header("run", key, 0, 1, worker, role, () if key.stage == 0 else (TRUE,), TRUE)
    return sign_header(replace(made, **change), KEYS[signer or worker])


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    "forged",
    [
        header("w2", signer="w3"),
        replace(header("w2"), signature=None),
        replace(header("w2"), signature=b"\0" * 64),
        replace(header("w2"), output=FALSE),
        replace(header("w2"), role=Role.PRIMARY),
    ],
)
def test_a_header_without_its_worker_s_signature_is_ignored_and_counted(bench: Bench, forged: Header) -> None:
    bench.post("w1", header("w1"))
    assert bench.post("w2", forged) == []
    assert bench.notary.refused == {"w2": 1}
    assert bench.events(Alert) == []
    assert Accepted(A1, TRUE) in bench.post("w2", header("w2")), "nothing is lost for who signs after all"


def test_a_delivery_signed_beside_another_account_convicts_its_author(bench: Bench) -> None:
    bench.accept()
    sent = bench.post("w3", Complaint(A1, "w1", FALSE, header("w1", output=FALSE)))
    assert Supply(A1, ("w3",)) in sent, "the tensor is sent again by somebody else"
    assert [(ruling.culprits, ruling.reason) for ruling in bench.events(Ruling)] == [(("w1",), "equivocation")]
    assert bench.coordinator.membership.lies == {"w1": 1}


def test_it_is_convicted_once_a_claim_however_many_it_told(bench: Bench) -> None:
    bench.accept()
    bench.post("w3", Complaint(A1, "w1", FALSE, header("w1", output=FALSE)))
    bench.post("w2", Complaint(A1, "w1", FALSE, header("w1", output=b"x" * 32)))
    bench.post("w1", header("w1", output=FALSE))
    assert bench.coordinator.membership.lies == {"w1": 1}


@pytest.mark.parametrize(
    "shown",
    [
        None,
        header("w1"),
        header("w1", role=Role.SHADOW, epoch=5),
        header("w1", signer="w3", output=FALSE),
        replace(header("w1", output=FALSE), signature=None),
        header("w1", output=FALSE, run="another"),
        header("w1", A0, output=FALSE),
        header("w1", replace(A1, attempt=1), output=FALSE),
    ],
)
def test_a_complaint_with_anything_else_proves_nothing(bench: Bench, shown: Header | None) -> None:
    bench.accept()
    bench.post("w3", Complaint(A1, "w1", FALSE, shown))
    events = bench.coordinator.pending_events()
    assert [event.suspects for event in events if isinstance(event, Alert)] == [("w1", "w3")]
    assert not [event for event in events if isinstance(event, Ruling)]
    assert bench.coordinator.membership.lies == {}


def test_who_delivered_it_does_not_count_but_who_signed(bench: Bench) -> None:
    """w2 passes on what w1 signed."""
    bench.accept()
    bench.post("w3", Complaint(A1, "w2", FALSE, header("w1", output=FALSE)))
    assert bench.coordinator.membership.lies == {"w1": 1}


def test_a_word_shown_before_its_author_has_spoken_to_the_board_is_kept(bench: Bench) -> None:
    bench.post("w3", Complaint(A1, "w1", b"", header("w1", output=FALSE)))
    assert bench.coordinator.membership.lies == {}
    bench.accept()
    assert bench.coordinator.membership.lies == {"w1": 1}


def test_without_keys_nothing_is_proven_and_nothing_refused() -> None:
    notary = Notary()
    assert notary.vouches(replace(header("w1"), signature=None))
    assert not notary.proves(header("w1"))


def test_an_heir_s_account_keeps_the_words_that_it_signed() -> None:
    board = Board()
    board.post(header("w2"))
    board.promote(1, "w2")
    (slot,) = board.headers(A1)
    (signed,) = board.accounts(A1)
    assert (slot.role, signed.role) == (Role.PRIMARY, Role.SHADOW)
    assert verify_header(signed, KEYS["w2"].public)
    assert not verify_header(slot, KEYS["w2"].public)


def test_a_header_posted_as_a_shadow_by_who_is_primary_now_keeps_its_words() -> None:
    board, signed = Board(), header("w2")
    board.post(replace(signed, role=Role.PRIMARY), signed=signed)
    assert board.accounts(A1) == (signed,)
    assert board.signed(A1, "w2") == signed
    assert board.signed(A1, "w1") is None
