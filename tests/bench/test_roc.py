"""The ROC of tolerance: what it counts, that it can fail, and what it writes."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from holdfast.bench import roc as experiment
from holdfast.bench import roc_cells as cells
from holdfast.bench.forging import KINDS, OF_WEIGHTS, Forger
from holdfast.bench.roc import SIZES, Honest, Plan, Roc, Tampered, run_roc
from holdfast.bench.roc_report import markdown, summary, write_roc
from holdfast.claim import Direction
from holdfast.config import OptimizerConfig
from holdfast.errors import ConfigError
from holdfast.sweep.record import expanded, read_lines
from holdfast.verify.calibration import Calibration
from holdfast.verify.tolerance import Agreement, distance

SMALL = "gpt2:layers=3,width=16,heads=2"
FEW = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "SIZES", FEW)


@pytest.fixture
def plan() -> Plan:
    return Plan(SMALL, ("float32",), checks=100, stages=3, micro_batches=2)


def test_no_false_alarm_and_nothing_missed(few_sizes: None, plan: Plan) -> None:
    found = run_roc(Plan(SMALL, ("float32", "bfloat16"), 200, stages=3, micro_batches=2))
    assert found.passed
    assert found.checks >= 200
    assert {row.direction for row in found.honest} == set(Direction)
    assert {(row.dtype, row.direction, row.kind) for row in found.tampered} == {
        (dtype, direction, kind)
        for dtype in ("float32", "bfloat16")
        for direction, kinds in (("forward", KINDS), ("backward", KINDS), ("update", (*KINDS, OF_WEIGHTS)))
        for kind in kinds
    }
    whole = [row for row in found.tampered if row.size == 1.0]
    assert all(row.detected == row.forgeries > 0 for row in whole if row.kind == "spread" or row.direction != "update")
    assert all(row.convicted >= row.must_convict for row in whole)
    assert sum(row.must_convict for row in whole) > 0
    assert all(row.detected == 0 for row in found.tampered if row.size == 1e-8 and row.kind != OF_WEIGHTS)
    assert summary(found)["passed"]


def test_the_same_seed_gives_the_same_table(few_sizes: None, plan: Plan) -> None:
    first, again = run_roc(plan), run_roc(plan)
    assert (first.honest, first.tampered) == (again.honest, again.tampered)


def test_a_check_that_lets_all_pass_is_found_out(few_sizes: None, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "verdict", lambda *_: Agreement.WITHIN)
    found = run_roc(plan)
    assert found.false_alarms == 0
    assert sum(row.must_missed for row in found.tampered) > 0
    assert sum(row.must_convict_missed for row in found.tampered) > 0
    assert not found.passed


def test_a_check_that_lets_nothing_pass_is_found_out(few_sizes: None, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "verdict", lambda *_: Agreement.ALARM)
    found = run_roc(plan)
    assert found.false_alarms > 0
    assert not found.passed


def test_a_check_that_only_alarms_is_found_out(few_sizes: None, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = experiment.verdict
    monkeypatch.setattr(
        experiment, "verdict", lambda *given: Agreement.WITHIN if honest(*given) is Agreement.WITHIN else Agreement.ALARM
    )
    found = run_roc(plan)
    assert found.false_alarms == 0
    assert sum(row.must_missed for row in found.tampered) == 0
    assert found.missed > 0, "who is 3 times beyond the limit of guilt must be called guilty"


def test_a_pair_without_a_bound_stops_the_experiment(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "calibrate_job", lambda *_: Calibration(3.0, {}))
    with pytest.raises(ConfigError, match="never measured"):
        run_roc(plan)


# -- forgeries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0])
def test_a_forgery_has_the_size_that_it_says(size: float) -> None:
    honest = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    forger = Forger(OptimizerConfig(), seed=0)
    assert distance(forger.moved(honest, "spread", size), honest).overall == pytest.approx(size, rel=1e-3)
    for kind in ("row", "other-row"):
        forged = forger.moved(honest, kind, size)
        moved = (forged != honest).any(dim=-1)
        assert moved.sum() == 1
        lengths = (forged - honest).norm(dim=-1) / honest.norm(dim=-1)
        assert lengths.max().item() == pytest.approx(size, rel=1e-3)
    assert forged.dtype == honest.dtype


def test_sizes_are_even_in_decades() -> None:
    assert (SIZES[0], SIZES[-1], len(SIZES)) == (pytest.approx(1e-8), 1.0, 33)


# -- what is written -----------------------------------------------------------------------------------------------------


def small_roc() -> Roc:
    honest = [
        Honest(dtype, str(direction), "a", "b", 10, 0, 1, 1e-7, 2e-7, 1e-6, 2e-6)
        for dtype in ("float32", "bfloat16")
        for direction in Direction
    ]
    tampered = [
        Tampered(dtype, direction, kind, size, 4, 4 * (size > 1e-6), 4 * (size > 1e-4), 4 * (size > 1e-3))
        for dtype in ("float32", "bfloat16")
        for direction in ("forward", "backward", "update")
        for kind in (*KINDS, OF_WEIGHTS)
        for size in SIZES[::4]
    ]
    return Roc(Plan(checks=80), honest, tampered, {"float32": 1, "bfloat16": 1})


def test_files_are_tidy_and_say_what_they_depended_on(tmp_path: Path) -> None:
    out = tmp_path / "roc"
    paths = write_roc(small_roc(), out, {"commit": "abc", "command": "holdfast bench roc"})
    assert sorted(path.name for path in paths) == sorted(path.name for path in out.iterdir())
    rows = [json.loads(line) for line in (out / "tampered.jsonl").read_text().splitlines()]
    assert len(rows) == len(small_roc().tampered)
    assert {row["rate"] for row in rows} == {0.0, 1.0}
    with (out / "tampered.csv").open(newline="") as stream:
        assert [row["kind"] for row in csv.DictReader(stream)] == [row["kind"] for row in rows]
    run = json.loads((out / "run.json").read_text())
    assert (run["environment"]["commit"], run["passed"], run["honest_checks"]) == ("abc", True, 80)
    assert (out / "roc.svg").read_text().startswith("<?xml")
    assert (out / "roc.pdf").read_bytes().startswith(b"%PDF")
    assert "80 honest checks on mixed arithmetic: **0 false alarms**" in (out / "roc.md").read_text()


def test_the_page_tells_a_false_alarm() -> None:
    found = small_roc()
    found.honest[0].alarms = 2
    assert not found.passed
    assert "**2 false alarms**" in markdown(found, summary(found) | {"environment": {}})


def test_too_few_checks_are_no_pass() -> None:
    found = small_roc()
    assert found.passed
    found.honest.pop()
    assert not found.passed


# -- the command ---------------------------------------------------------------------------------------------------------


def command(*words: str) -> int:
    from holdfast.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["bench", "roc", *words])
    return int(left.value.code or 0)


def test_the_command_measures_each_dtype_once_and_a_report_reads_it(
    few_sizes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(SMALL, ("float32", "bfloat16"), 200, 3, 3, 2)
    words = ["--checks", "200", "--seed", "3", "--model", SMALL, "--stages", "3", "--micro-batches", "2", "--json"]
    words += ["-q", "--out", str(tmp_path / "a")]
    assert command(*words) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = run_roc(plan)
    assert told == {**summary(expected), "out": str(tmp_path / "a"), "plan": {**asdict(plan), "dtypes": list(plan.dtypes)}}
    assert (tmp_path / "a" / "roc.pdf").exists()
    monkeypatch.setattr(cells, "measure", lambda *_: pytest.fail("what was measured is kept"))
    assert command(*words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == told
    records = read_lines(tmp_path / "a" / "cells.jsonl")
    assert [record.axes["dtype"] for record in records] == ["float32", "bfloat16"]
    assert records[1].command == (
        "holdfast bench roc --dtype bfloat16 --checks 100 "
        "--model gpt2:layers=3,width=16,heads=2 --seed 3 --stages 3 --micro-batches 2"
    )
    shown = expanded(records)
    assert {(one.axes["dtype"], one.axes["direction"]) for one in shown} == {
        (dtype, str(direction)) for dtype in plan.dtypes for direction in Direction
    }
    assert sum(one.result["honest_checks"] for one in shown if one.result) == expected.checks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "float16"], "--dtype 'float16'"),
        (["--stages", "9", "--model", SMALL], "9 stages for a model of 3 layers"),
        (["--out", "."], "holds no cells"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "something").touch()
    monkeypatch.chdir(tmp_path)
    assert command(*words) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


def test_the_command_returns_one_where_it_falls_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = small_roc()
    failing.honest[0].alarms = 1
    monkeypatch.setattr(cells, "measure", lambda plan, dtype: failing)
    assert command("--dtype", "float32", "--checks", "80", "--out", str(tmp_path / "b"), "-q") == 1
    assert "1 false alarms" in capsys.readouterr().out
    assert (tmp_path / "b" / "roc.md").exists()
