"""A command carried out in this process, and a directory as the bytes of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.cli.main import main


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def command(*words: str) -> int:
    """The exit code of `holdfast` with these words."""
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0)
