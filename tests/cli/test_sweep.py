"""`holdfast sweep`: killed, stopped, damaged, wrongly asked; the table is the same or the message says what to do."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.sweep import Store

GRID = """
name = "tiny"
seeds = 2
[base.model]
name = "gpt2:layers=4,width=16,heads=2"
[base.data]
name = "synthetic"
sequence_length = 16
vocabulary = 300
validation_tokens = 128
[base.pipeline]
stages = 4
micro_batches = 2
micro_batch_size = 2
[base.training]
steps = 3
[grid]
attack = ["none", "sign-flip"]
defence = ["none", "duplicate"]
"""
HELD = """
import sys, time
from holdfast.cli.main import main
from holdfast.sweep import Store

put = Store.put

def held(store, record):
    if len(list(store.directory.glob("cells/*.json"))) == 7:
        time.sleep(600)
    put(store, record)

Store.put = held
main(sys.argv[1:])
"""
PROGRAM = (sys.executable, "-c", HELD)
"""The command, which does not end by itself: it holds the last of eight cells until a signal comes."""


@pytest.fixture
def grid(tmp_path: Path) -> str:
    (tmp_path / "sweep.toml").write_text(GRID)
    return str(tmp_path / "sweep.toml")


def rows(out: str) -> list[dict[str, Any]]:
    return json.loads(out.splitlines()[-1])["rows"]


@pytest.mark.parametrize(("jobs", "kills"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_a_sweep_killed_at_a_random_point_ends_with_the_same_table(
    holdfast, grid: str, tmp_path: Path, jobs: int, kills: int
) -> None:
    whole = holdfast("sweep", grid, "--out", str(tmp_path / "whole"), "--json")
    seed = random.randrange(2**32)
    out, chance = tmp_path / "killed", random.Random(seed)
    killed = 0
    while killed < kills:
        process = subprocess.Popen(
            [*PROGRAM, "sweep", grid, "--out", str(out), "-q", "-j", str(jobs)], stdout=subprocess.DEVNULL
        )
        before = len(list(out.glob("cells/*.json")))
        while len(list(out.glob("cells/*.json"))) == before and before < 7:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it ended by itself, seed {seed}"
        killed += 1
    resumed = holdfast("sweep", grid, "--out", str(out), "--json")
    assert rows(resumed.out) == rows(whole.out), f"seed {seed}"
    assert _digests(out) == _digests(tmp_path / "whole"), f"seed {seed}"
    assert 0 < json.loads(resumed.out.splitlines()[-1])["ran"] < 8


def _digests(out: Path) -> list[Any]:
    return [(record.key, (record.result or {})["weights_digest"]) for record in Store(out).records()]


def test_the_first_interrupt_keeps_what_ended(grid: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*PROGRAM, "sweep", grid, "--out", str(out), "-q"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    while not list(out.glob("cells/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    # CPython ends by the signal itself where the interrupt came inside `exec` of a text; 130 to a shell all the same
    assert process.returncode in (130, -signal.SIGINT), told
    assert "of 8 cells are kept, the same command goes on from there" in told
    assert "Traceback" not in told


def test_it_lists_what_is_to_be_run_and_how_long_it_takes(holdfast, grid: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    first = holdfast("sweep", grid, "--out", out, "--dry-run")
    assert "8 cells, 8 to be run: none measured yet" in first.out
    assert not (tmp_path / "out").exists()
    (tmp_path / "sweep.toml").write_text(GRID.replace("seeds = 2", "seeds = 1"))
    assert holdfast("sweep", grid, "--out", out, "-q").code == 0
    (tmp_path / "sweep.toml").write_text(GRID)
    told = json.loads(holdfast("sweep", grid, "--out", out, "--dry-run", "--json").out)
    assert [cell["state"] for cell in told["cells"]] == ["done"] * 4 + ["waiting"] * 4
    measured = sum(record.seconds for record in Store(out).records())
    assert told["seconds_left"] == pytest.approx(measured)


def test_a_cell_that_fails_costs_no_other(holdfast, grid: str, tmp_path: Path) -> None:
    """A text that is too short is found when the run begins."""
    (tmp_path / "short.txt").write_text("no")
    (tmp_path / "sweep.toml").write_text(GRID + f'data = ["synthetic", "{tmp_path / "short.txt"}"]\n')
    outcome = holdfast("sweep", grid, "--out", str(tmp_path / "out"), "--json")
    assert outcome.code == 1
    told = json.loads(outcome.out.splitlines()[-1])
    assert (told["cells"], told["failed"]) == (16, 8)
    assert "8 of 16 cells failed, and the same command tries them again; the first: " in outcome.err
    assert [row["validation_perplexity"]["n"] for row in told["rows"]] == [2, 0] * 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seeds = 0", "seeds = 0: needed is how many"),
        ('[grid]\nattack = ["sgn-flip"]', "did you mean 'sign-flip'"),
        ("[grid", "is not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_before_anything_is_written(holdfast, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "sweep.toml").write_text(text)
    outcome = holdfast("sweep", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "out"))
    assert (outcome.code, told in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_directory_with_something_else_is_left_alone(holdfast, grid: str, tmp_path: Path) -> None:
    outcome = holdfast("sweep", grid, "--out", str(tmp_path))
    assert outcome.code == 2
    assert "holds no cells to go on with" in outcome.err
    with pytest.raises(DataError, match="no finished cell"):
        Store(tmp_path).records()
