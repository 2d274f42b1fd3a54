"""Documents from files: a .txt is one document, a .jsonl has one a line and a .parquet one a row, in the field `text`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from holdfast.errors import DataError, MissingExtra
from holdfast.plain import from_json

SUFFIXES = (".txt", ".jsonl", ".parquet")
FIELD = "text"
TRAIN = re.compile(r"train(ing)?([-_.].*)?")
VALIDATION = re.compile(r"(valid|validation|val|dev)([-_.].*)?")

Split = tuple[list[str], list[str] | None]
"""Documents to train on, and those held out where the source has such."""


def read_documents(path: Path) -> list[str]:
    """The documents of one file, blank ones included; raises DataError naming the file and, where it can, the line."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'!r}; files must end in {', '.join(SUFFIXES)}")
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".txt":
        return [_decode(octets, str(path))]
    lines = enumerate(octets.split(b"\n"), start=1)
    return [_record(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def read_folder(folder: Path) -> Split:
    """Train and validation documents of a folder; shards (`train-00000-of-00002.parquet`) are read in order of their names.

    A folder with a single file and no other is that file's documents.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    train = [path for path in files if TRAIN.fullmatch(path.stem)]
    validation = [path for path in files if VALIDATION.fullmatch(path.stem)]
    if len(files) == 1:
        train, validation = files, []
    if not train:
        found = ", ".join(path.name for path in files) or f"no {', '.join(SUFFIXES)} file"
        raise DataError(f"{folder} has {found}; it needs train.txt (or .jsonl, .parquet) and may have valid.txt beside it")
    return _read_all(train), _read_all(validation) if validation else None


def _read_all(paths: list[Path]) -> list[str]:
    return [document for path in paths for document in read_documents(path)]


def _decode(octets: bytes, where: str) -> str:
    try:
        return octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 (byte {error.start}: {error.reason}); convert it to UTF-8") from None


def _record(line: bytes, where: str) -> str:
    try:
        record = from_json(_decode(line, where))
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({_fault(error)}); each line must be one JSON object") from None
    if not isinstance(record, dict) or FIELD not in record:
        got = f"the fields {', '.join(record) or '(none)'}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise DataError(f"{where} has {got}; it needs an object with a field {FIELD!r}")
    return check_text(record[FIELD], where)


def _fault(error: ValueError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def check_text(value: Any, where: str) -> str:
    """`value`, if it is a string that UTF-8 can hold (JSON escapes can spell lone surrogates); else DataError."""
    if not isinstance(value, str):
        raise DataError(f"{where} has a {type(value).__name__} where the text should be; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has a lone surrogate at character {error.start}, which is no Unicode text; remove it"
        ) from None
    return value


def _read_parquet(path: Path) -> list[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("pyarrow", extra="parquet", purpose=f"reading {path.name}") from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if FIELD not in names:
                raise DataError(f"{path} has the columns {', '.join(names) or '(none)'}; it needs a column {FIELD!r}")
            values = file.read(columns=[FIELD]).column(FIELD).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path} as Parquet: {error}") from error
    return [check_text(value, f"{path}, row {row}") for row, value in enumerate(values, start=1)]
