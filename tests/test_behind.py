"""Checkpoints are written behind the run's back: nobody waits for the disk, and whatever the disk does, the run goes on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast import keeper as module
from holdfast.behind import Behind, Outcome
from holdfast.checkpoint import read_checkpoint, write_checkpoint
from holdfast.cli.main import main
from holdfast.errors import CheckpointError
from holdfast.event import CheckpointFailed, CheckpointTaken, CheckpointWritten, Event, RolledBack, StepSealed
from holdfast.report.jsonl import read_report
from holdfast.result import RunResult

TINY: dict[str, Any] = {
    "model": "gpt2:layers=4,width=16,heads=2",
    "data": {"name": "synthetic:order=1,symbols=32,tokens=20000", "sequence_length": 16, "validation_tokens": 256},
    "stages": 4,
    "micro_batches": 2,
    "micro_batch_size": 2,
    "steps": 6,
    "checkpoint_every": 2,
    "keep": 9,
}


class Run:
    """A run that is watched; `at` is called with each event."""

    def __init__(self, out: Path | None, at: Callable[[Event], None] = lambda _event: None, **settings: Any) -> None:
        self.events: list[Event] = []
        self._at = at
        where = {} if out is None else {"out": str(out)}
        self.experiment = Experiment(**{**TINY, **settings, **where}, observers=[self._observe])

    def run(self) -> RunResult:
        return self.experiment.run()

    def _observe(self, event: Event, _seconds: float) -> None:
        self.events.append(event)
        self._at(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    out = tmp_path_factory.mktemp("clean") / "run"
    return out, Run(out).run()


def contents(checkpoint: Path) -> dict[str, bytes]:
    """All but what names or times the run."""
    return {p.name: p.read_bytes() for p in checkpoint.iterdir() if p.name not in ("state.json", "manifest.json")}


# -- the thread -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def behind() -> Iterator[Behind]:
    found = Behind()
    yield found
    found.close()


def test_one_is_written_at_a_time_and_the_next_waits(behind: Behind, tmp_path: Path) -> None:
    gate, running, most = threading.Event(), [0], [0]

    def write(path: Path, wait: threading.Event | None) -> Path:
        running[0] += 1
        most[0] = max(most[0], running[0])
        assert wait is None or wait.wait(20)
        running[0] -= 1
        return path

    behind.begin(1, tmp_path / "1", partial(write, tmp_path / "1", gate))
    assert behind.settled() == []
    assert behind.version == 1
    threading.Timer(0.2, gate.set).start()
    behind.begin(2, tmp_path / "2", partial(write, tmp_path / "2", None))
    behind.wait()
    assert behind.settled() == [Outcome(1, tmp_path / "1"), Outcome(2, tmp_path / "2")]
    assert behind.settled() == []
    assert (most[0], behind.version) == (1, None)


def test_a_failed_write_is_an_outcome_and_a_bug_is_raised(behind: Behind, tmp_path: Path) -> None:
    error = CheckpointError("the disk is full")

    def fail(raised: Exception) -> Path:
        raise raised

    behind.begin(1, tmp_path, partial(fail, error))
    behind.wait()
    assert behind.settled() == [Outcome(1, tmp_path, error)]
    behind.begin(2, tmp_path, partial(fail, KeyError("wte")))
    with pytest.raises(KeyError):
        behind.wait()


# -- a slow disk ----------------------------------------------------------------------------------------------------------


def test_the_steps_go_on_while_a_checkpoint_is_written(
    clean: tuple[Path, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes the first checkpoint only when two more steps are sealed; it holds what it would have held at once."""
    gate = threading.Event()

    def slow(root: Path, snapshot: Any, **more: Any) -> Path:
        assert snapshot.version != 2 or gate.wait(60), "the steps have waited for the disk"
        return write_checkpoint(root, snapshot, **more)

    def open_gate(event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 3:
            gate.set()

    monkeypatch.setattr(module, "write_checkpoint", slow)
    run = Run(tmp_path / "run", open_gate, attack="sign-flip,rate=0.7")
    assert run.run().weights_digest == clean[1].weights_digest
    for step in (2, 4, 6):
        name = f"checkpoints/step-{step:06d}"
        assert contents(tmp_path / "run" / name) == contents(clean[0] / name)
        assert read_checkpoint(tmp_path / "run" / name).digests == read_checkpoint(clean[0] / name).digests
    told = [
        (type(event).__name__, event.step) for event in run.events if isinstance(event, (CheckpointTaken, CheckpointWritten))
    ]
    assert told.index(("CheckpointTaken", 2)) < told.index(("CheckpointWritten", 2))
    order = [event for event in run.events if isinstance(event, (StepSealed, CheckpointWritten))]
    assert [e.step for e in order[: order.index(run.of(CheckpointWritten)[0])] if isinstance(e, StepSealed)] == [0, 1, 2, 3]


def test_a_run_that_goes_on_from_a_checkpoint_that_was_written_late_tells_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the taking of the checkpoint and its being on the disk the report has told of more steps."""
    gate, out = threading.Event(), tmp_path / "run"

    def slow(root: Path, snapshot: Any, **more: Any) -> Path:
        assert gate.wait(60)
        return write_checkpoint(root, snapshot, **more)

    def stop(event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 3:
            gate.set()
        if isinstance(event, StepSealed) and event.step == 4:
            run.experiment.stop()

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_checkpoint", slow)
        run = Run(out, stop)
        run.run()
    shutil.rmtree(out / "checkpoints" / "step-000005")
    shutil.rmtree(out / "checkpoints" / "step-000004")
    Experiment(resume=out).run()
    steps = [record["step"] for record in read_report(out / "report.jsonl") if record["event"] == "StepSealed"]
    assert steps == [0, 1, 2, 3, 4, 5]


def test_who_goes_back_waits_for_what_is_being_written(
    clean: tuple[Path, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(root: Path, snapshot: Any, **more: Any) -> Path:
        threading.Event().wait(1.0)  # longer than the step in which both holders go
        return write_checkpoint(root, snapshot, **more)

    monkeypatch.setattr(module, "write_checkpoint", slow)
    run = Run(tmp_path / "run", faults=["crash stage=1 step=2 at=forward", "crash stage=2 step=2 at=forward"])
    assert run.run().weights_digest == clean[1].weights_digest
    assert [(event.step, event.version) for event in run.of(RolledBack)] == [(2, 2)]


# -- a disk that does not take it ------------------------------------------------------------------------------------------


FULL = (errno.ENOSPC, "No space left on device")
READ_ONLY = (errno.EROFS, "Read-only file system")


@pytest.mark.parametrize(("number", "reason"), [FULL, READ_ONLY])
def test_a_run_goes_on_without_checkpoints_says_so_once_and_writes_them_again(
    clean: tuple[Path, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    out, sync, writing = tmp_path / "run", os.fsync, threading.local()

    def fsync(file: int) -> None:
        if getattr(writing, "version", 0) in (3, 4, 5, 6):  # set in the thread that writes checkpoints only
            raise OSError(number, os.strerror(number))
        sync(file)

    def write(root: Path, snapshot: Any, **more: Any) -> Path:
        writing.version = snapshot.version
        return write_checkpoint(root, snapshot, **more)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(module, "write_checkpoint", write)
    run = Run(out, checkpoint_every=1, steps=8)
    result = run.run()
    (failed,) = run.of(CheckpointFailed)
    assert failed.step == 3
    assert reason in failed.reason
    assert failed.last == str(out / "checkpoints" / "step-000002")
    assert result.steps == result.checkpoint_step == 8
    assert not {f"step-{step:06d}" for step in (3, 4, 5, 6)} & set(os.listdir(out / "checkpoints"))
    assert not [name for name in os.listdir(out / "checkpoints") if name.startswith(".")]
    assert read_checkpoint(out / "checkpoints" / "step-000008").version == 8


def test_a_stopped_run_says_from_where_it_would_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from holdfast.toml import to_toml

    config = tmp_path / "run.toml"
    config.write_text(to_toml(Experiment(**TINY).config))
    write = module.write_checkpoint

    def full(root: Path, snapshot: Any, **more: Any) -> Path:
        if snapshot.version > 2:
            raise CheckpointError("could not write it: No space left on device")
        return write(root, snapshot, **more)

    def press(event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed) and event.step == 4:
            signal.raise_signal(signal.SIGINT)

    from holdfast.report.jsonl import JsonlReport

    tell = JsonlReport.__call__

    def told(report: JsonlReport, event: Event, seconds: float) -> None:
        tell(report, event, seconds)
        press(event, seconds)

    monkeypatch.setattr(module, "write_checkpoint", full)
    monkeypatch.setattr(JsonlReport, "__call__", told)
    with pytest.raises(SystemExit) as left:
        main(["train", str(config), "--out", str(tmp_path / "run")])
    assert left.value.code == 130
    said = capsys.readouterr().err
    assert said.count("No space left on device") == 1, "it is said once"
    last = tmp_path / "run" / "checkpoints" / "step-000002"
    assert (
        "no checkpoint after 4 steps: could not write it: No space left on device; "
        f"the run goes on, the last good one is {last}" in said
    )
    assert "(from step 2 of 5: no later checkpoint could be written)" in said


def test_a_state_that_has_changed_in_memory_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shared with those who hold it; the digest that both have signed tells."""
    keep = module.Keeper.keep

    def meddle(keeper: Any, states: Any, progress: Any, sealed: Any) -> None:
        if next(iter(states.values())).version == 2:
            next(iter(states[1].moments.values())).view(-1)[0] += 1
        keep(keeper, states, progress, sealed)

    monkeypatch.setattr(module.Keeper, "keep", meddle)
    run = Run(tmp_path / "run", steps=2, checkpoint_every=0)
    result = run.run()
    (failed,) = run.of(CheckpointFailed)
    assert "the state of stage 1 is not the one that was sealed after 2 steps" in failed.reason
    assert result.checkpoint_step is None


def test_a_real_disk_that_is_full(tmp_path: Path, clean: tuple[Path, RunResult]) -> None:
    """A file system of one megabyte, in which two checkpoints have room and three have not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root mounts a small file system; the tests above have a disk that says it is full")
    try:
        command = [sys.executable, "-m", "holdfast", "train", str(clean[0] / "config.toml"), "--out", str(disk / "run")]
        command += ["--checkpoint-every", "1", "--steps", "6", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), done.stderr
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        written = sorted((disk / "run" / "checkpoints").iterdir())
        assert written
        for path in written:
            read_checkpoint(path)
        assert str(written[-1]) in done.stderr, "it names the last good one"
        assert "6/6" in done.stderr, "the steps went on"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- what is damaged ------------------------------------------------------------------------------------------------------


def _damage(path: Path) -> None:
    octets = bytearray(path.read_bytes())
    octets[-1] ^= 1
    path.write_bytes(octets)


def test_a_damaged_checkpoint_is_refused_by_its_digest_and_the_one_before_is_named(
    clean: tuple[Path, RunResult], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(clean[0], out)
    for step, file in ((6, "model.safetensors"), (4, "optimizer.safetensors")):
        _damage(out / "checkpoints" / f"step-{step:06d}" / file)
    older = out / "checkpoints" / "step-000002"
    told = (
        rf"model\.safetensors no longer has the sha256.*newest that is whole is {older}: go on with --resume {older}, or remove"
    )
    with pytest.raises(CheckpointError, match=told):
        Experiment(resume=out).run()
    resumed = Experiment(resume=older).run()
    assert resumed.weights_digest == clean[1].weights_digest


def test_who_goes_back_to_a_damaged_checkpoint_takes_the_one_before(clean: tuple[Path, RunResult], tmp_path: Path) -> None:
    out = tmp_path / "run"

    def damage(event: Event) -> None:
        if isinstance(event, CheckpointWritten) and event.step == 4 and not run.of(RolledBack):
            _damage(Path(event.path) / "optimizer.safetensors")

    run = Run(out, damage, faults=["crash stage=1 step=5 at=forward", "crash stage=2 step=5 at=forward"])
    assert run.run().weights_digest == clean[1].weights_digest
    assert [(event.step, event.version) for event in run.of(RolledBack)] == [(5, 2)]
    assert "optimizer.safetensors no longer has the sha256" in (out / "holdfast.log").read_text()
