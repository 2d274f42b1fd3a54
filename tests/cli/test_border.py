"""The border: whatever happens below it, a user sees one line and the documented exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast as package
from holdfast.cli import doctor
from holdfast.cli.host import CHECKPOINT_EVERY
from holdfast.errors import HoldfastError, MissingExtra, NetworkError, NotEnoughMemory, PartitionError


def test_version(holdfast) -> None:
    outcome = holdfast("--version")
    assert (outcome.code, outcome.out) == (0, f"holdfast {package.__version__}\n")


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "holdfast", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"holdfast {package.__version__}\n"


def test_an_error_does_not_fill_the_screen(holdfast, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("".join(f"{letter * 70} = 1\n" for letter in "abcdefghijklmnopqrstuvwxyz"))
    outcome = holdfast("train", str(config))
    assert outcome.code == 2
    assert len(outcome.err) < 3200
    assert "--debug shows it" in outcome.err


def test_help_names_every_command_of_the_contract(holdfast) -> None:
    outcome = holdfast("--help")
    assert outcome.code == 0
    for command in (
        "demo",
        "train",
        "eval",
        "models",
        "doctor",
        "export",
        "report",
        "new",
        "invite",
        "nodes",
        "status",
        "--install-completion",
    ):
        assert command in outcome.out


CHECKPOINTS = {
    "train": "(0: at the end) [default: 0]",
    "host": f", the last at the end (0: the default) [default: {CHECKPOINT_EVERY}]",
}


@pytest.mark.parametrize("command", CHECKPOINTS)
def test_help_shows_the_defaults(holdfast, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    told = " ".join(holdfast(command, "--help").out.split())
    assert "--steps N optimizer steps [default: 150] --learning-rate X peak learning rate [default: 0.003] --warmup" in told
    assert "send every message through its wire encoding [default: off]" in told
    found = told.partition("--checkpoint-every N steps between checkpoints")[2]
    assert found.lstrip().startswith(CHECKPOINTS[command])
    assert ("[default: runs/DATE-TIME]" in told) == (command == "train"), "a host has no directory of its own accord"


@pytest.mark.parametrize("words", [(), ("bench",), ("new",)], ids=str)
def test_the_list_of_commands_breaks_off_nowhere(holdfast, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = holdfast(*words, "--help").out.partition("Commands:")[2]
    assert told.count("\n") > 1
    assert not re.search(r"\.\.\.$", told, re.MULTILINE), told


@pytest.mark.parametrize(("columns", "least", "most"), [(80, 70, 80), (110, 90, 110), (200, 100, 120)])
def test_help_is_as_wide_as_the_terminal_up_to_a_limit(
    holdfast, monkeypatch: pytest.MonkeyPatch, columns: int, least: int, most: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert least < max(map(len, holdfast("train", "--help").out.splitlines())) <= most


SLOW_TO_IMPORT = ("torch", "transformers", "pydantic", "pandas", "scipy", "matplotlib", "grpc", "cryptography", "numpy")


def test_help_is_quick() -> None:
    """Under 0.3 s on an idle machine, because nothing large is imported for it."""
    script = f"""
import sys
from holdfast.cli.host import CHECKPOINT_EVERY
from holdfast.cli.main import main
try:
    main(["--help"])
except SystemExit as left:
    assert not left.code
print([name for name in {SLOW_TO_IMPORT} if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert "Usage" in told
    assert told.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [("--bogus",), ("bogus",), ("train", "--steps", "many"), ("new", "attack"), ("export", "x")])
def test_wrong_usage_is_two(holdfast, words: tuple[str, ...]) -> None:
    outcome = holdfast(*words)
    assert outcome.code == 2
    assert "rror" in outcome.err
    assert "Traceback" not in outcome.err


ERRORS = [
    (HoldfastError("a finding"), 1),
    (PartitionError("cannot be cut"), 2),
    (NotEnoughMemory("too large"), 3),
    (MissingExtra("peft", extra="lora", purpose="LoRA"), 3),
    (NetworkError("no answer"), 4),
    (ZeroDivisionError("a defect"), 1),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_errors_become_one_line_and_their_code(
    holdfast, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_words: str) -> None:
        raise error

    monkeypatch.setattr("holdfast.cli.checkup.examine", fail)
    outcome = holdfast("doctor")
    assert outcome.code == code
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    assert (code != 1 or isinstance(error, HoldfastError)) or "--debug" in outcome.err
    assert "Traceback" in holdfast("doctor", "--debug").err


def test_an_interrupt_is_no_defect(holdfast, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_words: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.cli.checkup.examine", interrupt)
    outcome = holdfast("doctor")
    assert outcome.code != 0
    assert "defect" not in outcome.err


def test_debug_after_two_dashes_is_an_argument() -> None:
    from holdfast.cli.main import _without_debug

    assert _without_debug(["train", "--debug", "x"]) == (["train", "x"], True)
    assert _without_debug(["report", "--", "--debug"]) == (["report", "--", "--debug"], False)


def test_shell_completion_is_offered() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "holdfast"],
        env={"_HOLDFAST_COMPLETE": "complete_bash", "COMP_WORDS": "holdfast tr", "COMP_CWORD": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "train" in done.stdout


def test_a_command_is_not_run_for_its_help(holdfast, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "doctor", None)
    assert holdfast("doctor", "--help").code == 0
    assert holdfast("train", "--help").code == 0
    assert list(tmp_path.iterdir()) == []
