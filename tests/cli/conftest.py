"""A command line inside the test's process: what it printed, and the exit code that a shell would see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from holdfast.cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def holdfast(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*words: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(words))
        told = capsys.readouterr()
        return Outcome(int(left.value.code or 0), told.out, told.err)

    return run
