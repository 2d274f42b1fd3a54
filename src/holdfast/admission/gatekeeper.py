"""The gatekeeper: who may come in. It is given a message and answers with one; sockets are the door's.

What it checks, in this order, each before anything dearer: visits of this peer, version, schema and limits, run, challenge,
signature; then for a known key its standing, for a new one the secret, its offer and its name; last it writes the books.
Whatever is wrong with a secret has one answer: it tells nobody whether one ever existed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from holdfast.admission import wording
from holdfast.admission.address import Address, parse_address
from holdfast.admission.invitations import Invitations
from holdfast.admission.roster import Member, Offer, Roster, Status
from holdfast.admission.turnstile import Challenges, Turnstile, peer_group, peer_host
from holdfast.admission.wording import Admitted, Challenge, Hello, OtherVersion, Refused, Request, Waiting
from holdfast.errors import ConfigError, HoldfastError, ProtocolError
from holdfast.evidence.authority import MEMBER_HOURS, Authority
from holdfast.evidence.identity import fingerprint
from holdfast.evidence.request import AdmissionRequest, verify_request
from holdfast.evidence.tls_key import check_tls_public

NO_ENTRY = Refused(
    "invite", "this invite opens nothing here: it is mistyped, expired, used up or revoked; ask the host for a new one"
)
STALE = Refused("challenge", "the challenge is not fresh; greet the door again", 0.1)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a host offers, and how it lets people in.

    `wire` are its addresses for members (`:PORT` for the host where the door was found), `accept` "manual" makes newcomers wait
    for the operator, `hours` a certificate lives, `terms` goes to each member as it is, `burst` and `per_second` limit visits.
    """

    wire: tuple[str, ...]
    heartbeat_s: float = 2.0
    accept: Literal["auto", "manual"] = "auto"
    hours: float = MEMBER_HOURS
    retry_s: float = 5.0
    terms: Mapping[str, str] = field(default_factory=dict)
    burst: int = 40
    per_second: float = 2.0


class Gatekeeper:
    """Answers for one run. `clock` gives Unix seconds, `pace` seconds that never jump.

    `judge` gets an offer that nobody has checked and returns why it is of no use, or None. `tell` gets a line on whatever the
    operator may want to know; no secret is ever in one. Threads may share a gatekeeper.
    """

    def __init__(
        self,
        authority: Authority,
        invitations: Invitations,
        roster: Roster,
        terms: Terms,
        *,
        judge: Callable[[Offer], str | None] = lambda offer: None,
        tell: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.time,
        pace: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authority = authority
        self._invitations = invitations
        self._roster = roster
        self._terms = terms
        self._judge = judge
        self._tell = tell
        self._clock = clock
        self._turnstile = Turnstile(terms.burst, terms.per_second, clock=pace)
        self._challenges = Challenges(clock=pace)
        self._lock = threading.Lock()

    def greet(self, peer: str, content: bytes) -> bytes:
        """The answer to a Hello: a challenge, or a refusal."""
        return self._answer(peer, content, Hello, lambda hello, host: Challenge(self._challenges.make()))

    def admit(self, peer: str, content: bytes) -> bytes:
        """The answer to a Request."""
        return self._answer(peer, content, Request, self._decide)

    def held(self) -> int:
        """How many peers and spent challenges are remembered: it has a bound, whatever strangers do."""
        with self._lock:
            return len(self._turnstile) + len(self._challenges)

    def _answer(
        self, peer: str, content: bytes, kind: type, respond: Callable[..., Challenge | Admitted | Waiting | Refused]
    ) -> bytes:
        host = peer_host(peer)
        with self._lock:
            wait_s = self._turnstile.wait_s(peer_group(host))
            if wait_s > 0:
                return wording.encode(Refused("slow", "too many visits from this address; come back later", round(wait_s, 1)))
            try:
                answer = respond(wording.decode(content, kind, wording.MOST_REQUEST_BYTES), host)
            except OtherVersion as error:
                answer = Refused("version", f"{error}; the newer of the two must be used on both machines")
            except ProtocolError as error:
                answer = Refused("malformed", str(error))
            except HoldfastError as error:
                self._tell(f"the door is in trouble: {error}")
                answer = Refused("trouble", "the host cannot write its books; its operator sees why", 30.0)
        if isinstance(answer, Refused):
            self._tell(f"refused at the door: {_printable(host)}: {answer.code}")
        return wording.encode(answer)

    def _decide(self, request: Request, host: str) -> Admitted | Waiting | Refused:
        if request.run != self._authority.run:
            return NO_ENTRY
        if not self._challenges.spend(request.challenge):
            return STALE
        signed = AdmissionRequest(
            self._authority.fingerprint, request.run, request.wish, request.tls_public, request.challenge, request.details
        )
        if not verify_request(signed, request.public, request.signature):
            return Refused("signature", "the request is not signed by the key that it names")
        offer = _located(wording.decode_offer(request.details), host)
        check_tls_public(request.tls_public)
        known = self._roster.by_key(request.public)
        if known is None and not self._invitations.opens(request.secret, fingerprint(request.public)):
            return NO_ENTRY
        if known is not None and not known.status.inside and known.status is not Status.WAITING:
            return Refused("status", f"{known.name} is {known.status.value} in this run: {known.note}")
        return self._enrol(known, request, offer)

    def _enrol(self, known: Member | None, request: Request, offer: Offer) -> Admitted | Waiting | Refused:
        unfit = self._judge(offer)
        if unfit is not None:
            return Refused("offer", unfit)
        if known is None:
            try:
                self._roster.free_name(request.wish)
            except ProtocolError as error:
                return Refused("name", str(error))
            if not self._invitations.redeem(request.secret, fingerprint(request.public)):
                return NO_ENTRY  # revoked in this very moment
        try:
            member = self._roster.enrol(request.public, offer, wish=request.wish, waiting=self._terms.accept == "manual")
        except ProtocolError as error:
            return Refused("name", str(error))
        if known is None:
            self._tell(f"{member.name} came in with key {member.fingerprint[:16]}: {member.status.value}")
        if member.status is Status.WAITING:
            return Waiting(member.name, self._terms.retry_s)
        return self._admitted(member, request.tls_public)

    def _admitted(self, member: Member, tls_public: bytes) -> Admitted:
        now = self._clock()
        return Admitted(
            member.name,
            self._authority.issue(member.name, tls_public, member.key, hours=self._terms.hours, now=now),
            self._authority.certificate,
            self._terms.wire,
            self._terms.heartbeat_s,
            member.status is Status.QUARANTINED,
            dict(self._terms.terms),
        )


def _located(offer: Offer, host: str) -> Offer:
    """The offer with a full address to dial. Raises ProtocolError."""
    if offer.listen is None:
        return offer
    try:
        if offer.listen.startswith(":"):
            address = Address(host, parse_address(f"localhost{offer.listen}").port)
        else:
            address = parse_address(offer.listen)
    except ConfigError as error:
        raise ProtocolError(str(error)) from None
    return msgspec.structs.replace(offer, listen=str(address))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
