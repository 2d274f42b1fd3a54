"""The audit: read an evidence log with nothing but itself, and say what it proves. Imports no torch.

    bytes --> lines --> form, number, chain, signature --> each record against those before it (casebook) --> Audit

    intact       everything follows, up to the closing record
    incomplete   as far as it goes it follows, but it ends before its closing record: a killed run, or a log cut short
    altered      a line is not what was written: edited, moved, removed, or signed with another key than the first
    other key    the log is not signed by the key that the auditor gave: nothing in it counts
    unsound      whoever holds the coordinator's key wrote what does not follow from the evidence beside it

Nothing behind the first fault counts.
"""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from holdfast.errors import ProtocolError
from holdfast.evidence.casebook import CaseBook, Dispute, Draws, Law
from holdfast.evidence.identity import fingerprint
from holdfast.evidence.log import COORDINATOR, FIRST, Entry, lines_of, read_line
from holdfast.evidence.record import Accusation, Opening, to_body


class Status(enum.StrEnum):
    INTACT = "intact"
    INCOMPLETE = "incomplete"
    ALTERED = "altered"
    OTHER_KEY = "other-key"
    UNSOUND = "unsound"


@dataclass(frozen=True, slots=True)
class Audit:
    """What the log proves. `records` are those before the first fault, `fault` says what it is (empty: none).

    `pinned` says whether the signing key is that of the fingerprint `pin` (None: none was asked for), `since` whether the log
    still has the record that was its last one in an earlier audit (None: none was named), and `live` that somebody was writing
    the log when it was read, who asks must know.
    """

    status: Status
    fault: str
    records: int
    last: bytes
    signer: str
    pinned: bool | None
    opening: Opening | None
    book: CaseBook
    live: bool = False
    pin: str | None = None
    since: bool | None = None

    @property
    def disputes(self) -> list[Dispute]:
        return list(self.book.disputes.values())

    @property
    def guilty(self) -> Mapping[str, Counter[str]]:
        """Proven lies by worker and kind."""
        found: dict[str, Counter[str]] = {}
        for dispute in self.disputes:
            for worker, kind in dispute.proven:
                found.setdefault(worker, Counter())[kind] += 1
        return found

    @property
    def clean(self) -> bool:
        """Whether the log is whole and proves nothing against anybody."""
        return self.status is Status.INTACT and not self.guilty

    @property
    def unfinished(self) -> bool:
        """Whether a run was writing the log, and nothing is wrong as far as it goes."""
        return self.live and self.status is Status.INCOMPLETE and not self.guilty

    def to_json(self) -> dict[str, Any]:
        opening = self.opening
        return {
            "status": self.status.value,
            "fault": self.fault,
            "live": self.live,
            "records": self.records,
            "last": self.last.hex(),
            "signer": self.signer,
            "pinned": self.pinned,
            "since": self.since,
            "run": opening.run if opening else None,
            "derived_keys": list(opening.derived) if opening else [],
            "version": self.book.version,
            "guilty": {worker: dict(kinds) for worker, kinds in self.guilty.items()},
            "disputes": [_dispute_json(dispute) for dispute in self.disputes],
            "interruptions": self.book.interruptions,
            "takeovers": [to_body(takeover) for takeover in self.book.takeovers],
            "refused": self.book.refused,
            "draws": _draws_json(self.book.draws),
        }


def is_log(data: bytes) -> bool:
    """Whether any line looks like one of an evidence log, be it torn or altered; with what does not, nobody has tampered."""
    return data.startswith(_BEGINS) or any(_is_record(line) for line, _whole in lines_of(data))


_BEGINS = b'{"body":{'


def _is_record(line: bytes) -> bool:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"kind", "previous", "signature"} <= content.keys()


def audit(data: bytes, law: Law, pinned: str | None = None, *, live: bool = False, since: bytes | None = None) -> Audit:
    """Audit the bytes of a log; `pinned` is the fingerprint that its signer must have, `live` whether it is being written,
    `since` the hash of a record that an earlier audit saw: a log that has it no longer was cut short or written anew.

    Raises nothing, whatever the bytes.
    """
    reader = _Reader(law, pinned, since)
    for line, whole in lines_of(data):
        if not whole:
            reader.stop(Status.INCOMPLETE, f"{_truncated(reader.records)}: the last line is torn")
        elif reader.status is Status.INTACT:
            reader.read(line)
    reader.check_since()
    if reader.status is Status.INTACT and not reader.book.closed:
        reader.stop(Status.INCOMPLETE, f"{_truncated(reader.records)}: there is no closing record")
    return replace(reader.result(), live=live and reader.status is Status.INCOMPLETE)


def _truncated(records: int) -> str:
    return f"truncated after record {records - 1}" if records else "truncated in its first record"


class _Reader:
    """Reads line after line until the first fault."""

    def __init__(self, law: Law, pinned: str | None, since: bytes | None) -> None:
        self.status = Status.INTACT
        self.book = CaseBook(law)
        self.records = 0
        self._pinned = pinned
        self._since = since
        self._has_since = since is None
        self._fault = ""
        self._last = FIRST
        self._key = b""
        self._opening: Opening | None = None

    def stop(self, status: Status, fault: str) -> None:
        """The first fault is the one that counts."""
        if self.status is Status.INTACT:
            self.status, self._fault = status, fault

    def read(self, line: bytes) -> None:
        try:
            entry = read_line(line)
            self._place(entry)
            if entry.seq == 0 and not self._is_pinned:
                self.stop(Status.OTHER_KEY, f"the log is signed by {self.signer}, and the key given is {self._pinned}")
                return
        except ProtocolError as error:
            self.stop(Status.ALTERED, f"line {self.records + 1}: {error}")
            return
        try:
            self.book.take(entry.seq, entry.previous, entry.record)
        except ProtocolError as error:
            self.stop(Status.UNSOUND, f"record {entry.seq}: {error}")
            return
        self.records, self._last = self.records + 1, entry.digest
        self._has_since |= entry.digest == self._since

    def check_since(self) -> None:
        """Whether it is the log that was seen before, and goes on; of one that breaks off at a fault that is not asked."""
        if self.status in (Status.INTACT, Status.INCOMPLETE) and not self._has_since:
            self.status = Status.ALTERED
            self._fault = (
                "the last record of the earlier audit is not in it: it was cut short or written anew, or it is another log"
            )

    def _place(self, entry: Entry) -> None:
        """Whether the line stands where it was written, by whoever wrote the first one."""
        if entry.seq != self.records:
            raise ProtocolError(f"it is record {entry.seq} where record {self.records} belongs: moved, removed or repeated")
        if entry.previous != self._last:
            raise ProtocolError("it does not follow on the line before it")
        if entry.seq == 0:
            if type(entry.record) is not Opening:
                raise ProtocolError("the log does not begin with an opening record")
            self._opening = entry.record
            self._key = entry.record.keys.get(COORDINATOR, b"")
        if not entry.signed_by(self._key):
            raise ProtocolError("its signature is not the coordinator's: edited, or signed with another key")

    @property
    def signer(self) -> str:
        return fingerprint(self._key) if self._key else ""

    @property
    def _is_pinned(self) -> bool:
        return self._pinned is None or (self._key != b"" and self.signer.startswith(self._pinned))

    def result(self) -> Audit:
        if self.status is not Status.INTACT:
            self.book.cut_off()
        return Audit(
            self.status,
            self._fault,
            self.records,
            self._last,
            self.signer,
            None if self._pinned is None else self._is_pinned,
            self._opening,
            self.book,
            pin=self._pinned,
            since=None if self._since is None else self._has_since,
        )


def _draws_json(draws: Draws | None) -> dict[str, Any] | None:
    if draws is None:
        return None
    told = {"record": draws.record, "changed": draws.changed, "reused": draws.reused}
    return {"commitment": draws.commitment.hex(), "secret": draws.secret, **told}


def _dispute_json(dispute: Dispute) -> dict[str, Any]:
    return {
        "number": dispute.number,
        "key": to_body(dispute.key),
        "claim": str(dispute.key),
        "records": list(dispute.records),
        "accusations": [
            {"reason": said.reason, "suspects": list(said.suspects), "by": said.by} for said in dispute.of(Accusation)
        ],
        "rulings": [{"basis": ruled.basis, "culprits": list(ruled.culprits)} for ruled in dispute.rulings],
        "proven": [{"worker": worker, "lie": kind} for worker, kind in dispute.proven],
        "verdict": dispute.verdict,
    }
