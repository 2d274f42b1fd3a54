"""Every example runs, says what it promises, and is short."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PROMISED = {
    "audit_evidence": ["intact: ", "Verdict: w2: false activation", "with one name changed: altered"],
    "compare_defences": [
        "replace  weights equal the clean run's in 3 of 3 seeds",
        "attacked weights equal the clean run's in 0 of 3",
    ],
    "crash_story": ["is lost", "takes stage 2 over", "8 steps, 0 of them begun again", "same weights as the quiet run: True"],
    "finetune_lora": ["same adapters as without a liar: True", "parameters of adapters"],
    "my_attack": ["forged claims detected; liars: {"],
    "my_observer": ["w3 lied", "loss from "],
    "my_remedy": ["patient  ", "same weights as the clean run: True"],
    "quickstart": ["same weights as the clean run: True"],
    "sweep_and_report": ["worst: ", "holdfast train --attack", "report.html"],
}
SLOW = ("compare_defences", "finetune_lora", "sweep_and_report")
"""Several seconds each, and near to what other tests run in the quick suite."""


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft about transformers
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PROMISED])
def test_it_runs_and_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "finetune_lora":
        pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    told = capfd.readouterr().out
    assert [part for part in PROMISED[name] if part not in told] == [], told


def test_none_is_forgotten_and_none_is_long() -> None:
    found = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(found) == set(PROMISED)
    assert {name: lines for name, lines in found.items() if lines >= 40} == {}
