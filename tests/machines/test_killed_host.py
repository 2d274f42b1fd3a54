"""The processes that people start: `holdfast host` is killed with SIGKILL, started again, and `join` comes back to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.config import resolve
from holdfast.evidence.log import FILE
from holdfast.toml import read_toml

from .hosted import free_port

STEPS = 60
CONFIG = f"""
[model]
name = "gpt2:layers=4,width=32,heads=2"
[data]
name = "synthetic:order=1,symbols=32,tokens=40000"
sequence_length = 16
validation_tokens = 512
[pipeline]
stages = 4
micro_batches = 2
micro_batch_size = 2
[training]
steps = {STEPS}
[output]
checkpoint_every = 25
"""


class Processes:
    """Commands that run, each with its standard error in a file of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str) -> tuple[subprocess.Popen[bytes], Path]:
        told = self.tmp_path / f"{name}.err"
        environment = {**os.environ, "HOLDFAST_HOME": str(self.tmp_path / name.rstrip("0123456789")), "OMP_NUM_THREADS": "1"}
        with told.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "holdfast", *command], stdout=subprocess.PIPE, stderr=stream, env=environment
            )
        self.running.append(process)
        return process, told

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(tmp_path)
    yield found
    found.end()


def wait_for(found: Callable[[], Any], patience_s: float = 90.0) -> Any:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if got := found():
            return got
        time.sleep(0.02)
    raise AssertionError("it did not happen")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("placement", ["listed", "measured"])
def test_a_host_killed_twice_computes_nothing_before_its_last_commit_again(
    tmp_path: Path, processes: Processes, placement: str
) -> None:
    config, out = tmp_path / "run.toml", tmp_path / "run"
    config.write_text(CONFIG + f'[cluster]\nplacement = "{placement}"\n')
    listen = ["--door", f"127.0.0.1:{free_port()}", "--wire", f"127.0.0.1:{free_port()}"]
    command = ["host", str(config), "--out", str(out), *listen, "--json", "-q"]
    host, told = processes.start("host1", *command)
    invite = wait_for(lambda: re.search(r"holdfast1:\S+", told.read_text()))[0]
    guests = [processes.start(name, "join", invite)[0] for name in ("east", "west")]
    committed: list[int] = []
    for life, wanted in ((2, 5), (3, 33)):
        wait_for(lambda wanted=wanted: newest(out) >= wanted)
        host.send_signal(signal.SIGKILL)
        host.wait()
        committed.append(newest(out))
        host, told = processes.start(f"host{life}", *command)
    said, _ = host.communicate(timeout=120)
    assert host.returncode == 0, told.read_text()
    result = json.loads(said.splitlines()[-1])
    clean = Experiment(resolve({**read_toml(config), "output": {"checkpoint_every": 0}})).run()
    assert result["weights_digest"] == clean.weights_digest
    assert result["tokens"] == clean.tokens
    assert [guest.wait(30) for guest in guests] == [0, 0]
    records = [json.loads(line) for line in (out / FILE).read_text().splitlines()]
    resumed = [i for i, record in enumerate(records) if record["kind"] == "resumed"]
    first = [next(record["body"]["step"] for record in records[i:] if record["kind"] == "seal") for i in resumed]
    assert first == committed, "the first step that is computed again is the first that was not committed"
    kept = (tmp_path / "east.err").read_text() + (tmp_path / "west.err").read_text()
    assert kept.count("knocking again with the sealed state of") == 4


def newest(out: Path) -> int:
    """The version of the newest commit; the host may be removing an older one."""
    try:
        records = sorted((out / "journal").glob("commit-*.json"))
        return int(json.loads(records[-1].read_text())["body"]["version"]) if records else 0
    except OSError:
        return 0
