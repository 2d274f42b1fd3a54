"""`holdfast bench detection` at the border: options, refusals, exit codes, what is printed and what is written."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("--attack", "zeros", "--rate", "1", "--defence", "duplicate", "--seeds", "1", "--steps", "1")


def test_a_grid_of_ones_own(holdfast, tmp_path: Path) -> None:
    outcome = holdfast("bench", "detection", *SMALL, "--stages", "2", "--out", str(tmp_path / "out"), "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out.splitlines()[-1])
    assert (told["cells"], told["failed"], told["findings"]) == (3, 0, [])
    rows = {(row["attack"], row["defence"]): row for row in told["rows"]}
    assert (rows["zeros", "duplicate"]["tpr"], rows["zeros", "duplicate"]["stage"]) == (1.0, "2")
    assert rows["honest", "duplicate"]["fpr"] == 0.0
    assert [line.partition("]")[0] for line in outcome.err.splitlines()] == [
        "3 cells, 3 to be run; results: " + str(tmp_path / "out"),
        "[1/3",
        "[2/3",
        "[3/3",
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"detection.{form}" for form in ("jsonl", "csv", "md", "svg", "pdf", "png")),
        *("cells", "cells.jsonl", "sweep.json", "lock", "environment.json"),
    }


def test_for_people_it_prints_the_table(holdfast, tmp_path: Path) -> None:
    outcome = holdfast("bench", "detection", *SMALL, "--out", str(tmp_path / "out"), "-q")
    assert outcome.code == 0
    assert outcome.err == ""
    assert "| zeros | forward | all | 1 | duplicate | 1 | 2/2 = 100 % [15.8, 100.0] |" in outcome.out
    assert f"Table and figure: {tmp_path / 'out'}" in outcome.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--suite", "vast"), "known are quick, catalogue, blame, collusion"),
        (("--attack", "no-such"), "unknown attack 'no-such'"),
        (("--attack", "zeros,strength=2"), "has no parameter strength"),
        (("--defence", "no-such"), "defence.name"),
        (("--defence", "duplicate,no_such=1"), "unknown setting 'defence.no_such'"),
        (("--defence", "none,check_claims=0.1"), "spot checks"),
        (("--attack", "zeros", "--stages", "5"), "attackable ones are 1 to 4"),
        (("--attack", "zeros", "--stages", "two"), "expected numbers"),
        (("--attack", "zeros", "--direction", "up"), "direction must be one of"),
        (("--attack", "zeros", "--rate", "1.5"), "rate"),
        (("--scale", "vast"), "known are tiny, small"),
        (("--set", "pipeline.stages=2"), "2 stages"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(holdfast, tmp_path: Path, words, told: str) -> None:
    outcome = holdfast("bench", "detection", *words, "--out", str(tmp_path / "out"))
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert told in outcome.err
    assert not (tmp_path / "out").exists()


def test_results_are_never_written_over(holdfast, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    outcome = holdfast("bench", "detection", *SMALL, "--out", str(tmp_path))
    assert outcome.code == 2
    assert "choose another --out" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_run_is_told_in_the_end_with_exit_code_one(holdfast, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from dataclasses import dataclass\nfrom holdfast.attacks import Attack\n\n\n@dataclass(kw_only=True)\n"
        "class Broken(Attack):\n    def forge(self, honest, scene):\n        raise ZeroDivisionError('a defect')\n"
    )
    words = ("--attack", f"{broken}:Broken", *SMALL, "--out", str(tmp_path / "out"), "--json")
    outcome = holdfast("bench", "detection", *words)
    assert outcome.code == 1
    assert "error: 1 of 4 runs failed; the first: unexpected ZeroDivisionError: a defect" in outcome.err
    told = json.loads(outcome.out.splitlines()[-1])
    assert told["failed"] == 1
    assert {row["attack"]: row["tpr"] for row in told["rows"] if row["defence"] == "duplicate"}["zeros"] == 1.0
    assert (tmp_path / "out" / "detection.csv").exists()


def test_a_suite_that_names_an_attack_of_another_version_says_so(holdfast, tmp_path: Path, monkeypatch) -> None:
    from holdfast.bench import suites

    grid = suites.Grid(("zeros", "no-such-attack"), ("duplicate",), rates=(1.0,), seeds=range(1))
    monkeypatch.setattr(suites, "SUITES", {"blame": suites.Suite(grid, steps=1)})
    outcome = holdfast("bench", "detection", "--suite", "blame", "--out", str(tmp_path / "out"), "--json")
    assert outcome.code == 1
    assert "unknown attack 'no-such-attack'" in outcome.err
    told = json.loads(outcome.out.splitlines()[-1])
    errors = {row["attack"]: row["error"] for row in told["rows"]}
    assert errors["zeros"] is None
    assert "no-such-attack" in errors["no-such-attack"]


def test_a_missing_library_is_told_before_anything_runs(holdfast, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = holdfast("bench", "detection", *SMALL, "--out", str(tmp_path / "out"))
    assert outcome.code == 3
    assert "pip install 'holdfast[bench]'" in outcome.err
    assert not (tmp_path / "out").exists()


def test_help_needs_no_library() -> None:
    code = (
        "import sys\nfrom holdfast.cli.main import main\n"
        "try:\n    main(['bench', 'detection', '--help'])\nexcept SystemExit as left:\n"
        "    heavy = {'torch', 'transformers', 'matplotlib', 'scipy', 'pandas'} & set(sys.modules)\n"
        "    sys.exit(f'imported: {heavy}' if heavy or left.code else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--suite" in done.stdout


@pytest.mark.parametrize(
    ("experiment", "words", "parts"),
    [
        ("table1", ("--scale", "smoke", "--models", "GPT-2", "--columns", "forward 0.7", "--seeds", "2"), 0),
        pytest.param("overhead", ("--quick", "--network", "local", "--stages", "4"), 2, marks=pytest.mark.slow),
        pytest.param("recovery", ("--quick", "--part", "crash", "--part", "lie"), 2, marks=pytest.mark.slow),
        pytest.param("detection", ("--attack", "zeros", "--defence", "duplicate", "--steps", "1"), 0, marks=pytest.mark.slow),
        pytest.param("aggregation", ("--scale", "smoke", "--seeds", "1", "--attack", "zeros"), 3, marks=pytest.mark.slow),
    ],
)
def test_every_number_of_an_experiment_is_reported_with_its_run(holdfast, tmp_path: Path, experiment, words, parts) -> None:
    out, paper, archive = tmp_path / "out", tmp_path / "paper", tmp_path / experiment
    assert holdfast("bench", experiment, *words, "--out", str(out), "-q").code == 0
    archive.mkdir()
    shutil.copy(out / "cells.jsonl", archive)  # what is committed of an experiment
    for where in (out, archive):
        outcome = holdfast("report", str(where), "-f", "all", "--to", str(paper / where.name))
        assert outcome.code == 0, outcome.err
    told = {path.name: path.read_bytes() for path in (paper / experiment).iterdir()}
    assert set(told) == {"report.md", "runs.csv", "means.csv", "table.tex", "figure.pdf", "figure.svg", "report.html"}
    page, html = told["report.md"].decode(), told["report.html"].decode()
    assert sum(line.startswith("## ") for line in page.splitlines()) == parts + 1
    with (paper / experiment / "runs.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert runs
    for run in runs:
        assert run["command"].startswith("holdfast ")
        assert run["commit"]
        assert run["torch"]
        assert run["started"]
        assert f"{run['command']}  # {run['key'][:12]}" in page
        assert f'id="c{run["key"][:12]}"' in html
