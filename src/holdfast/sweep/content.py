"""The content of the files that settings name, in place of their paths: a directory that was moved still counts as the same.

    model.name = "models/a"                    -> the digest of all files in it
    data.name = "wikitext2"                    -> the digest of its local folder, where there is one
    attack.spec = "mine.py:Shrink,factor=2"    -> the digest of mine.py, then `:Shrink,factor=2`

What has no file here (a model from scratch, a name on the hub) is its own name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from holdfast.atomic import sha256_of
from holdfast.data.corpus import local_folder
from holdfast.errors import DataError

_PATHS = {"model": ("name",), "data": ("name", "tokenizer"), "defence": ("calibration",)}
_SPECS = {"defence": ("on_alert",)}


def with_contents(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of resolved settings in which each name of a local file or directory is the digest of its content."""
    found = {name: dict(table) if isinstance(table, Mapping) else table for name, table in settings.items()}
    for section, keys in _PATHS.items():
        for key in keys:
            found[section][key] = _named(found[section][key])
    for section, keys in _SPECS.items():
        for key in keys:
            found[section][key] = _spec(found[section][key])
    found["attack"] = [{**attack, "spec": _spec(attack["spec"])} for attack in found["attack"]]
    return found


def digest_of(path: Path) -> str:
    """sha256 (hex) of a file, or of the names and digests of all files below a directory, hidden ones left out.

    Read once in a process for each state of a file (its size and its time of change). Raises DataError for what cannot be read.
    """
    try:
        if not path.is_dir():
            return _file_digest(path)
        total = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            inside = file.relative_to(path)
            if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
                total.update(f"{inside.as_posix()}\0{_file_digest(file)}\n".encode())
        return total.hexdigest()
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}; a cell's key covers the files that it names"
        ) from None


def _file_digest(path: Path) -> str:
    state = path.stat()
    return _digest_in_state(path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_in_state(path: Path, _size: int, _changed: int) -> str:
    return sha256_of(path)


def _named(name: str | None) -> str | None:
    if name is None:
        return None
    if name == "embedded":
        return f"embedded:{_embedded_digest()}"  # another Python has another text
    folder = local_folder(name)
    path = folder if folder is not None else Path(name).expanduser()
    return f"sha256:{digest_of(path)}" if _exists(path) else name


def _spec(spec: str) -> str:
    """The spec of an attack or a remedy, with the content of its file and of those that its parameters name."""
    name, *pairs = spec.split(",")
    file, colon, class_name = name.rpartition(":")
    if colon and _exists(Path(file)):
        name = f"sha256:{digest_of(Path(file))}:{class_name}"
    return ",".join([name, *map(_pair, pairs)])


def _pair(pair: str) -> str:
    key, equals, value = pair.partition("=")
    path = Path(value.strip().strip("\"'"))
    return f"{key}=sha256:{digest_of(path)}" if equals and re.search(r"[./]", value) and path.is_file() else pair


def _exists(path: Path) -> bool:
    try:
        return str(path) != "" and path.exists()
    except OSError:  # a name that is too long for a path
        return False


@lru_cache(maxsize=1)
def _embedded_digest() -> str:
    from holdfast.data import load_corpus

    return load_corpus("embedded").sha256
