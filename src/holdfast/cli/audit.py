"""`holdfast audit`: check an evidence log offline, without torch, and say what it proves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.options import JSON

if TYPE_CHECKING:
    from holdfast.evidence.audit_log import Audit
    from holdfast.evidence.casebook import Dispute

FINDING = 1
UNFINISHED = 5
LEAST_PIN = 32


def register(app: typer.Typer) -> None:
    app.command("audit")(audit)


def audit(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="An evidence.jsonl, or the directory of a run.")],
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="FINGERPRINT", help="The coordinator's key; a log signed by another one is refused."),
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="N", help="Tell dispute N (or the one of record rN) in plain words.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="HASH", help="What an earlier audit gave as `last`; a log that lost it since was cut short."
        ),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Verify the evidence of a run, offline. Is it what was written, who was accused, who is proven guilty?

    Exit code 0: the log is whole and nothing is proven. 1: a worker is proven guilty; or the log is not what was written, ends
    too early, or is signed by another key. 5: a run on this machine is still writing it, and nothing is wrong so far.
    """
    from holdfast.evidence import story
    from holdfast.evidence.audit_log import Status
    from holdfast.evidence.audit_log import audit as examine
    from holdfast.evidence.casebook import Law
    from holdfast.verify.recompute import compare
    from holdfast.verify.referee import judge, misstates

    data, live = _read(log)
    found = examine(data, Law(compare, judge, misstates), _pin(key), live=live, since=_since(since))
    if explain is not None and found.status is not Status.OTHER_KEY:
        print("\n".join(story.explain(found, _dispute(found, explain))))
    elif not as_json:
        print("\n".join(story.page(found)))
    if as_json:
        print(json.dumps(found.to_json()))
    if not found.clean:
        raise typer.Exit(UNFINISHED if found.unfinished else FINDING)


def _read(log: Path) -> tuple[bytes, bool]:
    """The bytes of a log, and whether a run is writing it just now."""
    from holdfast.errors import DataError
    from holdfast.evidence.audit_log import is_log
    from holdfast.evidence.log import FILE, is_in_use

    path = log / FILE if log.is_dir() else log
    try:
        live = is_in_use(path)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"no evidence log at {path} ({error.strerror or error}); a run with a defence writes {FILE} beside its report"
        ) from None
    if not data and live:
        raise DataError(f"the evidence log {path} is empty: the run that writes it has just begun; ask again when it trains")
    if not data:
        raise DataError(
            f"{path} is empty: it holds no evidence; a run that was killed at its very beginning leaves such a file"
        )
    if not is_log(data):
        raise DataError(f"{path} is no evidence log: no line of it is a record; give a run's directory, or its {FILE}")
    return data, live


def _pin(key: str | None) -> str | None:
    from holdfast.errors import ConfigError

    if key is None:
        return None
    pin = key.replace(":", "").replace(" ", "").lower()
    if not LEAST_PIN <= len(pin) <= 64 or set(pin) - set("0123456789abcdef"):
        raise ConfigError(f"--key {key!r}: needed are {LEAST_PIN} to 64 hex digits of a fingerprint, as an audit prints it")
    return pin


def _since(given: str | None) -> bytes | None:
    from holdfast.errors import ConfigError

    if given is None:
        return None
    try:
        digest = bytes.fromhex(given)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ConfigError(f"--since {given!r}: needed are the 64 hex digits that an audit gives as `last`")
    return digest


def _dispute(found: Audit, wanted: str) -> Dispute:
    from holdfast.errors import ConfigError

    of_record = wanted.startswith("r")
    number = int(wanted[of_record:]) if wanted[of_record:].isascii() and wanted[of_record:].isdigit() else -1
    for dispute in found.disputes:
        if (number in dispute.records) if of_record else (number == dispute.number):
            return dispute
    known = ", ".join(str(dispute.number) for dispute in found.disputes[:20]) or "none"
    more = ", ..." if len(found.disputes) > 20 else ""
    raise ConfigError(f"--explain {wanted}: no such dispute in the log; there are {known}{more} (rN asks for record N)")
