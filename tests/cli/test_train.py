"""`holdfast train`, small but real: what it prints, what it leaves, how it stops and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.report import read_run

TINY = ("--model", "gpt2:layers=4,width=16,heads=2", "--stages", "4", "--seq-length", "16", "--micro-batch-size", "2")
SMALL = (*TINY, "--micro-batches", "2", "--set", "data.validation_tokens=256", "--vocabulary", "300")

CONTRACT = {
    *("run_id", "steps", "tokens", "seconds", "virtual_seconds", "tokens_per_second", "train_loss", "validation_perplexity"),
    *("validation_bits_per_byte", "weights_digest", "attacked_claims", "detected", "missed", "false_alarms", "alerts"),
    *("blamed_stages", "blamed_workers", "steps_restarted", "stages_skipped", "claims_replaced", "bytes_sent"),
    *("verify_seconds", "referee_seconds", "out"),
}


def train(holdfast, *words: str) -> dict[str, object]:
    outcome = holdfast("train", *SMALL, "--json", *words)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out.splitlines()[-1])


def test_json_has_the_keys_of_the_contract_and_the_directory_its_files(holdfast, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(holdfast, "--steps", "2", "--out", str(out), "-q")
    assert set(result) >= CONTRACT
    assert (result["steps"], result["attacked_claims"], result["alerts"], result["out"]) == (2, 0, 0, str(out))
    names = {path.name for path in out.iterdir()}
    assert {"run.json", "config.toml", "report.jsonl", "report.html", "checkpoints", "model"} <= names
    assert read_run(out).result["weights_digest"] == result["weights_digest"]
    again = holdfast("train", str(out / "config.toml"), "--out", str(tmp_path / "again"), "--json", "-q")
    assert json.loads(again.out)["weights_digest"] == result["weights_digest"], "config.toml repeats the run"


def test_the_wire_dtype_by_option_and_by_file_is_one_run(holdfast, tmp_path: Path) -> None:
    plain = train(holdfast, "--steps", "2", "--out", str(tmp_path / "plain"))
    packed = train(holdfast, "--steps", "2", "--wire-dtype", "int8", "--out", str(tmp_path / "packed"))
    assert packed["weights_digest"] != plain["weights_digest"]
    assert packed["bytes_sent"] < plain["bytes_sent"]
    assert 'wire_dtype = "int8"' in (tmp_path / "packed/config.toml").read_text()
    assert "wire_dtype =" not in (tmp_path / "plain/config.toml").read_text()
    again = holdfast("train", str(tmp_path / "packed/config.toml"), "--out", str(tmp_path / "again"), "--json", "-q")
    assert json.loads(again.out)["weights_digest"] == packed["weights_digest"]
    refused = holdfast("train", *SMALL, "--wire-dtype", "int4", "--out", str(tmp_path / "refused"))
    assert refused.code == 2
    assert "'float32', 'bfloat16' or 'int8'" in refused.err


def test_an_attack_is_caught_and_named(holdfast, tmp_path: Path) -> None:
    clean = train(holdfast, "--steps", "2", "--out", str(tmp_path / "clean"))
    words = ("--attack", "sign-flip", "--rate", "1.0", "--attack-stages", "1", "--out", str(tmp_path / "attacked"))
    attacked = train(holdfast, "--steps", "2", *words)
    assert attacked["detected"] == attacked["attacked_claims"] == 4
    assert attacked["blamed_workers"] == {"w1": 4}
    assert attacked["weights_digest"] == clean["weights_digest"]
    undefended = train(holdfast, "--steps", "2", *words[:-1], str(tmp_path / "undefended"), "--defence", "none")
    assert undefended["missed"] == 4
    assert undefended["weights_digest"] != clean["weights_digest"]


def test_progress_goes_to_stderr_and_the_result_to_stdout(holdfast, tmp_path: Path) -> None:
    outcome = holdfast("train", *SMALL, "--steps", "2", "--out", str(tmp_path / "run"))
    assert "step 2/2" in outcome.err
    assert "step 2/2" not in outcome.out
    assert "weights digest" in outcome.out
    quiet = holdfast("train", *SMALL, "--steps", "2", "--out", str(tmp_path / "quiet"), "-q")
    assert quiet.err == ""


def test_a_finished_run_is_not_written_over(holdfast, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    outcome = holdfast("train", *SMALL, "--steps", "1", "--out", str(tmp_path))
    assert outcome.code == 2
    assert "not empty" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_one_interrupt_leaves_a_checkpoint_and_a_resumed_run_ends_as_if_nothing_had_happened(holdfast, tmp_path: Path) -> None:
    whole = train(holdfast, "--steps", "8", "--out", str(tmp_path / "whole"))
    out = tmp_path / "stopped"
    command = [sys.executable, "-c", HELD, "train", *SMALL, "--steps", "8", "--out", str(out), "-v"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as running:
        _wait_for(out / "report.jsonl", "StepSealed")
        running.send_signal(signal.SIGINT)
        _, told = running.communicate()
    assert running.returncode == 130, told
    assert "--resume" in told
    assert list((out / "checkpoints").iterdir())
    resumed = holdfast("train", "--resume", str(out), "--json")
    assert resumed.code == 0, resumed.err
    result = json.loads(resumed.out.splitlines()[-1])
    assert result["weights_digest"] == whole["weights_digest"]
    assert len(read_run(out).losses) == 8


HELD = """
import sys, threading
from holdfast.chronicle import Chronicle
from holdfast.cli.main import main
from holdfast.event import StepSealed
from holdfast.trainer import Trainer

stop, tell, stopped = Trainer.stop, Chronicle.tell, threading.Event()

def hear(trainer):
    stop(trainer)
    stopped.set()

def held(chronicle, event, seconds=0.0):
    tell(chronicle, event, seconds)
    if isinstance(event, StepSealed) and event.step == 5:
        stopped.wait(600)

Trainer.stop, Chronicle.tell = hear, held
main(sys.argv[1:])
"""
"""The command, which does not end by itself: after its sixth step of eight it waits until it is stopped."""


def _wait_for(report: Path, event: str) -> None:
    while not (report.exists() and event in report.read_text()):  # the test's own limit ends this
        time.sleep(0.05)


def test_export_and_eval_of_a_run(holdfast, tmp_path: Path) -> None:
    result = train(holdfast, "--steps", "2", "--out", str(tmp_path / "run"))
    exported = holdfast("export", str(tmp_path / "run"), "--to", str(tmp_path / "model"))
    assert exported.code == 0, exported.err
    assert (tmp_path / "model" / "tokenizer.json").exists()
    scored = holdfast("eval", str(tmp_path / "run"), "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["perplexity"] == pytest.approx(result["validation_perplexity"], rel=1e-5)
    assert holdfast("report", str(tmp_path / "run")).code == 0


def test_tensorboard_is_written_beside_the_run(holdfast, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(holdfast, "--steps", "1", "--out", str(tmp_path / "run"), "--report-to", "tensorboard")
    assert list((tmp_path / "run" / "tensorboard").iterdir())
