"""Whoever goes on with a run leaves its evidence good: what would make an audit cry wolf is refused, and nothing written."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.chronicle import Chronicle
from holdfast.config import resolve
from holdfast.errors import ConfigError
from holdfast.event import Event, StepSealed
from holdfast.evidence.log import FILE, EvidenceLog, is_in_use
from holdfast.host import Host, Premises
from holdfast.toml import to_toml

from .whole import command, tree

TINY: dict[str, Any] = {
    "model": "gpt2:layers=4,width=16,heads=2",
    "data": "synthetic",
    "vocabulary": 280,
    "seq_length": 8,
    "stages": 4,
    "micro_batches": 2,
    "micro_batch_size": 2,
    "steps": 4,
    "checkpoint_every": 2,
}


def status(capsys: pytest.CaptureFixture[str], out: Path) -> str:
    capsys.readouterr()
    command("audit", str(out), "--json")
    return str(json.loads(capsys.readouterr().out.splitlines()[-1])["status"])


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ended") / "run"
    Experiment(**TINY, out=str(out)).run()
    return out


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of four steps."""
    return Path(shutil.copytree(ended, tmp_path / "run"))


Refused = Callable[..., str]


@pytest.fixture
def refused(run: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Goes on with the run, which must be refused in one line that is returned, and change nothing."""

    def go(*words: str) -> str:
        before = tree(run)
        capsys.readouterr()
        assert command("train", "--resume", str(run), "-q", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert tree(run) == before
        assert status(capsys, run) == "intact"
        return line

    return go


# -- another run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--steps", "6")], ids=["finished", "longer"])
def test_another_seed_is_another_run(refused: Refused, more: tuple[str, ...]) -> None:
    """It signed with other keys in the same log, and the audit called that tampering."""
    line = refused("--seed", "5", *more)
    assert "another seed is another run" in line
    assert "--out" in line


@pytest.mark.parametrize(
    "words",
    [("--seq-length", "4"), ("--micro-batches", "4"), ("--micro-batch-size", "1"), ("--set", "data.train_tokens=500")],
    ids=lambda words: words[0],
)
def test_what_says_which_text_a_step_sees_stays(refused: Refused, words: tuple[str, ...]) -> None:
    assert "is another run" in refused("--steps", "6", *words)


def test_another_key_of_the_coordinator_is_refused(refused: Refused, run: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    assert "is missing" in refused("--steps", "6", "--set", f"output.key={key}")
    from holdfast.evidence.identity import generate

    generate().save(key)
    assert "without output.key" in refused("--steps", "6", "--set", f"output.key={key}")


def test_no_log_is_opened_with_another_key(run: Path) -> None:
    from holdfast.evidence.identity import derived

    before = tree(run)
    with pytest.raises(ConfigError, match="was not begun with"):
        EvidenceLog(run / FILE, derived(5, "coordinator"))
    assert tree(run) == before


def test_the_evidence_of_another_run_is_not_gone_on_with(refused: Refused, run: Path, tmp_path: Path) -> None:
    Experiment(**TINY, out=str(tmp_path / "other")).run()
    shutil.copy(tmp_path / "other" / FILE, run / FILE)
    assert "is the evidence of the run" in refused("--steps", "6")


def test_steps_without_evidence_between_are_refused(refused: Refused, run: Path, tmp_path: Path) -> None:
    """Without a defence nothing is written; the log then went on at a version that it had never seen sealed: UNSOUND."""
    assert command("train", "--resume", str(run), "--steps", "6", "--defence", "none", "-q") == 0
    assert "move the log away" in refused("--steps", "8", "--defence", "duplicate")
    (run / FILE).rename(tmp_path / "before.jsonl")
    assert command("train", "--resume", str(run), "--steps", "8", "--defence", "duplicate", "-q") == 0
    assert command("audit", str(run)) == 0


def test_two_processes_do_not_go_on_with_one_run(refused: Refused, run: Path) -> None:
    from holdfast.evidence.identity import derived

    writing = EvidenceLog(run / FILE, derived(0, "coordinator"))
    assert is_in_use(run / FILE)
    assert "another process is going on with this run" in refused("--steps", "6")
    with pytest.raises(ConfigError, match="another process"):
        EvidenceLog(run / FILE, derived(0, "coordinator"))
    writing.close()
    assert not is_in_use(run / FILE)


# -- hosted, or not --------------------------------------------------------------------------------------------------------


def test_a_run_that_was_hosted_goes_on_with_its_host_alone(refused: Refused, run: Path) -> None:
    (run / "host").mkdir()
    line = refused("--steps", "6")
    assert "was opened by `holdfast host`" in line
    assert "the same command" in line


def test_a_host_does_not_go_on_with_a_run_that_it_did_not_open(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    before = tree(run)
    config = resolve({**Experiment(resume=run, steps=6).config.model_dump(exclude_none=True)})
    host = Host(config, run, Premises(), print)
    with pytest.raises(ConfigError, match="was not opened by `holdfast host`"):
        Experiment(config, resume=run, host=host)
    assert tree(run) == before


# -- stopped at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "where"), [(0, "from the beginning: there is no checkpoint"), (2, "from step 2 of 4")])
def test_a_second_interrupt_has_a_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int, where: str
) -> None:
    """It left without a word."""
    out, tell = tmp_path / "run", Chronicle.tell

    def press(chronicle: Chronicle, event: Event, seconds: float = 0.0) -> None:
        tell(chronicle, event, seconds)
        if isinstance(event, StepSealed) and event.step == step:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    config = tmp_path / "run.toml"
    config.write_text(to_toml(Experiment(**TINY, out=str(out)).config))
    with monkeypatch.context() as patch:
        patch.setattr(Chronicle, "tell", press)
        assert command("train", str(config), "-q") == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"stopped at once; go on with: holdfast train --resume {out} ({where})"
    assert command("train", "--resume", str(out), "-q") == 0
    assert status(capsys, out) == "intact"


@pytest.mark.parametrize("name", ["run.json", "report.html", "holdfast.log"])
def test_a_folder_where_a_file_will_be_written_is_found_at_once(run: Path, refused: Refused, name: str) -> None:
    """The steps were made, and then there was nowhere to write what they came to."""
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    assert f"{run / name} is a folder" in refused("--steps", "6")


# -- nothing left ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--learning-rate", "9"), ("--stages", "3")], ids=["as it was", "rate", "stages"])
def test_a_finished_run_is_left_alone(run: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    """Its config.toml took the new settings although no step was trained with them."""
    before = tree(run)
    assert command("train", "--resume", str(run), "--json", *words) == 0
    said = capsys.readouterr()
    assert "nothing is left to do" in said.err
    assert "--steps" in said.err
    assert json.loads(said.out.splitlines()[-1]) == json.loads(before["run.json"])["result"]
    assert tree(run) == before


def test_a_finished_run_whose_model_is_missing_gets_it(run: Path) -> None:
    """As after a disk that was full at the very end."""
    before = tree(run / "model")
    shutil.rmtree(run / "model")
    assert command("train", "--resume", str(run), "-q") == 0
    assert tree(run / "model") == before


# -- damaged checkpoints ---------------------------------------------------------------------------------------------------


def spoil(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_who_finds_a_damaged_checkpoint_is_told_which_one_is_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It said to use an older checkpoint, whether there was one or not."""
    newest, older = run / "checkpoints" / "step-000004", run / "checkpoints" / "step-000002"
    spoil(newest)
    for words in (("--resume", str(run)), ("--resume", str(newest))):
        assert command("train", *words, "-q") == 3
        assert f"go on with --resume {older}" in capsys.readouterr().err
    assert command("export", str(run), "--to", str(run / "out")) == 3
    assert f"holdfast export {older} --to" in capsys.readouterr().err
    spoil(older)
    assert command("train", "--resume", str(run), "-q") == 3
    assert "No other checkpoint of the run is whole" in capsys.readouterr().err
    assert command("export", str(run), "--to", str(run / "out")) == 3
    assert "No other certified one that is whole is there" in capsys.readouterr().err
