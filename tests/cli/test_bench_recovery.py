"""`holdfast bench recovery` at the border: options, refusals, exit codes, what is printed and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.bench.recovery import Recovery

SMALL = ("--quick", "--part", "crash", "--network", "local")


def test_it_measures_once_and_goes_on(holdfast, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = holdfast("bench", "recovery", *SMALL, "--out", str(out), "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out.splitlines()[-1])
    assert (told["findings"], told["measured"], told["trace"]) == ([], 4, [])
    assert {path.name for path in out.iterdir()} == {
        *(f"recovery.{form}" for form in ("jsonl", "csv", "md", "svg", "pdf", "png")),
        *("cells", "cells.jsonl", "sweep.json", "lock", "environment.json"),
    }
    again = holdfast("bench", "recovery", *SMALL, "--out", str(out), "-q")
    assert (again.code, again.err) == (0, "")
    assert "takeover: 0 steps and" in again.out


def test_other_weights_are_exit_code_1(holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.bench.recovery.gather", lambda *_: Recovery([], [], []))
    monkeypatch.setattr("holdfast.bench.recovery.Recovery.findings", lambda _: ["other weights"])
    outcome = holdfast("bench", "recovery", *SMALL, "--out", str(tmp_path / "out"), "-q")
    assert outcome.code == 1
    assert "- other weights" in outcome.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--part", "all"), "known are crash, lie, trace, processes"),
        (("--network", "moon"), "known are local, gigabit, wan, mixed"),
        (("--life-hours", "0"), "needed is a time greater than 0"),
        (("--restart-seconds", "-1"), "needed is a time of 0 or more"),
        (("--hours", "nan"), "needed is a time greater than 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(holdfast, tmp_path: Path, words, told: str) -> None:
    outcome = holdfast("bench", "recovery", *words, "--out", str(tmp_path / "out"))
    assert outcome.code == 2
    assert told in outcome.err
    assert not (tmp_path / "out").exists()
