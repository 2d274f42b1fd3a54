"""`Experiment`: short settings, attacks in every form that people have them in, and what is kept of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from holdfast import Attack, Experiment, Faults, RunConfig
from holdfast.attacks import Scene
from holdfast.config import AttackConfig
from holdfast.errors import ConfigError
from holdfast.event import Event, StepSealed
from holdfast.safekeeping import Safekeeping

TINY: dict[str, Any] = {
    "model": "gpt2:layers=4,width=16,heads=2",
    "data": {"sequence_length": 16, "vocabulary": 300, "validation_tokens": 256},
    "stages": 4,
    "micro_batches": 2,
    "micro_batch_size": 2,
    "steps": 2,
}


@dataclass(kw_only=True)
class Shrink(Attack):
    """Half of what was computed."""

    factor: float = 0.5

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        return honest * self.factor


@pytest.fixture(scope="module")
def clean() -> str:
    return Experiment(**TINY).run().weights_digest


@pytest.mark.parametrize(
    "attack",
    [
        "sign-flip,stages=1",
        Shrink(),
        AttackConfig(spec="zeros", stages=(1,)),
        {"spec": "scale,factor=3", "stages": (1,)},
        {"spec": Shrink(factor=2.0), "stages": (1,)},
        ["sign-flip,stages=1", Shrink()],
    ],
    ids=["name", "object", "config", "table", "object-in-table", "several"],
)
def test_an_attack_in_any_form_is_caught_and_costs_nothing(attack: Any, clean: str) -> None:
    result = Experiment(**TINY, attack=attack).run()
    assert result.attacked_claims == result.detected > 0
    assert (result.missed, result.false_alarms) == (0, 0)
    assert result.weights_digest == clean


def test_faults_as_a_story(clean: str) -> None:
    result = Experiment(**TINY, faults=Faults().crash(stage=1, step=1, at="backward")).run()
    assert result.weights_digest == clean
    again = Experiment(**TINY, faults=["crash stage=1 step=1 at=backward"])
    assert again.config.faults == ("crash stage=1 step=1 at=backward",)


def test_settings_may_come_from_a_config_and_be_changed() -> None:
    config = RunConfig()
    experiment = Experiment(config, steps=7, optimizer={"beta2": 0.95})
    assert (experiment.config.training.steps, experiment.config.optimizer.beta2) == (7, 0.95)
    assert experiment.config.pipeline == config.pipeline


def test_observers_see_every_event_and_without_a_directory_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[Event, float]] = []
    experiment = Experiment(**TINY, observers=[lambda event, seconds: seen.append((event, seconds))])
    experiment.run()
    assert sum(isinstance(event, StepSealed) for event, _ in seen) == 2
    assert experiment.record is not None
    assert len(experiment.record.losses) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_goes_on_from_its_directory(tmp_path: Path, clean: str) -> None:
    out = tmp_path / "run"

    def stop(event: Event, seconds: float) -> None:
        if isinstance(event, StepSealed):
            first.stop()

    first = Experiment(**TINY, out=str(out), observers=[stop])
    assert first.run().steps == 1
    resumed = Experiment(resume=out).run()
    assert (resumed.steps, resumed.weights_digest) == (2, clean)


def test_a_stop_that_comes_when_a_step_is_over_leaves_that_step_s_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at a step and the next one: what is written is what the result says."""
    run = Experiment(**{**TINY, "steps": 4}, out=str(tmp_path / "run"))
    hear, calls = Safekeeping.hear, []

    def stop_then_hear(safe: Safekeeping, *, wait: bool = False) -> None:
        calls.append(wait)
        if len(calls) == 2:
            run.stop()
        hear(safe, wait=wait)

    monkeypatch.setattr(Safekeeping, "hear", stop_then_hear)
    result = run.run()
    assert (result.steps, result.checkpoint_step, result.interrupted) == (2, 2, True)
    monkeypatch.undo()
    ends = Experiment(**{**TINY, "steps": 4}).run().weights_digest
    assert Experiment(resume=tmp_path / "run").run().weights_digest == ends


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"attack": "no-such-attack"}, "no-such-attack"),
        ({"attack": 7}, "int"),
        ({"colour": "red"}, "unknown setting"),
        ({"report_to": "tensorboard"}, "needs a directory"),
        ({"faults": ["melt stage=1 step=1"]}, "melt"),
        ({"resume": "nowhere"}, "no run to resume"),
    ],
    ids=lambda value: str(value),
)
def test_wrong_settings_are_refused_at_once(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Experiment(**settings)
