"""A file that is replaced whole or not at all, for its owner alone."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from holdfast.atomic import clear_leftovers, new_directory, write_file


@pytest.mark.parametrize("umask", [0, 0o777])
def test_a_file_is_replaced_and_is_its_owners(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "book.json"
    path.write_text("old")
    before = os.umask(umask)
    try:
        write_file(path, b"new")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_half_way_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "book.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("holdfast.atomic.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".tmp-book.json-1-2").write_text("half")
    (tmp_path / "book.json").write_text("whole")
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["book.json"]


@pytest.mark.parametrize(
    "write",
    [lambda path: save_file({"a": torch.zeros(1000)}, path), lambda path: Tokenizer(models.BPE()).save(path)],
    ids=["safetensors", "tokenizers"],
)
def test_what_the_system_refuses_is_its_error_whoever_writes(tmp_path: Path, write: Callable[[str], None]) -> None:
    """Both libraries raise errors of their own; a run told a full disk as a defect of Holdfast."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large") as told, new_directory(tmp_path / "model") as partial:
            write(str(partial / "file"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="os error"), new_directory(tmp_path / "model"):
        raise ValueError("nothing of the os error kind")
