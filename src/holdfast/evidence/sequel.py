"""Whether somebody may go on with an evidence log: an audit would take the lines of anybody else for tampering.

    the log: its opening, later keys, newest version  <--held against-->  the run: its name, its keys, its version

Whoever is refused here has lost nothing; whoever is not, and should have been, has turned good evidence into bad.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from holdfast.errors import ConfigError, ProtocolError, SetupError
from holdfast.evidence.identity import fingerprint
from holdfast.evidence.log import COORDINATOR, check_end, in_use, is_in_use, read_line
from holdfast.evidence.record import Enrolled, Opening, Record, Resumed, Rollback, Sealed


def check_goes_on(path: Path, run: str, keys: Mapping[str, bytes], version: int) -> None:
    """Raise ConfigError where a run of this name, whose members have these public keys, must not go on with the log at `path`
    from `version`; where another process is writing it, too. SetupError where the log was damaged. Changes nothing.
    """
    end, records, _last = check_end(path)
    if not records:
        return
    if is_in_use(path):
        raise ConfigError(in_use(path))
    opening, known, newest = _told(path, path.read_bytes()[:end])
    if opening.run != run:
        raise ConfigError(
            f"{path} is the evidence of the run {opening.run}, and this is the run {run}; give another --out, or move it away"
        )
    ours = keys.get(COORDINATOR, b"")
    if opening.keys.get(COORDINATOR) != ours:
        raise ConfigError(
            f"{path} was begun with the coordinator's key {fingerprint(opening.keys.get(COORDINATOR, b''))[:16]}, and this run "
            f"would go on with {fingerprint(ours)[:16]}, which an audit takes for tampering; go on with {_with_what(opening)}, "
            "or give another --out"
        )
    other = [name for name, key in keys.items() if known.get(name, key) != key]
    if other:
        raise ConfigError(
            f"{path} knows {other[0]} by another key than this run would go on with; go on with {_with_what(opening)}, "
            "or give another --out"
        )
    if version > newest:
        raise ConfigError(
            f"{path} ends at version {newest}, and the run would go on from version {version}: the steps between left no "
            "evidence; move the log away, and the run goes on with a new one"
        )


def _with_what(opening: Opening) -> str:
    if COORDINATOR in opening.derived:
        return "the seed that the run began with, and without output.key"
    if opening.derived:
        return "the key file (output.key) and the seed that the run began with"
    return "the command that the run began with (`holdfast host`), on the machine that has its key"


def _told(path: Path, data: bytes) -> tuple[Opening, dict[str, bytes], int]:
    """The opening record, all keys that the log knows, and the version at its end."""
    first, *rest = data.split(b"\n")[:-1]
    opening = newest = _read(path, first)
    if type(opening) is not Opening:
        raise SetupError(f"cannot go on with the evidence log {path}: it does not begin with an opening record; move it away")
    known, version_line = dict(opening.keys), first
    for line in rest:
        kind = _kind(line)
        if kind in ("resumed", "rollback", "seal"):
            version_line = line  # most lines are seals, and only the last one counts
        if kind == "resumed":
            record = _read(path, line)
            known.update(record.keys if isinstance(record, Resumed) else {})
        elif kind == "enrolled":
            record = _read(path, line)
            known.update({record.member: record.key} if isinstance(record, Enrolled) else {})
    newest = _read(path, version_line)
    assert isinstance(newest, Opening | Rollback | Sealed)
    return opening, known, newest.version


def _kind(line: bytes) -> str:
    """The kind of a line that is in the one form that a record has."""
    return line.rpartition(b'},"kind":"')[2].partition(b'"')[0].decode(errors="replace")


def _read(path: Path, line: bytes) -> Record:
    try:
        return read_line(line).record
    except ProtocolError as error:
        raise SetupError(f"cannot go on with the evidence log {path}: a line was altered ({error}); move it away") from None
