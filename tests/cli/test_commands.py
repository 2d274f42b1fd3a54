"""Commands that train nothing: models, doctor, report, eval, export, new."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from holdfast.cli import report
from holdfast.cli.checkup import Check, _packages
from holdfast.cli.templates import render
from holdfast.errors import ConfigError
from holdfast.event import StepSealed
from holdfast.report import JsonlReport, read_run, write_run

SMALL = "gpt2:layers=3,width=16,heads=2"


def test_models_shows_a_cut_with_memory_and_self_test(holdfast) -> None:
    outcome = holdfast("models", SMALL, "--stages", "3")
    assert outcome.code == 0
    assert "stage 1" in outcome.out, "the last worker holds a shadow"
    assert "bit-equal" in outcome.out


def test_models_lists_families(holdfast) -> None:
    outcome = holdfast("models")
    assert outcome.code == 0
    assert {"gpt2", "opt", "bloom", "llama", "qwen3"} <= {line.split()[0] for line in outcome.out.splitlines() if line}


@pytest.mark.parametrize(
    "words", [(SMALL, "--stages", "9"), (SMALL, "--dtype", "int8"), ("gpt2:depth=2",), ("/nowhere/at/all",)]
)
def test_models_refuses_what_cannot_be_cut(holdfast, words: tuple[str, ...]) -> None:
    outcome = holdfast("models", *words)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")


def test_doctor_says_what_it_checked(holdfast) -> None:
    outcome = holdfast("doctor", "--json", "--model", SMALL)
    found = json.loads(outcome.out.splitlines()[-1])
    names = {check["name"] for check in found["checks"]}
    assert {"python", "torch", "threads", "same product twice", "same stage twice", "split equals whole", "disk"} <= names
    assert outcome.code == (0 if found["passed"] else 1)


def test_doctor_fails_with_the_name_of_what_failed(holdfast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.cli.checkup._same_product_twice", lambda _device: _raise(RuntimeError("different bits")))
    outcome = holdfast("doctor", "--model", SMALL)
    assert outcome.code == 1
    assert "FAIL  same product twice" in outcome.out
    assert "checks failed: same product twice" in outcome.out


def test_doctor_looks_at_the_device_that_is_named(holdfast) -> None:
    found = json.loads(holdfast("doctor", "--json", "--model", SMALL).out.splitlines()[-1])
    assert "(float32, cpu, " in next(check["detail"] for check in found["checks"] if check["name"] == "split equals whole")
    outcome = holdfast("doctor", "--model", SMALL, "--device", "abacus")
    assert outcome.code == 1
    assert "FAIL  device                 device 'abacus' is none that torch knows" in outcome.out
    assert "      same product twice     not tried: there is no device to try it on" in outcome.out
    assert holdfast("doctor", "--numerics", "--device", "abacus").code == 2


def test_a_fact_is_no_failure(holdfast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "holdfast.cli.checkup.examine", lambda _model, _device: [Check("threads", None, "1"), Check("x", True, "y")]
    )
    assert holdfast("doctor").code == 0


def test_a_source_tree_that_is_not_installed_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.cli.checkup.requires", lambda _name: _raise(PackageNotFoundError("holdfast")))
    (found,) = _packages()
    assert found.passed is None
    assert "source tree" in found.detail


def _raise(error: Exception) -> str:
    raise error


def finished_run(directory: Path, label: str, digest: str, attack: str = "") -> Path:
    write_run(directory, label, {"weights_digest": digest, "validation_perplexity": 100.0, "seconds": 1.0})
    (directory / "config.toml").write_text("[pipeline]\nstages = 4\n" + (f'[[attack]]\nspec = "{attack}"\n' if attack else ""))
    with JsonlReport(directory / "report.jsonl") as report:
        report(StepSealed(0, 0, 5.0, 1.0, 0.1, 4), 0.5)
    return directory


def test_report_compares_runs(holdfast, tmp_path: Path) -> None:
    clean = finished_run(tmp_path / "a", "clean", "1")
    other = finished_run(tmp_path / "b", "attacked", "2", "sign-flip")
    assert read_run(other).config["attack"] == [{"spec": "sign-flip"}]
    outcome = holdfast("report", str(clean), str(other))
    assert outcome.code == 0
    assert "| attacked |" in outcome.out
    assert "differ" in outcome.out
    page = tmp_path / "page.html"
    assert holdfast("report", str(clean), str(other), "--format", "html", "--to", str(page)).code == 0
    assert page.read_text().startswith("<!doctype html>")
    assert holdfast("report", str(clean), "-f", "csv").out.startswith("label,")


def test_report_tells_runs_of_one_label_apart(holdfast, tmp_path: Path) -> None:
    runs = [str(finished_run(tmp_path / name, "clean", "1")) for name in ("first", "second")]
    told = holdfast("report", *runs).out
    assert "| clean (first) |" in told
    assert "| clean (second) |" in told


def test_report_refuses_what_it_does_not_know(holdfast, tmp_path: Path) -> None:
    assert holdfast("report", str(tmp_path / "none")).code == 2
    run = finished_run(tmp_path / "a", "clean", "1")
    assert "known are md, csv, html" in holdfast("report", str(run), "-f", "docx").err
    (run / "run.json").write_text("{")
    assert "altered or torn" in holdfast("report", str(run)).err


def test_export_of_nothing(holdfast, tmp_path: Path) -> None:
    outcome = holdfast("export", str(tmp_path), "--to", str(tmp_path / "model"))
    assert outcome.code == 3
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("words", [("--data", "/no/such/file.txt"), ("--part", "test")])
def test_eval_of_a_wrong_wish(holdfast, tmp_path: Path, words: tuple[str, ...]) -> None:
    outcome = holdfast("eval", str(tmp_path), *words)
    assert outcome.code in (2, 3)
    assert outcome.err.startswith("error: ")


@pytest.mark.parametrize("kind", ["attack", "defence"])
def test_a_new_package_passes_its_own_test(kind: str, holdfast, tmp_path: Path) -> None:
    directory = tmp_path / "package"
    outcome = holdfast("new", kind, "slow-drift", "--to", str(directory))
    assert outcome.code == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("name", ["Slow", "slow_drift", "slow--drift", "../escape", "class", ""])
def test_a_plug_in_needs_a_plain_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a plug-in"):
        render("attack", name, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_new_overwrites_nothing(holdfast, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    outcome = holdfast("new", "attack", "slow-drift", "--to", str(tmp_path))
    assert outcome.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_report_of_runs_in_every_form(holdfast, tmp_path: Path) -> None:
    clean = finished_run(tmp_path / "a", "clean", "1")
    other = finished_run(tmp_path / "b", "attacked", "2", "sign-flip")
    to = tmp_path / "all"
    assert holdfast("report", str(clean), str(other), "-f", "all", "--to", str(to)).code == 0
    assert {path.name for path in to.iterdir()} == set(report.ALL)
    assert "attacked" in (to / "table.tex").read_text()
    assert "0/1" in holdfast("report", str(clean), str(other), "--value", "weights").out
    assert "give --to FILE" in holdfast("report", str(clean), "-f", "pdf").err
    assert holdfast("report", str(clean), "--by", "colour").code == 2
