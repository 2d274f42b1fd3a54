"""A mistyped model is told at once: a path is no name on the hub, and the hub is asked twice at most, quietly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from holdfast.data import load_tokenizer
from holdfast.errors import ConfigError, HoldfastError, SetupError
from holdfast.partition import describe, hub


class Asked:
    """Stands for the hub: `answer` is raised, or given, each time that it is asked."""

    def __init__(self) -> None:
        self.answer: Any = OSError("[Errno -2] Name or service not known")
        self.names: list[str] = []

    def model_info(self, name: str, **_: Any) -> None:
        self.names.append(name)
        if isinstance(self.answer, Exception):
            raise self.answer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Asked]:
    stand_in = Asked()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: stand_in)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "PAUSE_S", 0.0)
    hub.ask.cache_clear()
    yield stand_in
    hub.ask.cache_clear()


@pytest.mark.parametrize("name", ["./nope", "/nowhere/nope", "~/nope-at-all", "a/b/c", "runs/nope"])
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(asked: Asked, tmp_path: Path, name: str) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match="there is no such directory"):
        describe(name)
    with pytest.raises(HoldfastError, match="no folder"):
        load_tokenizer(name)
    assert asked.names == []


def test_a_hub_that_does_not_answer_is_asked_twice_and_told_in_one_line(
    asked: Asked, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It was five tries a file with pauses of up to 8 s, each told on two lines, and then something else was blamed."""
    for _ in range(3):
        with pytest.raises(SetupError, match=r"no directory 'lab/tinny', and the hub cannot be reached .*Name or service"):
            describe("lab/tinny")
    with pytest.raises(SetupError, match="the hub cannot be reached"):
        load_tokenizer("lab/tinny")
    assert asked.names == ["lab/tinny"] * 2
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


def test_a_name_that_the_hub_does_not_have(asked: Asked) -> None:
    asked.answer = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # what it is made from depends on the version
    with pytest.raises(ConfigError, match=r"no model 'gpt2-tinny': neither a directory here nor a name that the hub has"):
        describe("gpt2-tinny")
    assert asked.names == ["gpt2-tinny"]
