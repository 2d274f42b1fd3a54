"""A book: one small JSON file of a fixed schema, for its owner alone, that is replaced whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TypeVar

import msgspec

from holdfast import atomic
from holdfast.errors import SetupError

LARGEST_BYTES = 64 << 20

Page = TypeVar("Page")


class Versioned(msgspec.Struct, frozen=True):
    """What every book begins with, whatever its version holds besides."""

    schema: int


def read(path: Path, kind: type[Page], schema: int) -> Page | None:
    """What `write` wrote, None where there is no file. Raises SetupError for anything else, and if others may write it."""
    try:
        found = path.stat()
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise SetupError(f"{path} can be read or written by others; run: chmod 600 {path}")
        if found.st_size > LARGEST_BYTES:
            raise SetupError(f"{path} has {found.st_size} bytes, more than Holdfast ever writes there; move it away")
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        version = msgspec.json.decode(content, type=Versioned).schema
        if version != schema:
            raise SetupError(f"{path} has schema {version}, this version of Holdfast reads {schema}")
        return msgspec.json.decode(content, type=kind, strict=True)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise SetupError(f"{path} is damaged: it is not what Holdfast wrote; put a copy back, or move it away") from None


def write(path: Path, page: msgspec.Struct) -> None:
    """Replace the file. Raises SetupError; the old one stands then."""
    try:
        atomic.write_file(path, msgspec.json.format(msgspec.json.encode(page), indent=1) + b"\n")
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror or error}; make room or give permission") from None
