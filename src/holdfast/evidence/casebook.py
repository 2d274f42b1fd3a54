"""The casebook: each record is held against those before it; what does not follow from them is refused.

    accounts --compare--> accusation        accounts, finding --judge--> ruling        pair --conflict--> ruling

It trusts the coordinator in two things that nobody else could sign: which inputs were accepted, and what the referee computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from holdfast.claim import ClaimKey, Direction, Header, Role
from holdfast.errors import ProtocolError
from holdfast.evidence.draws import commitment
from holdfast.evidence.envelope import conflict, is_signed
from holdfast.evidence.record import (
    FINISHED,
    READABLE,
    Account,
    Accusation,
    Closing,
    Collected,
    Committed,
    Enrolled,
    Equivocated,
    Found,
    Misdelivered,
    Opening,
    Record,
    Refused,
    Resumed,
    Revealed,
    Rollback,
    Ruled,
    Sealed,
    Stood,
    TookOver,
    Unfounded,
)
from holdfast.message import Finding
from holdfast.route import Route

PRESUMED = ("quarantine", "refusal", "complaint")
"""Bases of a ruling that are the coordinator's word, and no proof to anybody else."""

COMPARED = ("output", "norms", "parent")
"""Reasons that follow from accounts alone."""

Kind = TypeVar("Kind")


class HasCulprits(Protocol):
    @property
    def culprits(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Law:
    """How accounts are compared and judged: `holdfast.verify`'s own functions, given by whoever asks for an audit."""

    compare: Callable[[Header, Header | None, tuple[bytes, ...] | None], object]
    judge: Callable[[tuple[Header, ...], Finding, tuple[bytes, ...] | None], HasCulprits]
    misstates: Callable[[Header, Finding], bool]


@dataclass(slots=True)
class Dispute:
    """All that is on record about one claim; `proven` are the lies that follow from it: worker and kind.

    `presumed` are those that rest on the coordinator's word. `cut_off`: the records end, or the run died, before a ruling.
    """

    number: int
    key: ClaimKey
    records: dict[int, Record] = field(default_factory=dict)
    proven: list[tuple[str, str]] = field(default_factory=list)
    presumed: list[tuple[str, str]] = field(default_factory=list)
    cut_off: bool = False

    def of(self, kind: type[Kind]) -> list[Kind]:
        """Its records of one kind, in order."""
        return [record for record in self.records.values() if isinstance(record, kind)]

    @property
    def rulings(self) -> list[Ruled]:
        return self.of(Ruled)

    @property
    def verdict(self) -> str:
        """In a word or two: who lied, that nobody could be named, or that nobody was asked."""
        lied = [f"{worker}: {kind}" for worker, kind in dict.fromkeys(self.proven)]
        lied += [f"{worker}: {kind} (presumed)" for worker, kind in dict.fromkeys(self.presumed)]
        if lied:
            return "; ".join(lied)
        if self.rulings:
            return "inconclusive"
        return "cut off before the ruling" if self.cut_off else "not examined"


@dataclass(slots=True)
class Draws:
    """The `commitment` to the secret of the draws, in which record it first stands, and the secret once it was revealed.

    `changed`: an earlier part of the run had committed to another one. `reused`: the run has gone on after the secret was open.
    """

    commitment: bytes
    record: int
    changed: bool = False
    reused: bool = False
    secret: int | None = None


class CaseBook:
    """Fed with every record in order; raises ProtocolError at the first that does not follow."""

    def __init__(self, law: Law) -> None:
        self.version = 0
        self.closed = False
        self.disputes: dict[int, Dispute] = {}
        self.interruptions: list[int] = []
        self.takeovers: list[TookOver] = []
        self.refused: dict[str, int] = {}
        self.headers = 0
        self._law = law
        self._opening: Opening | None = None
        self._deployments: set[str] = set()
        self._deployment = ""
        self._since = 0
        self.draws: Draws | None = None
        self._began = -1
        self._revealed = False
        self._own: set[int] = set()
        self._sealed: tuple[bytes, ...] | None = None
        self._open: set[int] = set()

    def cut_off(self) -> None:
        """There are no more records, or none for what was going on: disputes that are open will not be ruled on."""
        for number in self._open:
            self.disputes[number].cut_off = True
        self._open.clear()

    @property
    def opening(self) -> Opening:
        if self._opening is None:
            raise ProtocolError("nothing says whose keys count: the log does not begin with an opening record")
        return self._opening

    def take(self, seq: int, previous: bytes, record: Record) -> None:
        """Check one record; `previous` is the hash of the line before."""
        _require(not self.closed or isinstance(record, Resumed), "something follows the closing record")
        ends = not self._revealed or isinstance(record, Closing | Resumed)
        _require(ends, "the secret of the draws is revealed before the end: who knows it can foresee them")
        match record:
            case Resumed():
                self._resume(seq, record)
            case Opening():
                _require(seq == 0, "a second opening")
                self._began = seq
                self._check_schema(record.schema)
                self._opening = record
                self._deploy(record.deployment, record.version, record.route)
            case Rollback(deployment, version, route):
                _require(version <= self.version, f"a rollback to version {version}, which was never sealed")
                self._deploy(deployment, version, route)
            case Committed():
                self._commit(seq, record)
            case Revealed(secret, blind):
                self._reveal(secret, blind)
            case Sealed():
                self._seal(record)
            case Collected():
                self._collect(record)
            case TookOver(stage):
                _require(stage in self.opening.route.stages, f"a takeover of stage {stage}, which does not exist")
                self.takeovers.append(record)
            case Enrolled(member, key):
                known = self.opening.keys
                _require(known.get(member, key) == key, f"{member!r} is enrolled with another key than before")
                self._opening = replace(self.opening, keys={**known, member: key})
            case Closing():
                self._close(seq, previous, record)
            case _:
                self._hear(seq, record)

    # -- the run -----------------------------------------------------------------------------------------------------

    def _resume(self, seq: int, record: Resumed) -> None:
        first = self.opening
        kept = all(first.keys.get(member, key) == key for member, key in record.keys.items())  # another cut, other members
        self._check_schema(record.schema)
        _require(record.run == first.run and kept, "the run goes on with another name or other keys")
        _require(record.version <= self.version, f"the run goes on from version {record.version}, which was never sealed")
        self._began, self._revealed = seq, False
        if not self.closed:
            self.interruptions.append(seq)
            self.cut_off()
        self.closed = False
        self._opening = replace(record, keys={**first.keys, **record.keys})  # who was enrolled stays enrolled
        self._deploy(record.deployment, record.version, record.route)

    def _check_schema(self, schema: int) -> None:
        _require(schema in READABLE, f"schema {schema}; this version reads {' and '.join(map(str, READABLE))}")

    def _deploy(self, deployment: str, version: int, route: Route) -> None:
        _require(deployment not in self._deployments, f"the name {deployment!r} is used for two deployments")
        self._deployments.add(deployment)
        self._deployment, self.version, self._since = deployment, version, version
        self._open.clear()
        self._own = {stage for stage in (0, len(route.primaries) - 1) if route.primaries and route.is_trusted(stage)}
        self._sealed = None

    def _commit(self, seq: int, record: Committed) -> None:
        _require(seq == self._began + 1, "a commitment that does not stand at the beginning")
        if self.draws is None or self.draws.commitment != record.commitment:
            self.draws = Draws(record.commitment, seq, changed=self.draws is not None and self.draws.secret is None)
        elif self.draws.secret is not None:
            self.draws.reused = True

    def _reveal(self, secret: int, blind: bytes) -> None:
        _require(self.draws is not None, "the secret of the draws is revealed, and was never committed to")
        assert self.draws is not None
        same = commitment(self.opening.run, secret, blind) == self.draws.commitment
        _require(same, "the secret of the draws is not the one that was committed to")
        self.draws.secret = secret
        self._revealed = True

    def _seal(self, record: Sealed) -> None:
        _require(record.version == self.version + 1, f"version {record.version} is sealed after version {self.version}")
        _require(record.step == self.version, f"version {record.version} is sealed in step {record.step}")
        _require(len(record.digests) == len(self.opening.route.primaries), "a seal that does not name every stage")
        nameless = [stage for stage, digest in enumerate(record.digests) if not digest and stage not in self._own]
        _require(not nameless, f"a seal without a digest for stages {nameless}, which are not the initiator's own")
        self.version, self._sealed = record.version, record.digests
        self._open.clear()  # a step is sealed when everything about it is settled

    def _collect(self, record: Collected) -> None:
        _require(record.version == self.version, f"states of version {record.version} come together at version {self.version}")
        named = len(record.digests) == len(self.opening.route.primaries) and all(record.digests)
        _require(named, "states come together that do not all have a digest")
        sealed = self._sealed or record.digests  # none of this deployment yet
        same = all(seal in (b"", here) for seal, here in zip(sealed, record.digests, strict=True))
        _require(same, "states come together that are not the sealed ones")

    def _close(self, seq: int, previous: bytes, record: Closing) -> None:
        counted = (record.records, record.last, record.version)
        _require(counted == (seq, previous, self.version), "the closing record counts other records than these")
        shown = self.draws is None or self.draws.secret is not None or record.ended != FINISHED
        _require(shown, "the run has finished, and the secret of its draws is not revealed")
        for worker, count in record.refused.items():
            self.refused[worker] = self.refused.get(worker, 0) + count
        self.closed = True

    # -- disputes ----------------------------------------------------------------------------------------------------

    def _hear(self, seq: int, record: Any) -> None:
        key: ClaimKey = _key_of(record)
        dispute = self.disputes.get(record.dispute)
        if dispute is None:
            _require(record.dispute > next(reversed(self.disputes), 0), f"dispute {record.dispute} begins out of order")
            dispute = self.disputes[record.dispute] = Dispute(record.dispute, key)
        _require(dispute.key == key, f"dispute {dispute.number} is about the {dispute.key}, this record about the {key}")
        match record:
            case Account(_, header):
                self._check_signed(header)
            case Equivocated(_, first, second):
                self._check_signed(first)
                self._check_signed(second)
                _require(conflict(first, second), "the two headers of an equivocation do not contradict one another")
            case Misdelivered(_, _, _, got, accepted):
                _require(got != accepted, "a delivery is called false that is the accepted one")
            case Accusation():
                self._check_accusation(dispute, record)
            case Ruled():
                self._check_ruling(dispute, record)
        dispute.records[seq] = record
        self._open.add(dispute.number)

    def _check_signed(self, header: Header) -> None:
        self.headers += 1
        _require(
            is_signed(header, self.opening.keys), f"the account of {header.worker!r} does not bear that worker's signature"
        )
        _require(header.run == self._deployment, f"the account of {header.worker!r} is of another run or deployment")
        kept = self._since <= header.version <= self.version  # a spot check speaks of steps that are sealed
        _require(kept, f"the account of {header.worker!r} is of another version")

    def _check_accusation(self, dispute: Dispute, record: Accusation) -> None:
        headers = [account.header for account in _cited(dispute, record.cites, Account)]
        if not headers or record.reason not in COMPARED:
            return
        verdict = self._law.compare(headers[0], headers[1] if len(headers) > 1 else None, record.inputs)
        reason, suspects = getattr(verdict, "reason", None), getattr(verdict, "suspects", ())
        untrusted = tuple(worker for worker in suspects if worker not in self.opening.route.trusted)
        _require((reason, untrusted) == (record.reason, record.suspects), "the accusation does not follow from the accounts")

    def _check_ruling(self, dispute: Dispute, record: Ruled) -> None:
        *accounts, last = record.cites or (-1,)
        follows = {
            "finding": self._by_finding,
            "comparison": self._by_comparison,
            "equivocation": _by_pair,
            "delivery": _by_delivery,
            "quarantine": self._by_quarantine,
            "refusal": _by_refusal,
            "complaint": _by_complaint,
        }.get(record.basis)
        _require(follows is not None, f"a ruling on the basis {record.basis!r}, which this version does not know")
        assert follows is not None
        kinds = follows(dispute, accounts, last)
        _require(tuple(worker for worker, _ in kinds) == record.culprits, "the ruling does not follow from what it cites")
        if record.basis in PRESUMED:
            dispute.presumed += kinds
        else:
            dispute.proven += kinds

    def _by_finding(self, dispute: Dispute, accounts: Sequence[int], last: int) -> list[tuple[str, str]]:
        (found,) = _cited(dispute, (last,), Found)
        headers = tuple(account.header for account in _cited(dispute, accounts, Account))
        culprits = self._law.judge(headers, found.finding, found.inputs).culprits
        by_worker = {header.worker: header for header in headers}
        return [(worker, kind_of_lie(by_worker[worker], found)) for worker in culprits]

    def _by_comparison(self, dispute: Dispute, accounts: Sequence[int], last: int) -> list[tuple[str, str]]:
        (found,) = _cited(dispute, (last,), Found)
        said = [account.header for account in _cited(dispute, accounts, Account) if account.header.role is Role.COMPARER]
        return [(h.worker, "false measurement (framing)") for h in said if self._law.misstates(h, found.finding)]

    def _by_quarantine(self, dispute: Dispute, accounts: Sequence[int], last: int) -> list[tuple[str, str]]:
        (stood,) = _cited(dispute, (last,), Stood)
        before = {worker for other in self.disputes.values() for worker, _ in other.proven}
        headers = [account.header for account in _cited(dispute, accounts, Account)]
        return [(h.worker, "unlike the accepted account") for h in headers if h.output != stood.accepted and h.worker in before]


def kind_of_lie(header: Header, found: Found) -> str:
    """What was wrong with an account, in words."""
    if header.role is Role.SHADOW:
        return "false account as a verifier (framing)"
    if found.inputs is not None and header.inputs != found.inputs:
        return "another input than the accepted one"
    if header.output == found.finding.output:
        return "false norms"
    return {
        Direction.FORWARD: "false activation",
        Direction.BACKWARD: "false input gradient",
        Direction.GRADIENT: "false weight gradient",
        Direction.UPDATE: "false update",
    }[header.key.direction]


def _by_pair(dispute: Dispute, _accounts: Sequence[int], last: int) -> list[tuple[str, str]]:
    (pair,) = _cited(dispute, (last,), Equivocated)
    return [(pair.first.worker, "equivocation")]


def _by_delivery(dispute: Dispute, _accounts: Sequence[int], last: int) -> list[tuple[str, str]]:
    (came,) = _cited(dispute, (last,), Misdelivered)
    return [(came.worker, "false delivery")]


def _by_refusal(dispute: Dispute, _accounts: Sequence[int], last: int) -> list[tuple[str, str]]:
    (refused,) = _cited(dispute, (last,), Refused)
    return [(worker, "did not open what it had signed") for worker in refused.workers]


def _by_complaint(dispute: Dispute, _accounts: Sequence[int], last: int) -> list[tuple[str, str]]:
    (said,) = _cited(dispute, (last,), Unfounded)
    return [(said.worker, "false complaint")]


def _cited(dispute: Dispute, numbers: Sequence[int], kind: type[Kind]) -> list[Kind]:
    """The records of a dispute with these numbers, all of one kind."""
    found = [dispute.records.get(number) for number in numbers]
    right = [record for record in found if isinstance(record, kind)]
    _require(len(right) == len(numbers), "it cites records that are not there, or of another kind")
    return right


def _key_of(record: Any) -> ClaimKey:
    match record:
        case Account(_, header) | Equivocated(_, header):
            return header.key
        case Found(_, finding):
            return finding.key
    found: ClaimKey = record.key
    return found


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProtocolError(otherwise)
