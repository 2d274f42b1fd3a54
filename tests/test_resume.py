"""A run that is killed at any point and resumed ends as if nothing had happened: weights, losses and report, to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from holdfast import Experiment
from holdfast.chronicle import Chronicle
from holdfast.config import resolve
from holdfast.digest import weights_digest
from holdfast.errors import CheckpointError
from holdfast.event import Event, Resumed, StepSealed
from holdfast.evidence.log import FILE, read_line
from holdfast.evidence.record import Opening
from holdfast.report import read_run
from holdfast.report.jsonl import JsonlReport, read_report
from holdfast.result import RunResult
from holdfast.trainer import Trainer

from .whole import command, tree

WORDS = ("oak", "birch", "willow", "pine", "holly", "hazel", "rowan", "alder")
TINY: dict[str, Any] = {
    "model": "gpt2:layers=4,width=16,heads=2",
    "stages": 4,
    "micro_batches": 2,
    "micro_batch_size": 2,
    "steps": 6,
    "checkpoint_every": 2,
    "evaluate_every": 3,
}
ATTACKED = {"attack": "sign-flip,rate=0.7", "faults": ["crash stage=2 step=3 at=backward"]}
SKIPPING = {**ATTACKED, "on_alert": "skip"}
TELLS_THE_SAME = ("StepSealed", "Alert", "Ruling", "ClaimReplaced", "StagesSkipped", "StepRestarted", "WorkerLost", "Evaluated")
OF_THIS_PROCESS = {
    "run_id",
    "seconds",
    "training_seconds",
    "tokens_per_second",
    "virtual_seconds",
    "bytes_sent",
    "verify_seconds",
    "referee_seconds",
    "step_seconds",
    "predicted_step_seconds",
}

CHILD = """
import json, os, random, signal, sys
from functools import wraps
import holdfast.checkpoint
from holdfast import Experiment
from holdfast.execution import StageExecution
from holdfast.report.jsonl import JsonlReport

settings, root, seeds = json.loads(sys.argv[1]), sys.argv[2], [int(seed) for seed in sys.argv[3:]]
moments, fatal = [], None

def now(name):
    moments.append(name)
    if fatal is not None and len(moments) > fatal:  # checkpoints are written by another thread, which counts too
        os.kill(os.getpid(), signal.SIGKILL)

def mortal(owner, name):
    function = getattr(owner, name)
    @wraps(function)
    def call(*arguments, **named):
        now(name)
        answer = function(*arguments, **named)
        now(name)
        return answer
    setattr(owner, name, call)

ON_DISK = {"replace", "fsync", "save_file", "__call__"}
for owner, name in [(StageExecution, "forward"), (StageExecution, "backward"), (StageExecution, "update"), (os, "replace"),
                    (os, "fsync"), (holdfast.checkpoint, "save_file"), (JsonlReport, "__call__")]:
    mortal(owner, name)
Experiment(**settings, out=f"{root}/whole").run()
whole, moments = moments, []
for seed in seeds:
    draw = random.Random(seed)
    disk = [index for index, name in enumerate(whole) if name in ON_DISK]
    fatal = draw.choice(disk) if seed % 2 else draw.randrange(len(whole))
    pid = os.fork()
    if pid == 0:
        Experiment(**settings, out=f"{root}/{seed}").run()
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run that takes half a second, on a text of its own."""
    draw = random.Random(0)
    text = tmp_path_factory.mktemp("text") / "trees.txt"
    text.write_text("\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(300)))
    data = {"name": str(text), "sequence_length": 16, "vocabulary": 280, "validation_tokens": 256}
    return {**TINY, "data": data}


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The uninterrupted run with some more settings; made once."""
    root = tmp_path_factory.mktemp("whole")

    @cache
    def run(more: str) -> Path:
        out = root / hashlib.sha256(more.encode()).hexdigest()[:8]
        Experiment(**{**tiny, **json.loads(more)}, out=str(out)).run()
        return out

    return lambda **more: run(json.dumps(more))


def told(out: Path) -> list[dict[str, Any]]:
    """What the report says of the run itself, without times and of every step once."""
    records = [dict(record) for record in read_report(out / "report.jsonl") if record["event"] in TELLS_THE_SAME]
    for record in records:
        del record["seconds"]
    return records


def outcome(result: Any) -> dict[str, Any]:
    """What must be equal in the results of a resumed run and of one that was left alone."""
    return {key: value for key, value in result.items() if key not in OF_THIS_PROCESS | {"out"}}


def assert_same_run(resumed: Path, whole: Path) -> None:
    assert outcome(read_run(resumed).result) == outcome(read_run(whole).result)
    assert told(resumed) == told(whole)
    assert weights_digest(load_file(resumed / "model" / "model.safetensors")) == read_run(whole).result["weights_digest"]
    assert not [path.name for path in resumed.rglob(".*")], "nothing half-written is left"
    if (resumed / FILE).exists():
        records = [read_line(line).record for line in (resumed / FILE).read_bytes().splitlines()]
        assert {record.run for record in records if isinstance(record, Opening)} == {read_run(resumed).result["run_id"]}


def interrupted(settings: dict[str, Any], out: Path, after: int) -> RunResult:
    """A run that is asked to stop in its step number `after`."""

    def watch(event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed) and event.step == after:
            experiment.stop()

    experiment = Experiment(**settings, out=str(out), observers=[watch])
    return experiment.run()


def survive(settings: dict[str, Any], root: Path, seeds: range) -> None:
    """Kill a run at moments that `seeds` draw, resume each, and compare with the run that was left alone."""
    words = [json.dumps(settings), str(root), *map(str, seeds)]
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for seed in seeds:
        out = root / str(seed)
        if not (out / "config.toml").exists():
            continue  # killed before it had begun: there is nothing to resume
        if (out / "model").exists():
            assert sorted(path.name for path in (out / "model").iterdir()) == sorted(os.listdir(root / "whole" / "model"))
        Experiment(resume=out).run()
        assert_same_run(out, root / "whole")
        assert len(list((out / "checkpoints").iterdir())) == len(list((root / "whole" / "checkpoints").iterdir()))


# -- killed --------------------------------------------------------------------------------------------------------------


def test_a_run_killed_anywhere_ends_as_if_nothing_had_happened(tiny: dict[str, Any], tmp_path: Path) -> None:
    survive({**tiny, **ATTACKED}, tmp_path, range(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, ATTACKED, SKIPPING, {**ATTACKED, "defence": "none", "faults": []}, {"ban_policy": "ban", "attack": "zeros,worker=w2"}],
    ids=["clean", "attacked", "skipping", "undefended", "banned"],
)
def test_a_run_killed_anywhere_at_length(tiny: dict[str, Any], tmp_path: Path, more: dict[str, Any]) -> None:
    survive({**tiny, **more}, tmp_path, range(100, 130))


def test_a_torn_last_line_of_the_report_is_dropped(tiny: dict[str, Any], whole: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(tiny, out, 3)
    report = out / "report.jsonl"
    report.write_bytes(report.read_bytes()[:-20])
    assert read_report(report)[-1]["event"] != "RunFinished", "what is torn is not read"
    Experiment(resume=out).run()
    assert_same_run(out, whole())


# -- stopped by hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, SKIPPING], ids=["clean", "skipping"])
@pytest.mark.parametrize("after", [0, pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_stopped_run_goes_on(
    tiny: dict[str, Any], whole: Callable[..., Path], tmp_path: Path, after: int, more: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    result = interrupted({**tiny, **more}, out, after)
    assert (result.interrupted, result.steps) == (True, after + 1)
    resumed = Experiment(resume=out).run()
    assert (resumed.interrupted, resumed.steps, resumed.run_id) == (False, 6, result.run_id)
    assert_same_run(out, whole(**more))


def test_the_skipped_run_really_skipped_and_the_attacked_one_was_attacked(whole: Callable[..., Path]) -> None:
    skipped, clean = read_run(whole(**SKIPPING)).result, read_run(whole()).result
    assert skipped["stages_skipped"] > 0 < skipped["detected"]
    assert skipped["missed"] == 0
    assert skipped["weights_digest"] != clean["weights_digest"]


def test_ctrl_c_leaves_a_checkpoint_and_its_own_exit_code(
    tiny: dict[str, Any], whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "run", tmp_path / "run.toml"
    from holdfast.toml import to_toml

    config.write_text(to_toml(Experiment(**tiny).config))
    tell = Chronicle.tell

    def press(chronicle: Chronicle, event: Event, seconds: float = 0.0) -> None:
        tell(chronicle, event, seconds)
        if isinstance(event, StepSealed) and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Chronicle, "tell", press)
        assert command("train", str(config), "--out", str(out), "-q") == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert (out / "checkpoints" / "step-000003").is_dir()
    assert command("train", "--resume", str(out), "-q") == 0
    assert_same_run(out, whole())


def test_a_run_stopped_before_its_first_step_begins_anew(
    tiny: dict[str, Any], whole: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = Experiment(**tiny, out=str(out))
    first.stop()
    assert first.run().steps == 0
    Experiment(resume=out).run()
    assert_same_run(out, whole())


# -- resumed otherwise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_number_of_stages_may_change(tiny: dict[str, Any], whole: Callable[..., Path], tmp_path: Path, stages: int) -> None:
    out = tmp_path / "run"
    interrupted(tiny, out, 2)
    resumed = Experiment(resume=out, stages=stages, schedule="gpipe").run()
    assert resumed.weights_digest == read_run(whole()).result["weights_digest"]
    assert read_run(out).losses == read_run(whole()).losses


def test_a_cut_that_would_unite_stages_of_unlike_age_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted({**tiny, "attack": "sign-flip,stages=2", "on_alert": "skip"}, out, 2)
    before = tree(out)
    with pytest.raises(CheckpointError, match="stages were skipped"):
        Experiment(resume=out, stages=2, attack=None).run()
    assert tree(out) == before


def test_more_steps_may_be_asked_for_and_the_run_keeps_its_settings(tiny: dict[str, Any], tmp_path: Path) -> None:
    constant = {**tiny, "optimizer": {"schedule": "constant"}}
    Experiment(**constant, out=str(tmp_path / "run")).run()
    moved = tmp_path / "elsewhere"
    (tmp_path / "run").rename(moved)
    assert command("train", "--resume", str(moved), "--steps", "8", "-q") == 0
    Experiment(**{**constant, "steps": 8}, out=str(tmp_path / "long")).run()
    found, wanted = read_run(moved), read_run(tmp_path / "long")
    assert found.result["weights_digest"] == wanted.result["weights_digest"]
    assert found.losses == wanted.losses
    assert {**found.config["output"], "dir": ""} == {**wanted.config["output"], "dir": ""}
    assert command("train", "--resume", str(moved), "--steps", "4", "-q") == 2, "it is past that"


def test_a_finished_run_has_nothing_to_do(whole: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole(), out)
    written = (out / "checkpoints" / "step-000006" / "state.json").stat().st_mtime_ns
    Experiment(resume=out).run()
    assert_same_run(out, whole())
    assert (out / "checkpoints" / "step-000006" / "state.json").stat().st_mtime_ns == written


def test_going_back_to_an_older_checkpoint_gives_up_the_newer_ones(whole: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole(), out)
    shutil.rmtree(out / "checkpoints" / "step-000006")
    (out / "checkpoints" / "step-000004" / "optimizer.safetensors").write_bytes(b"torn")
    assert command("train", "--resume", str(out), "-q") == 3
    assert command("train", "--resume", str(out / "checkpoints" / "step-000002"), "--checkpoint-every", "3", "-q") == 0
    assert sorted(path.name[-1] for path in (out / "checkpoints").iterdir()) == ["2", "3", "6"]
    assert_same_run(out, whole())
    assert command("export", str(out), "--to", str(tmp_path / "model")) == 0


def test_keep_keeps_so_many(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = {**tiny, "checkpoint_every": 1, "keep": 2}
    Experiment(**settings, out=str(tmp_path / "run")).run()
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000005", "step-000006"]


def test_steps_that_were_not_checked_stay_uncertified(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert interrupted({**tiny, "defence": "none"}, out, 2).certified is False
    assert Experiment(resume=out, defence="duplicate").run().certified is False
    state = json.loads((out / "checkpoints" / "step-000006" / "state.json").read_text())
    assert state["certified"] is False


@pytest.mark.parametrize("pauses", [(), (3,)], ids=["banned after the resume", "banned at a resume"])
def test_a_banned_worker_stays_banned_and_a_liar_is_remembered(
    tiny: dict[str, Any], tmp_path: Path, pauses: tuple[int, ...]
) -> None:
    """Two lies a step, banned after five: in step 2 the liar tells the fifth."""
    liar = {**tiny, "attack": "sign-flip,worker=w2", "ban_policy": "ban", "defence": {"ban_after": 5}}
    out = tmp_path / "run"
    assert interrupted(liar, out, 1).blamed_workers == {"w2": 4}
    for steps in (*pauses, 6):
        result = Experiment(resume=out, steps=steps).run()
    assert (result.blamed_workers, result.rollbacks) == ({"w2": 6}, 0)
    banned = [record["worker"] for record in read_report(out / "report.jsonl") if record["event"] == "Banned"]
    assert banned == ["w2"]


def test_without_a_directory_a_checkpoint_can_still_be_the_start(tiny: dict[str, Any], whole: Callable[..., Path]) -> None:
    before = tree(whole())
    config = resolve({**Experiment(**tiny).config.model_dump(), "output": {}})
    result = Trainer(config, resume=whole() / "checkpoints" / "step-000002").run()
    assert result.weights_digest == read_run(whole()).result["weights_digest"]
    assert tree(whole()) == before


# -- what cannot be resumed ----------------------------------------------------------------------------------------------


def _alter(path: Path) -> None:
    octets = bytearray(path.read_bytes())
    octets[-1] ^= 1
    path.write_bytes(octets)


def _other_model(checkpoint: Path) -> None:
    """As a run of another shape would have written it, with a manifest that fits."""
    from holdfast.atomic import write_manifest

    for name in ("model.safetensors", "optimizer.safetensors"):
        file = checkpoint / name
        save_file({key: tensor.repeat(2) if tensor.ndim == 1 else tensor for key, tensor in load_file(file).items()}, file)
    write_manifest(checkpoint)


def _other_words(checkpoint: Path) -> None:
    from holdfast.atomic import write_manifest

    file = checkpoint / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    first, last = min(words, key=words.get), max(words, key=words.get)
    words[first], words[last] = words[last], words[first]
    file.write_text(json.dumps(content))
    write_manifest(checkpoint)


def _no_words(checkpoint: Path) -> None:
    from holdfast.atomic import write_manifest

    (checkpoint / "tokenizer.json").write_text('{"version": "1.0"}')
    write_manifest(checkpoint)


def _nobody_left(checkpoint: Path) -> None:
    from holdfast.atomic import write_manifest

    file = checkpoint / "state.json"
    state = json.loads(file.read_text())
    state["progress"]["lost"] = ["initiator"]
    file.write_text(json.dumps(state))
    write_manifest(checkpoint)


def _other_count(checkpoint: Path) -> None:
    from holdfast.atomic import write_manifest

    file = checkpoint / "state.json"
    state = json.loads(file.read_text())
    del state["progress"]["sums"]
    file.write_text(json.dumps(state))
    write_manifest(checkpoint)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights altered": (lambda path: _alter(path / "model.safetensors"), "no longer has the sha256"),
    "moments truncated": (lambda path: (path / "optimizer.safetensors").write_bytes(b""), "bytes were written|where"),
    "manifest gone": (lambda path: (path / "manifest.json").unlink(), "is missing"),
    "state gone": (lambda path: (path / "state.json").unlink(), "is missing"),
    "foreign file": (lambda path: (path / "extra.bin").write_bytes(b"x"), "not in its manifest"),
    "empty": (lambda path: [file.unlink() for file in path.iterdir()], "manifest.json is missing"),
    "another model": (_other_model, "another model"),
    "another tokenizer": (_other_words, "another tokenizer"),
    "another count": (_other_count, "count of the run so far"),
    "a tokenizer that is none": (_no_words, "is no tokenizer"),
    "an initiator that was lost": (_nobody_left, "the initiator itself was lost"),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_checkpoint_that_cannot_be_used_is_one_error_and_changes_nothing(
    whole: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], Any],
    complaint: str,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole(), out)
    damage(out / "checkpoints" / "step-000006")
    before = tree(out)
    assert command("train", "--resume", str(out), "-q") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(complaint, line), line
    assert "step-000006" in line or "count of the run" in line
    assert tree(out) == before


@pytest.mark.parametrize("file", ["report.jsonl", "evidence.jsonl"])
@pytest.mark.parametrize("damage", ["altered", "another form", "a folder"])
def test_records_that_cannot_be_gone_on_with_are_told_before_a_checkpoint_is_given_up(
    tiny: dict[str, Any], whole: Callable[..., Path], tmp_path: Path, file: str, damage: str
) -> None:
    """From an older checkpoint on the newer ones go; they went although the run then could not begin."""
    out = tmp_path / "run"
    shutil.copytree(whole(), out)
    path = out / file
    match damage:
        case "altered":
            path.write_bytes(path.read_bytes()[:-3] + b"x}\n")
        case "another form":
            path.write_text('{"schema": 1, "event": "StepSealed"}\n')
        case _:
            path.unlink()
            path.mkdir()
    older = min((out / "checkpoints").iterdir())
    before = tree(out)
    assert command("train", "--resume", str(older), "-q") in (2, 3)
    assert tree(out) == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--dtype", "bfloat16"), "of torch.float32, needed"),
        (("--model", "gpt2:layers=4,width=32,heads=2"), "another model"),
        (("--model", "gpt2:layers=3,width=16,heads=2", "--stages", "3", "--fault", "crash stage=1 step=9"), "holds an unknown"),
        (("--model", "gpt2:layers=6,width=16,heads=2"), "lacks"),
        (("--data", "embedded"), "another tokenizer"),
    ],
    ids=lambda value: str(value),
)
def test_a_checkpoint_of_other_settings_is_refused(
    whole: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    complaint: str,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole(), out)
    before = tree(out)
    assert command("train", "--resume", str(out), "-q", *options) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert tree(out) == before


@pytest.mark.parametrize("where", ["nowhere", "empty", "file"])
def test_what_holds_no_run_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    before = tree(tmp_path)
    assert command("train", "--resume", str(tmp_path / where), "-q") == 2
    assert "no run to resume" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_trainer_refuses_a_directory_without_a_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
        Trainer(Experiment(**tiny).config, resume=tmp_path).run()


# -- the report of a resumed run -----------------------------------------------------------------------------------------


def sealed(step: int) -> StepSealed:
    return StepSealed(step, 0, 1.0, 1.0, 1e-3, 64)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_a_report_is_cut_where_the_checkpoint_was(tmp_path: Path, version: int) -> None:
    """Steps 0, 1, 2 were sealed; only version 2 says that it was written, and version 9 nobody has heard of."""
    from holdfast.event import CheckpointWritten, Evaluated, RunFinished

    path = tmp_path / "report.jsonl"
    story: list[Event] = [
        sealed(0),
        sealed(1),
        Evaluated(2, 1.0, 1.0),
        CheckpointWritten(2, "x"),
        sealed(2),
        Evaluated(3, 1.0, 1.0),
    ]
    with JsonlReport(path) as report:
        for event in (*story, RunFinished("ab", {})):
            report(event, 0.0)
    with JsonlReport(path) as report:
        report(Resumed(version), 0.0)
    names = [record["event"] for record in read_report(path)]
    kept = {0: 0, 1: 1, 2: 4, 3: 6}[version]
    assert names == [*(type(event).__name__ for event in story[:kept]), "Resumed"]


def test_a_report_that_does_not_know_the_checkpoint_is_left_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    with JsonlReport(path) as report:
        report(sealed(0), 0.0)
        report(Resumed(9), 0.0)
    assert [record["event"] for record in read_report(path)] == ["StepSealed", "Resumed"]
