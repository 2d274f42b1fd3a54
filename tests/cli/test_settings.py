"""Settings: the file gives way to options, options to assignments; campaigns are read out of an attack's name."""

from __future__ import annotations

import inspect

import pytest

from holdfast.cli.train import _resolve, _tables
from holdfast.config import RunConfig
from holdfast.errors import ConfigError
from holdfast.settings import SETTINGS, add_attacks, merge, numbers, split_attack


def tables(**given: object) -> dict[str, object]:
    return _tables(None, None, given, [], None, None)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_short_name_reaches_an_existing_setting(setting) -> None:
    section, _, key = setting.path.partition(".")
    field = RunConfig.model_fields[section]
    assert not key or key in field.annotation.model_fields


def test_file_options_and_assignments_in_growing_weight(tmp_path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[training]\nsteps = 1\nseed = 1\n[optimizer]\nbeta2 = 0.9\n")
    config = _resolve(_tables(file, None, {"steps": 2, "out": "o"}, [], None, None), ["training.steps=3"])
    assert (config.training.steps, config.training.seed, config.optimizer.beta2) == (3, 1, 0.9)
    config = _resolve(_tables(file, None, {"steps": 2, "out": "o"}, [], None, None), [])
    assert config.training.steps == 2


def test_a_run_without_a_directory_gets_a_fresh_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = _resolve(tables(), []).output.dir
    (tmp_path / first).mkdir(parents=True)
    assert _resolve(tables(), []).output.dir not in (None, first)


def test_campaign_parameters_may_stand_beside_the_attacks_own() -> None:
    found = split_attack("scale,factor=10,rate=0.5,stages=1+3,persistent=true,worker=w2,first-step=4")
    assert found == {
        "spec": "scale,factor=10",
        "rate": 0.5,
        "stages": (1, 3),
        "persistent": True,
        "worker": "w2",
        "first_step": 4,
    }


def test_rate_and_stages_apply_to_every_attack() -> None:
    found = add_attacks({}, ["sign-flip", "zeros,rate=0.1"], rate=0.3, stages="1-2")
    assert [(table["rate"], table["stages"]) for table in found["attack"]] == [(0.3, (1, 2))] * 2
    found = add_attacks({"attack": [{"spec": "zeros"}]}, [], rate=0.3)
    assert found["attack"] == ({"spec": "zeros", "rate": 0.3},)
    assert add_attacks({"attack": [{"spec": "zeros"}]}, ["gaussian"])["attack"] == ({"spec": "gaussian"},)


@pytest.mark.parametrize("text", ["", "4-1", "a", "1-", "1..3"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected numbers"):
        numbers(text, "stages")


def test_rate_without_an_attack() -> None:
    with pytest.raises(ConfigError, match="add --attack"):
        add_attacks({}, [], rate=0.3)


def test_a_misspelt_setting_is_told_its_neighbour() -> None:
    with pytest.raises(ConfigError, match="did you mean 'on_alert'"):
        merge({}, {"on_alerts": "skip"})


def test_a_file_and_a_resumed_run_cannot_both_rule(tmp_path) -> None:
    with pytest.raises(ConfigError, match="got both"):
        _tables(tmp_path / "a.toml", tmp_path, {}, [], None, None)


BAD = [
    (("--stages", "2", "--defence", "duplicate"), "nothing to defend"),
    (("--attack", "sign-flip", "--attack-stages", "0-2"), "names stage 0"),
    (("--attack", "sign-flip,stages=9"), "names stage 9"),
    (("--set", "training.step=3"), "unknown setting 'training.step'"),
    (("--set", "nonsense"), "expected section.key=value"),
    (("no-such.toml",), "no config file"),
    (("--rate", "0.5"), "add --attack"),
    (("--attack", "sign-flop"), "sign-flip"),
    (("--fault", "crash stage=0 step=1"), "stage 0"),
    (("--fault", "explode stage=1"), "explode"),
    (("--engine", "rya"), "pipeline.engine"),
    (("--defence", "spot-check", "--check-steps", "0"), "would check nothing"),
    (("--defence", "none", "--check-claims", "0.1"), "need a defence"),
    (("--data", "/no/such/file.txt"), "no data at"),
    (("--stages", "9"), "9"),
    (("--seq-length", "600", "--model", "gpt2:layers=6,width=64,heads=4,positions=64"), "longer than the 64 positions"),
    (("--model", "mamba:layers=2"), "mamba"),
    (("--resume", "nowhere"), "nowhere"),
]


@pytest.mark.parametrize(("words", "complaint"), BAD, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_bad_input_is_one_clear_error_and_leaves_nothing(holdfast, tmp_path, monkeypatch, words, complaint) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = holdfast("train", "--quiet", *words)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ")
    assert complaint in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_are_spelled_from_the_table(holdfast) -> None:
    told = holdfast("train", "--help").out
    for setting in SETTINGS:
        assert setting.option in told
    from holdfast.cli.options import with_settings
    from holdfast.cli.train import train

    assert "steps" in inspect.signature(with_settings(train)).parameters
