"""Any .txt, .jsonl or .parquet file becomes documents, or one clear error that names the file and the line."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.data import load_corpus
from holdfast.data.files import read_documents, read_folder
from holdfast.errors import DataError, MissingExtra


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)), encoding="utf-8")
    return path


def parquet_file(path: Path, columns: dict[str, list[Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_txt_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\n\ntwo é".encode())
    assert read_documents(path) == ["one\r\n\ntwo é"]
    path.write_bytes(b"\xef\xbb\xbfno byte order mark")
    assert read_documents(path) == ["no byte order mark"]


def test_a_jsonl_file_is_one_document_a_line_even_with_unicode_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "a\u2028b"}\r\n\n{"text": "", "id": 1}\n{"text": "c\\nd"}'.encode())
    assert read_documents(path) == ["a\u2028b", "", "c\nd"]


def test_a_parquet_file_is_one_document_a_row(tmp_path: Path) -> None:
    path = parquet_file(tmp_path / "a.parquet", {"id": [1, 2], "text": ["a", "b\nc"]})
    assert read_documents(path) == ["a", "b\nc"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a"}\n{"text": \n', r"line 2 is not JSON \(.*one JSON object"),
        (
            b'{"text": "a"}\n\n{"body": "b", "id": 3}\n',
            "line 3 has the fields body, id; it needs an object with a field 'text'",
        ),
        (b'["text"]\n', "line 1 has a list"),
        (b'{"text": 5}\n', "line 1 has a int where the text should be"),
        (b'{"text": "\\ud800"}\n', "line 1 has a lone surrogate at character 0"),
        (b'{"text": "a"}\n' + b"[" * 10_000, r"line 2 is not JSON \(it is nested too deeply\)"),
        (b'{"text": "a", "id": ' + b"9" * 5_000 + b"}", r"line 1 is not JSON"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2 is not UTF-8 \(byte 10"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected) as caught:
        read_documents(path)
    assert str(path) in str(caught.value)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 \(byte 2.*convert it to UTF-8"):
        read_documents(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"ends in '\.pdf'; files must end in \.txt, \.jsonl, \.parquet"):
        load_corpus(str(tmp_path / "a.pdf"))


def test_a_parquet_file_without_the_column_or_torn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the columns body; it needs a column 'text'"):
        read_documents(parquet_file(tmp_path / "a.parquet", {"body": ["a"]}))
    with pytest.raises(DataError, match="row 2 has a NoneType"):
        read_documents(parquet_file(tmp_path / "b.parquet", {"text": ["a", None]}))
    torn = tmp_path / "c.parquet"
    torn.write_bytes((tmp_path / "b.parquet").read_bytes()[:-7])
    with pytest.raises(DataError, match=r"cannot read .*c\.parquet as Parquet"):
        read_documents(torn)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    original = builtins.__import__

    def without_pyarrow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(MissingExtra, match=r"reading a\.parquet needs.*holdfast\[parquet\]"):
        read_documents(tmp_path / "a.parquet")


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: Permission denied"):
        read_documents(tmp_path / "a.txt")


def test_a_folder_has_train_and_validation_files_in_shards(tmp_path: Path) -> None:
    jsonl(tmp_path / "train-00001-of-00002.jsonl", ["c"])
    jsonl(tmp_path / "train-00000-of-00002.jsonl", ["a", "b"])
    (tmp_path / "validation.txt").write_text("v")
    (tmp_path / "test.txt").write_text("t")
    (tmp_path / "README.md").write_text("r")
    assert read_folder(tmp_path) == (["a", "b", "c"], ["v"])


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    jsonl(tmp_path / "poems.jsonl", ["a", "b"])
    assert read_folder(tmp_path) == (["a", "b"], None)


def test_a_folder_without_a_train_file_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no \.txt, \.jsonl, \.parquet file; it needs train\.txt"):
        read_folder(tmp_path)
    for name in ("a.txt", "trainees.txt"):
        (tmp_path / name).write_text("a")
    with pytest.raises(DataError, match=r"has a\.txt, trainees\.txt; it needs train\.txt"):
        load_corpus(str(tmp_path))
