"""The notary: checks who signed, and writes down what the court does so that it can be checked again without the court.

    court, coordinator --> Notary --> records of disputed claims only; a step without a dispute costs one line, its seal

Without keys it vouches for everybody, without a log it writes nothing: the court need not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.claim import ClaimKey, Header
from holdfast.errors import ProtocolError
from holdfast.evidence.draws import blind, commitment
from holdfast.evidence.envelope import is_signed
from holdfast.evidence.log import EvidenceLog
from holdfast.evidence.record import (
    FINISHED,
    SCHEMA,
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

BOARD, DEADLINE = "board", "deadline"
"""Who accuses, where it is no worker."""


@dataclass(frozen=True, slots=True)
class Register:
    """Which run this is, whose keys count, and which of them are derived from the seed.

    `secret` is what all draws follow from (None: nothing is drawn).
    """

    run: str
    config: bytes
    keys: Mapping[str, bytes]
    derived: tuple[str, ...]
    secret: int | None = None


@dataclass(slots=True)
class _Dispute:
    """What has been written about one claim: its number, the records of accounts by worker, whether it was ruled on."""

    number: int
    accounts: dict[str, int] = field(default_factory=dict)


class Notary:
    """Called by the court and the coordinator, in the order in which things happened. Raises OSError where the disk fails."""

    def __init__(self, register: Register | None = None, log: EvidenceLog | None = None) -> None:
        self.refused: Counter[str] = Counter()
        self._register = register
        self._keys = {} if register is None else dict(register.keys)
        self._log = log
        self._disputes: dict[ClaimKey, _Dispute] = {}
        self._count = 0
        self._version = 0
        self._deployed = False

    def vouches(self, header: Header) -> bool:
        """Whether the header is signed by the worker that it names. What is not proves nothing; it is counted."""
        if self._register is None or is_signed(header, self._keys):
            return True
        self.refused[header.worker] += 1
        return False

    def proves(self, header: Header) -> bool:
        """Whether the header may be held against its worker, whoever shows it."""
        return self._register is not None and is_signed(header, self._keys)

    # -- the run -----------------------------------------------------------------------------------------------------

    def deployed(self, deployment: str, version: int, route: Route) -> None:
        """A cluster begins with `version`: the first of a run, of a resumed run, or after a rollback."""
        self._version = version
        self._disputes.clear()
        if self._log is None or self._register is None:
            return
        if self._deployed:
            self._write(Rollback(deployment, version, route))
            return
        self._deployed = True
        kind = Resumed if self._log.seq else Opening
        register = self._register
        self._write(kind(SCHEMA, register.run, deployment, version, dict(self._keys), register.derived, route, register.config))
        if register.secret is not None:
            self._write(Committed(commitment(register.run, register.secret, blind(self._log.signer, register.run))))
        self._count = self._log.seq if kind is Resumed else 0  # a resumed run uses no number twice

    def sealed(self, version: int, step: int, attempt: int, digests: Mapping[int, bytes]) -> None:
        self._version = version
        self._disputes.clear()
        self._write(Sealed(version, step, attempt, tuple(digests[stage] for stage in sorted(digests))))

    def enroll(self, member: str, key: bytes) -> None:
        """`member` has come, and signs with `key` (32 bytes, public) from now on. Raises ProtocolError if it had another."""
        if self._register is None or self._keys.get(member) == key:
            return
        if member in self._keys:
            raise ProtocolError(f"{member} is enrolled with another key; a member keeps its key as long as the run lasts")
        self._keys[member] = key
        if self._deployed:
            self._write(Enrolled(member, key))

    def collected(self, version: int, digests: Mapping[int, bytes]) -> None:
        """The states of the sealed version have come together; trusted stages have shown theirs too."""
        self._write(Collected(version, tuple(digests[stage] for stage in sorted(digests))))

    def took_over(self, stage: int, lost: str, heir: str, step: int) -> None:
        self._write(TookOver(stage, lost, heir, step))

    def mark(self) -> tuple[int, bytes]:
        """Number of the records so far and hash of the last one, once all are safely on the disk; (0, b"") without a log."""
        return (0, b"") if self._log is None else self._log.sync()

    def close(self, ended: str) -> None:
        """The run is over: nothing that comes before this record can be cut off unseen.

        The secret of the draws is shown if the run has `finished`; another one may go on, with the same secret.
        """
        if self._log is None:
            return
        register = self._register
        if self._deployed and ended == FINISHED and register is not None and register.secret is not None:
            self._write(Revealed(register.secret, blind(self._log.signer, register.run)))
        if self._deployed:
            self._write(Closing(self._log.seq, self._log.previous, self._version, dict(self.refused), ended))
        self._log.close()

    # -- disputes ----------------------------------------------------------------------------------------------------

    def accuse(
        self,
        key: ClaimKey,
        reason: str,
        suspects: tuple[str, ...],
        by: str,
        accounts: Sequence[Header] = (),
        inputs: tuple[bytes, ...] | None = None,
    ) -> None:
        """A check of `key` failed; `accounts` are the signed headers that were compared, the primary's first."""
        cites = self._accounts(key, accounts)
        self._write(Accusation(self._dispute(key).number, key, reason, suspects, by, inputs, cites))

    def judged(
        self,
        finding: Finding,
        inputs: tuple[bytes, ...] | None,
        accounts: Sequence[Header],
        reason: str,
        culprits: tuple[str, ...],
    ) -> None:
        """The referee has spoken, and who differs from it is named."""
        key, number = finding.key, self._dispute(finding.key).number
        cites = self._accounts(key, accounts)
        found = self._write(Found(number, finding, inputs))
        self._write(Ruled(number, key, reason, culprits, "finding", (*cites, found)))

    def misstated(self, said: Header, finding: Finding) -> None:
        """A comparer signed another distance than there is between the two accounts."""
        number = self._dispute(finding.key).number
        account = self._write(Account(number, said))
        found = self._write(Found(number, finding, None))
        self._write(Ruled(number, finding.key, "distance", (said.worker,), "comparison", (account, found)))

    def equivocated(self, first: Header, second: Header, by: str) -> None:
        """One worker signed two different accounts of one claim."""
        number = self._dispute(first.key).number
        pair = self._write(Equivocated(number, first, second, by))
        self._write(Ruled(number, first.key, "equivocation", (first.worker,), "equivocation", (pair,)))

    def misdelivered(self, key: ClaimKey, worker: str, got: bytes, accepted: bytes) -> None:
        """A worker sent the coordinator itself another tensor than the accepted one."""
        number = self._dispute(key).number
        came = self._write(Misdelivered(number, key, worker, got, accepted))
        self._write(Ruled(number, key, "delivery", (worker,), "delivery", (came,)))

    def quarantined(self, header: Header, accepted: bytes) -> None:
        """A worker that had lied before said something else than what stands."""
        cites = self._accounts(header.key, [header])
        number = self._dispute(header.key).number
        stood = self._write(Stood(number, header.key, accepted))
        self._write(Ruled(number, header.key, "output", (header.worker,), "quarantine", (*cites, stood)))

    def unopened(self, key: ClaimKey, stage: int, workers: tuple[str, ...]) -> None:
        """Nobody opened what was needed to compute `key` again, though `workers` hold it."""
        number = self._dispute(key).number
        said = self._write(Refused(number, key, stage, workers))
        self._write(Ruled(number, key, "unopened", workers, "refusal", (said,)))

    def unfounded(self, key: ClaimKey, worker: str) -> None:
        """A worker complained of what the coordinator itself had delivered."""
        number = self._dispute(key).number
        said = self._write(Unfounded(number, key, worker))
        self._write(Ruled(number, key, "complaint", (worker,), "complaint", (said,)))

    # -- writing -----------------------------------------------------------------------------------------------------

    def _dispute(self, key: ClaimKey) -> _Dispute:
        """What is open about `key`; all that is said of one claim is one dispute."""
        if key not in self._disputes:
            self._count += 1
            self._disputes[key] = _Dispute(self._count)
        return self._disputes[key]

    def _accounts(self, key: ClaimKey, headers: Sequence[Header]) -> tuple[int, ...]:
        """The records of these accounts; each is written once."""
        dispute = self._dispute(key)
        for header in headers:
            if header.worker not in dispute.accounts:
                dispute.accounts[header.worker] = self._write(Account(dispute.number, header))
        return tuple(dispute.accounts[header.worker] for header in headers)

    def _write(self, record: Record) -> int:
        return -1 if self._log is None else self._log.append(record)
