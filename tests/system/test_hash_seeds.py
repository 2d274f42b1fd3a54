"""The same seed gives the same run in every process: Python orders sets anew in each, and nothing that is sent follows that."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from holdfast.event import Banned, ClaimReplaced, RolledBack, Ruling, SpotChecked, TakenOver

ATTACKED: dict[str, Any] = {
    "model": "gpt2:layers=5,width=16,heads=2",
    "data": "synthetic",
    "seq_length": 8,
    "vocabulary": 300,
    "stages": 5,
    "micro_batches": 4,
    "micro_batch_size": 1,
    "steps": 3,
    "attack": "sign-flip,stages=1-2",
    "on_alert": "replace",
    "faults": ["crash stage=3 step=1 at=begin"],
    "check_claims": 0.2,
    "check_steps": 0.2,
    "cluster": {"latency_s": 0.2, "detection_s": 0.8},
}
"""The crash is noticed while the referee has several cases."""

PROGRAM = """
import hashlib, itertools, json, sys, uuid
from pathlib import Path

numbers = itertools.count(1)
uuid.uuid4 = lambda: uuid.UUID(int=next(numbers) << 96)  # the names of runs are drawn by no seed

from holdfast import Experiment
from holdfast.event import RunFinished
from holdfast.transport.memory import MemoryTransport
from holdfast.transport.wire import encode

told, send = [], MemoryTransport.send

def observe(event, seconds):
    what = type(event).__name__ if isinstance(event, RunFinished) else repr(event)  # its summary counts seconds of the clock
    told.append(f"{seconds!r} {what}")

def watched(self, envelope):
    content = hashlib.sha256(encode(envelope)).hexdigest()
    what = type(envelope.message).__name__
    told.append(f"{self.now_s!r} {envelope.sender} -> {envelope.recipient}: {what} {content}")
    send(self, envelope)

MemoryTransport.send = watched
Experiment(observers=[observe], out="run", **json.loads(sys.argv[1])).run()
Path("told").write_text("\\n".join(told), encoding="utf-8")
"""


def _run(folder: Path, hash_seed: int) -> tuple[list[str], str]:
    """Every envelope and event in their order, and the digest of the evidence log."""
    folder.mkdir()
    program = [sys.executable, "-c", PROGRAM, json.dumps(ATTACKED)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    log = (folder / "run" / "evidence.jsonl").read_bytes()
    return (folder / "told").read_text(encoding="utf-8").splitlines(), hashlib.sha256(log).hexdigest()


def test_the_same_envelopes_events_and_evidence_whatever_the_hash_seed(tmp_path: Path) -> None:
    first, log = _run(tmp_path / "0", 0)
    for kind in (Ruling, ClaimReplaced, TakenOver, SpotChecked, RolledBack, Banned):
        assert any(f" {kind.__name__}(" in line for line in first), f"the run had no {kind.__name__}, and so tests too little"
    for hash_seed in (1, 2):
        other, other_log = _run(tmp_path / str(hash_seed), hash_seed)
        differing = [pair for pair in zip(first, other, strict=False) if pair[0] != pair[1]]
        assert (differing[:1], len(other)) == ([], len(first))
        assert other_log == log
