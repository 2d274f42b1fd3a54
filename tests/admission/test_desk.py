"""The operator's desk: what the two requests do to the books."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.admission.desk import invite_handler, nodes_handler
from holdfast.admission.invitations import Invitations
from holdfast.admission.invite import Invite
from holdfast.admission.roster import Member, Roster, Status
from holdfast.errors import ConfigError

from .conftest import HOST, OFFER, RUN


def test_an_invite_from_the_desk_opens_the_book(tmp_path: Path) -> None:
    book = Invitations(tmp_path / "invites.json")
    desk = invite_handler(book, ("127.0.0.1:7700",), HOST.fingerprint, RUN)
    made = desk(action="new", uses=2, ttl_s=60)
    invite = Invite.parse(made["invite"])
    assert (invite.doors, invite.fingerprint, invite.run) == (("127.0.0.1:7700",), HOST.fingerprint, RUN)
    assert book.redeem(invite.secret, "1" * 64)
    listed = desk(action="list")["invites"]
    assert [(one["id"], one["state"], one["used_by"]) for one in listed] == [(made["id"], "open", ["1" * 64])]
    assert invite.secret.hex() not in json.dumps(listed)
    assert desk(action="revoke", id=made["id"])["revoked"]["state"] == "revoked"
    assert not book.redeem(invite.secret, "2" * 64)
    for wrong in ({"action": "burn"}, {"action": "revoke", "id": "x"}, {"action": "new", "uses": 0}):
        with pytest.raises(ConfigError):
            desk(**wrong)


def test_the_operator_moves_members(tmp_path: Path) -> None:
    roster = Roster(tmp_path / "roster.json")
    roster.enrol(b"1" * 32, OFFER, waiting=True)
    moved: list[Member] = []
    desk = nodes_handler(roster, moved.append)
    assert [member["status"] for member in desk()["members"]] == ["waiting"]
    for action, status in (
        ("accept", "accepted"),
        ("accept", "accepted"),
        ("quarantine", "quarantined"),
        ("release", "released"),
    ):
        assert desk(action=action, id="w1")["member"]["status"] == status
    assert [member.status for member in moved] == [Status.ACCEPTED, Status.QUARANTINED, Status.RELEASED]
    for wrong in ({"action": "hug", "id": "w1"}, {"action": "accept", "id": "w2"}):
        with pytest.raises(ConfigError):
            desk(**wrong)
    json.dumps(desk())
