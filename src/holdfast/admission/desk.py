"""The operator's desk: the requests "invite" and "nodes" of the control socket, answered from the books."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.admission.control import Handler
from holdfast.admission.invitations import DAY_S, Invitations
from holdfast.admission.invite import Invite
from holdfast.admission.roster import Member, Roster
from holdfast.errors import ConfigError


def invite_handler(invitations: Invitations, doors: tuple[str, ...], fingerprint: str, run: str) -> Handler:
    """Makes, lists and revokes invites to the host with this fingerprint, whose door is at `doors`."""

    def handle(action: str = "new", uses: int = 1, ttl_s: float = DAY_S, id: str = "") -> dict[str, Any]:
        if action == "new":
            made, secret = invitations.create(uses=uses, ttl_s=ttl_s)
            line = Invite(doors, fingerprint, run, secret).text()
            return {"invite": line, "id": made.id, "uses": made.uses, "expires": made.expires}
        if action == "list":
            return {"invites": invitations.list()}
        if action == "revoke":
            invitations.revoke(id)
            return {"revoked": next(invite for invite in invitations.list() if invite["id"] == id)}
        raise ConfigError(f"invite {action!r}: known are new, list and revoke")

    return handle


def nodes_handler(roster: Roster, changed: Callable[[Member], None] = lambda member: None) -> Handler:
    """Lists members and changes their standing; `changed` is called with each that the operator moved, in the asking thread."""
    moves = {"accept": roster.accept, "quarantine": roster.quarantine, "release": roster.release}

    def handle(action: str = "list", id: str = "") -> dict[str, Any]:
        if action == "list":
            return {"members": [member.to_json() for member in roster.list()]}
        if action not in moves:
            raise ConfigError(f"nodes {action!r}: known are list, {', '.join(moves)}")
        before = roster.find(id)
        member = moves[action](id)
        if member.status is not before.status:
            changed(member)
        return {"member": member.to_json()}

    return handle
