"""`holdfast demo`, shortened: four runs, one table, one page, and the promise that it checks itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.cli.demo_runs import _clear
from holdfast.config import resolve
from holdfast.presets import DEMO_RUNS, demo_tables
from holdfast.report import RunRecord, read_run


def test_the_demo_shows_an_attack_and_keeps_its_promise(holdfast, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    outcome = holdfast("demo", "--steps", "4", "--out", str(out), "-q")
    assert outcome.code == 0, outcome.err
    runs = [read_run(out / label) for label in DEMO_RUNS]
    digests = {run.label: run.result["weights_digest"] for run in runs}
    assert digests["clean"] == digests["replace"] != digests["attacked"]
    assert "equal those of the clean run, bit for bit" in outcome.out
    assert "lies proven" in outcome.out
    assert (out / "report.html").read_text().count("<svg") >= 3
    _clear(out / "clean")
    assert not (out / "clean").exists(), "an earlier demo is replaced"


def test_the_demo_removes_nothing_of_anybody_else(holdfast, tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "thesis.tex").write_text("x")
    outcome = holdfast("demo", "--out", str(tmp_path), "-q")
    assert outcome.code == 2
    assert (tmp_path / "clean" / "thesis.tex").exists()


def test_a_broken_promise_is_a_finding(holdfast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differing(*args: object, **more: object) -> list[RunRecord]:
        return [RunRecord(label, {"weights_digest": label}, {"pipeline": {"stages": 6}}, ()) for label in DEMO_RUNS]

    monkeypatch.setattr("holdfast.cli.demo_runs.run_all", differing)
    outcome = holdfast("demo", "--out", str(tmp_path), "-q")
    assert outcome.code == 1
    assert "broken promise" in outcome.err


@pytest.mark.parametrize("label", list(DEMO_RUNS))
def test_the_demo_has_the_setting_that_was_measured(label: str, tmp_path: Path) -> None:
    config = resolve(demo_tables(label, tmp_path))
    assert (config.training.steps, config.optimizer.learning_rate, config.optimizer.warmup_steps) == (150, 3e-3, 10)
    assert (config.pipeline.stages, config.pipeline.micro_batches, config.data.vocabulary) == (6, 4, 512)
