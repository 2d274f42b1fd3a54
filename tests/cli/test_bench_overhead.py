"""`holdfast bench overhead` at the border: options, refusals, exit codes, what is printed and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SMALL = ("--quick", "--part", "virtual", "--network", "local", "--stages", "4", "--micro-batches", "2")


def test_it_measures_once_and_goes_on(holdfast, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = holdfast("bench", "overhead", *SMALL, "--out", str(out), "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out.splitlines()[-1])
    assert told["broken"] == []
    assert {row["defence"].partition(",")[0] for row in told["virtual"]} == {
        "duplicate",
        "duplicate-only",
        "spot-check",
        "statistics",
    }
    assert outcome.err.count("network local, stages 4, micro_batches 2") == told["measured"] == len(told["virtual"]) == 8
    assert {path.name for path in out.iterdir()} == {
        *(f"overhead.{form}" for form in ("jsonl", "csv", "md", "svg", "pdf", "png")),
        *("cells", "cells.jsonl", "sweep.json", "lock", "environment.json"),
    }
    assert "8 cells, 0 to be run" in holdfast("bench", "overhead", *SMALL, "--out", str(out), "--dry-run").out
    again = holdfast("bench", "overhead", *SMALL, "--out", str(out), "-q")
    assert (again.code, again.err) == (0, "")
    assert f"Tables and figures: {out}" in again.out
    assert json.loads((out / "overhead.jsonl").read_text(encoding="utf-8").splitlines()[0])["network"] == "local"


def test_a_broken_promise_is_a_finding(holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.bench.overhead.WANTED_TIME", 1.1)
    monkeypatch.setattr("holdfast.bench.overhead.HEADLINE", (4, 2))
    outcome = holdfast("bench", "overhead", *SMALL, "--out", str(tmp_path / "out"), "-q")
    assert outcome.code == 1
    assert "BROKEN: virtual time of duplicate, K=4, M=2" in outcome.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--part", "all"), "known are virtual, memory, processes"),
        (("--network", "moon"), "known are local, gigabit, wan, mixed"),
        (("--stages", "2"), "--stages"),
        (("--quick", "--part", "virtual", "--forward-seconds", "-1"), "seconds_per_forward"),
        (("--quick", "--part", "virtual", "--network", "mixed", "--stages", "4"), "6 devices"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(holdfast, tmp_path: Path, words, told: str) -> None:
    outcome = holdfast("bench", "overhead", *words, "--out", str(tmp_path / "out"))
    assert outcome.code == 2
    assert told in outcome.err
    assert not (tmp_path / "out").exists()


def test_something_else_is_not_written_over(holdfast, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x", encoding="utf-8")
    outcome = holdfast("bench", "overhead", *SMALL, "--out", str(tmp_path))
    assert outcome.code == 2
    assert "choose another --out" in outcome.err
