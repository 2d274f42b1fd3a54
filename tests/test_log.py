"""The log: what matters is told in a line that can be read, searched and trusted, whatever other machines call themselves."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

from holdfast import Experiment
from holdfast.claim import ClaimKey, Direction
from holdfast.event import (
    Alert,
    Banned,
    CheckpointWritten,
    Event,
    Joined,
    RolledBack,
    Ruling,
    RunFinished,
    RunStarted,
    StepSealed,
    TakenOver,
    WorkerLost,
)
from holdfast.report import LineProgress, Log, LogFile, open_progress

KEY = ClaimKey(1, 0, Direction.FORWARD, 2, 0)
SECRET = "holdfast1-a-secret-invite"
STORY: list[Event] = [
    RunStarted("r-1", ("holdfast", "host", SECRET), {"python": "3.11"}, 7, ("a", "b"), ("initiator", "w1")),
    StepSealed(0, 0, 5.5, 0.7, 1e-3, 100),
    Alert(KEY, "output", ("w1", "w2")),
    Ruling(KEY, ("w2",), 2, "output"),
    WorkerLost("w2", 1, "its process ended by SIGKILL"),
    TakenOver(2, "w2", "initiator", 1),
    Joined("w2", 1),
    Banned("w2", 3, 2),
    RolledBack(3, 1, "both holders are gone"),
    CheckpointWritten(4, "out/checkpoints/step-000004"),
    RunFinished("d" * 64, {}),
]


def written(form: Any) -> list[str]:
    stream = io.StringIO()
    log = Log(stream, form, clock=lambda: 0.25)
    for at, event in enumerate(STORY):
        log(event, float(at))
    assert SECRET not in stream.getvalue()
    return stream.getvalue().splitlines()


def test_text_is_one_plain_line_an_event() -> None:
    lines = written("text")
    assert len(lines) == len(STORY) - 1, "all but the sealed step"
    assert "1970-01-01T00:00:00.250Z warning step 1: w2 is lost: its process ended by SIGKILL" in lines
    assert "1970-01-01T00:00:00.250Z info step 1: w2 is there" in lines
    assert "1970-01-01T00:00:00.250Z warning step 1: initiator takes stage 2 over from w2" in lines
    assert "1970-01-01T00:00:00.250Z info checkpoint after 4 steps: out/checkpoints/step-000004" in lines


def test_json_has_the_same_words_and_their_parts() -> None:
    records = [json.loads(line) for line in written("json")]
    assert [record["event"] for record in records] == [type(e).__name__ for e in STORY if not isinstance(e, StepSealed)]
    lost = next(record for record in records if record["event"] == "WorkerLost")
    assert lost == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "warning",
        "message": "step 1: w2 is lost: its process ended by SIGKILL",
        "event": "WorkerLost",
        "run_seconds": 4.0,
        "step": 1,
        "worker": "w2",
        "reason": "its process ended by SIGKILL",
    }
    assert next(record for record in records if record["event"] == "Ruling")["culprits"] == ["w2"]


def test_no_machine_can_write_lines_of_its_own() -> None:
    forged = WorkerLost("w2", 1, "gone\n2026-01-01T00:00:00.000Z info all is well\x1b[2J")
    for form in ("text", "json"):
        stream = io.StringIO()
        Log(stream, form)(forged, 0.0)
        assert len(stream.getvalue().splitlines()) == 1
        assert "\x1b" not in stream.getvalue()
    shown = io.StringIO()
    LineProgress(shown).observer("", 1)(forged, 0.0)
    assert len(shown.getvalue().splitlines()) == 1


def test_a_full_disk_ends_no_run() -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    Log(Full())(STORY[4], 0.0)


def test_the_file_has_what_the_wire_tells_while_it_is_open(tmp_path: Path) -> None:
    wire = logging.getLogger("holdfast.wire")
    before = logging.getLogger("holdfast").level
    with LogFile(tmp_path) as log:
        log(STORY[4], 0.0)
        wire.warning("%s: %s lost: %s", "host", "w2", "silence\nand a forged line")
        wire.debug("too much")
    wire.warning("later")
    lines = (tmp_path / "holdfast.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "warning step 1: w2 is lost: its process ended by SIGKILL",
        "warning wire: host: w2 lost: silence\\nand a forged line",
    ]
    assert logging.getLogger("holdfast").level == before


def test_progress_as_json_lines() -> None:
    shown = []
    for verbose in (False, True):
        stream = io.StringIO()
        with open_progress(stream, form="json", verbose=verbose) as progress:
            observe = progress.observer("", 1)
            for event in STORY:
                observe(event, 0.0)
        shown.append([json.loads(line)["event"] for line in stream.getvalue().splitlines()])
    assert [name for name in shown[1] if name not in ("Alert", "Ruling")] == shown[0]
    assert {"StepSealed", "WorkerLost", "Joined", "CheckpointWritten", "RunFinished"} <= set(shown[0])


def test_a_run_leaves_its_log(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = {
        "model": {"name": "gpt2:layers=4,width=32,heads=2"},
        "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 16, "validation_tokens": 512},
        "pipeline": {"stages": 4, "micro_batches": 2, "micro_batch_size": 2},
        "training": {"steps": 4},
        "output": {"log_format": "json", "checkpoint_every": 2},
    }
    Experiment(config, faults=["crash stage=2 step=1"], out=str(out)).run()
    records = [json.loads(line) for line in (out / "holdfast.log").read_text().splitlines()]
    events = [record["event"] for record in records]
    assert events[0] == "RunStarted"
    assert events[-1] == "RunFinished"
    assert {"WorkerLost", "TakenOver", "CheckpointWritten"} <= set(events)
