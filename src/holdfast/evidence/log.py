"""The evidence log: one signed line a record, each with the hash of the line before, so that what was written stays written.

    {"body":{...},"kind":"seal","previous":"<sha256 of the line before>","seq":7,"signature":"<of all the rest>"}

A record is on its way to the disk as soon as `append` returns. A line that a kill has torn is cut off when the run goes on;
whoever reads the log before that reports it as the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError, ProtocolError, SetupError
from holdfast.evidence.envelope import RECORD_DOMAIN
from holdfast.evidence.identity import Identity, verify
from holdfast.evidence.record import KINDS, NAMES, Opening, Record, canonical, from_body, to_body

FILE = "evidence.jsonl"
FIRST = bytes(32)
"""What the first line names as the hash of the line before it."""

COORDINATOR = "coordinator"
"""Whose key signs the log."""

_FIELDS = {"seq", "previous", "kind", "body", "signature"}


class EvidenceLog:
    """The writing end, which one process has at a time. A log that exists is gone on with.

    Raises SetupError where that cannot be done, ConfigError where another key has begun it or another process is writing it.
    """

    def __init__(self, path: Path, signer: Identity) -> None:
        self.path = path
        self.signer = signer
        end, self.seq, self.previous = check_end(path)
        if self.seq:
            _check_begun_by(path, signer)
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise SetupError(f"cannot write the evidence log {path}: {error.strerror or error}") from None
        if not _seize(self._file.fileno()):
            self._file.close()
            raise ConfigError(in_use(path))
        _cut_off(path, end)

    def append(self, record: Record) -> int:
        """Write one record, whole; gives its number."""
        seq = self.seq
        line = signed_line(seq, self.previous, record, self.signer)
        self._file.write(line + b"\n")
        self._file.flush()
        self.seq, self.previous = seq + 1, hashlib.sha256(line).digest()
        return seq

    def sync(self) -> tuple[int, bytes]:
        """Have all records survive a loss of power; gives their number, and the hash of the last line."""
        os.fsync(self._file.fileno())
        return self.seq, self.previous

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that was read: its place, the hash that it names, its record, and what is needed to check its signature."""

    seq: int
    previous: bytes
    record: Record
    signature: bytes
    message: bytes
    digest: bytes

    def signed_by(self, public: bytes) -> bool:
        return verify(public, self.signature, self.message)


def signed_line(seq: int, previous: bytes, record: Record, signer: Identity) -> bytes:
    """The line of a record, without its end."""
    content = {"seq": seq, "previous": previous.hex(), "kind": NAMES[type(record)], "body": to_body(record)}
    signature = signer.sign(RECORD_DOMAIN + canonical(content))
    return canonical({**content, "signature": signature.hex()})


def read_line(line: bytes) -> Entry:
    """A line as an entry; raises ProtocolError for everything that `signed_line` would not have made."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise ProtocolError("it is not JSON") from None
    known = isinstance(content, dict) and content.keys() == _FIELDS
    if not known or not isinstance(content["kind"], str) or content["kind"] not in KINDS:
        raise ProtocolError("it is not a record of a kind that this version knows")
    if _canonical(content) != line:
        raise ProtocolError("it is not in the one form that a record has")
    record = from_body(KINDS[content["kind"]], content["body"])
    signature, previous = from_body(bytes, content.pop("signature")), from_body(bytes, content["previous"])
    message = RECORD_DOMAIN + canonical(content)
    return Entry(from_body(int, content["seq"]), previous, record, signature, message, hashlib.sha256(line).digest())


def lines_of(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """The lines of a log, each with whether it is whole; only the last one may not be."""
    *whole, rest = data.split(b"\n")
    yield from ((line, True) for line in whole)
    if rest:
        yield rest, False


def _canonical(content: Any) -> bytes | None:
    try:
        return canonical(content)
    except (ValueError, RecursionError):
        return None


def check_end(path: Path) -> tuple[int, int, bytes]:
    """Where the whole lines of a log end, and number and hash for the next one; changes nothing.

    Raises SetupError where the log cannot be gone on with.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise SetupError(f"cannot go on with the evidence log {path}: {error.strerror or error}") from None
    end = data.rfind(b"\n") + 1
    if end == 0:
        return 0, 0, FIRST
    try:
        last = read_line(data[data.rfind(b"\n", 0, end - 1) + 1 : end - 1])
    except ProtocolError as error:
        raise SetupError(
            f"cannot go on with the evidence log {path}: its last line was altered ({error}); move it away"
        ) from None
    return end, last.seq + 1, last.digest


def _cut_off(path: Path, end: int) -> None:
    """Take away what a kill has torn."""
    try:
        if path.exists() and path.stat().st_size != end:
            with path.open("r+b") as file:
                file.truncate(end)
    except OSError as error:
        raise SetupError(f"cannot go on with the evidence log {path}: {error.strerror or error}") from None


def _check_begun_by(path: Path, signer: Identity) -> None:
    """A line that another key signs would make an audit call the whole log altered."""
    try:
        with path.open("rb") as lines:
            opening = read_line(lines.readline().rstrip(b"\n")).record
    except ProtocolError as error:
        raise SetupError(
            f"cannot go on with the evidence log {path}: its first line was altered ({error}); move it away"
        ) from None
    if not isinstance(opening, Opening) or opening.keys.get(COORDINATOR) != signer.public:
        raise ConfigError(
            f"{path} was not begun with the coordinator's key {signer.fingerprint[:16]}; go on with the key that it names, "
            "or give another --out"
        )


def in_use(path: Path) -> str:
    return f"another process is going on with this run: it is writing {path}; wait for it, or stop it first"


def is_in_use(path: Path) -> bool:
    """Whether a process has the writing end of this log. False where that cannot be known."""
    try:
        with path.open("rb") as file:
            return not _seize(file.fileno(), shared=True)
    except OSError:
        return False


def _seize(descriptor: int, *, shared: bool = False) -> bool:
    """Whether the file is ours now, until it is closed or this process ends; a file system without locks gives all of them."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
