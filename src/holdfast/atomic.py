"""A directory that appears whole or not at all, and a manifest that tells later whether it still is what was written.

    .tmp-NAME-PID/   write files, manifest.json last; fsync all   --rename-->   NAME/

A kill at any point leaves either no NAME or all of it, and perhaps a `.tmp-` directory for `clear_leftovers`.
A single file is replaced in the same way by `write_file`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.errors import CheckpointError
from holdfast.plain import from_own_json

MANIFEST = "manifest.json"
SCHEMA = 1
_ASIDE = ".old-"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_LEFTOVER = re.compile(r"\.+tmp-.*")


@contextmanager
def new_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory that becomes `target` when the block ends well, and is removed when it does not.

    An empty `target` gives way; one with files does so only with `replace`, and only once the new one is on the disk. What the
    system refuses is an OSError, whoever was writing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".tmp-{target.name}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with told_by_the_system():
            yield partial
        _sync_tree(partial)
        if replace and target.exists():
            os.replace(target, _aside(target))
        os.replace(partial, target)
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _settle(_aside(target), target)


@contextmanager
def told_by_the_system() -> Iterator[None]:
    """What the writers of safetensors and tokenizers raise where the system refuses a file, as the OSError that it is."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # SafetensorError, or nothing more precise than Exception
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def write_file(target: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file: a kill leaves the old one or the new one. Only its owner may read it by default. Raises OSError."""
    partial = target.with_name(f".tmp-{target.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            os.chmod(partial, mode)  # the umask may have taken more away
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, target)
        sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def clear_leftovers(parent: Path) -> None:
    """Remove what killed writes left in `parent`; nothing else may be writing there."""
    for path in sorted(parent.iterdir()):
        if path.name.startswith(_ASIDE):
            _settle(path, parent / path.name.removeprefix(_ASIDE))
        elif _LEFTOVER.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """Remove a directory so that a kill half-way leaves a leftover, not a torn directory of its name."""
    doomed = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(_ASIDE + target.name)


def _settle(aside: Path, target: Path) -> None:
    """A directory that was moved aside goes once its successor is there, and comes back where there is none."""
    if aside.exists():
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(aside, target)


def write_manifest(directory: Path) -> None:
    """Record size and sha256 of every file below `directory` in its manifest.json."""
    files = {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in _files(directory).items()}
    text = json.dumps({"schema": SCHEMA, "files": files}, indent=1) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def verify_manifest(directory: Path) -> None:
    """Raise CheckpointError naming the first file that is missing, too many, of another size or altered."""
    recorded = _read_manifest(directory)
    found = _files(directory)
    for name in sorted(recorded.keys() - found.keys()):
        raise CheckpointError(f"{directory} is not whole: {name} is missing")
    for name in sorted(found.keys() - recorded.keys()):
        raise CheckpointError(f"{directory} was altered: {name} is not in its manifest; remove that file")
    for name, (size, digest) in sorted(recorded.items()):
        actual = found[name].stat().st_size
        if actual != size:
            raise CheckpointError(f"{directory} is torn: {name} has {actual} bytes where {size} were written")
        if sha256_of(found[name]) != digest:
            raise CheckpointError(f"{directory} was altered: {name} no longer has the sha256 it was written with")


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_manifest(directory: Path) -> dict[str, tuple[int, str]]:
    path = directory / MANIFEST
    try:
        manifest = from_own_json(path.read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            raise CheckpointError(f"{path} has schema {manifest['schema']}, this version of Holdfast reads {SCHEMA}")
        return {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        raise CheckpointError(f"{directory} is no checkpoint, or a torn one: {MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{directory} is torn: {MANIFEST} is unreadable ({error})") from error


def _files(directory: Path) -> dict[str, Path]:
    """Everything below `directory` but directories and the manifest; a link counts as a file that nobody recorded."""
    entries = sorted(directory.rglob("*"))
    paths = (path for path in entries if path.is_symlink() or not path.is_dir())
    return {name: path for path in paths if (name := path.relative_to(directory).as_posix()) != MANIFEST}


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)


def sync(path: Path) -> None:
    """Have a file, or the entries of a directory, survive a loss of power. Raises OSError."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no directories
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
