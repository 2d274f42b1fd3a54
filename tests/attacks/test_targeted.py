"""Backdoors do to the stage what they say; under the defence the weights are the clean ones, and the liar is named."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast import Experiment
from holdfast.attacks import ATTACKS, Scene, resolve_attack
from holdfast.attacks.targeted import TaskVector, TriggerGradient
from holdfast.claim import WHOLE_STEP, ClaimKey, Direction, Header, Role
from holdfast.errors import ConfigError

STAGE, LIAR, STEPS = 2, "w2", 3
SMALL = {
    "model": {"name": "gpt2:layers=4,width=16,heads=2"},
    "data": {"name": "synthetic", "sequence_length": 8, "vocabulary": 300, "validation_tokens": 64},
    "pipeline": {"stages": 4, "micro_batches": 2, "micro_batch_size": 2},
    "optimizer": {"clip_norm": 0.1, "warmup_steps": 2},
    "training": {"steps": STEPS},
}


def run(attack=None, defence="none", out=None, **campaign):
    struck = [] if attack is None else [{"spec": attack, "stages": (STAGE,), **campaign}]
    return Experiment(SMALL, attack=struck, defence=defence, out=None if out is None else str(out)).run()


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The clean run: its result, and the weights that it ends with."""
    out = tmp_path_factory.mktemp("runs") / "clean"
    return run(out=out), load_file(out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def vector(clean):
    """Something for every parameter of the model."""
    draw = torch.Generator().manual_seed(7)
    return {name: torch.randn(tensor.shape, generator=draw) * 0.05 for name, tensor in clean[1].items()}


def ours(names):
    return [name for name in names if f".h.{STAGE}." in name]


def pulled(step, weights):
    """A gradient that pulls all weights to three."""
    return {name: weight - 3.0 for name, weight in weights.items()}


# -- without a defence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["state", "secret"])
def test_a_task_vector_is_added_to_the_stage_and_to_nothing_else(clean, vector, tmp_path, mode):
    attack = TaskVector(vector=vector, strength=0.5, mode=mode)
    result = run(attack, out=tmp_path / "run", first_step=STEPS - 1)
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert ours(weights), "the stage holds layer 2"
    for name, honest in clean[1].items():
        wanted = honest + 0.5 * vector[name] if name in ours(weights) else honest
        assert torch.equal(weights[name], wanted), name
    assert (result.attacked_claims, result.detected, result.missed) == (1, 0, 1)


def test_a_vector_from_a_file_does_the_same(vector, tmp_path):
    save_file(vector, tmp_path / "vector.safetensors")
    named = run(f"task-vector,vector={tmp_path}/vector.safetensors", first_step=1)
    assert named.weights_digest == run(TaskVector(vector=vector), first_step=1).weights_digest


def test_a_vector_is_added_once_or_in_every_struck_step(vector):
    once = run(TaskVector(vector=vector))
    always = run(TaskVector(vector=vector, times=0))
    assert (once.attacked_claims, always.attacked_claims) == (1, STEPS)
    assert once.weights_digest != always.weights_digest


def test_a_gradient_of_its_own_moves_the_stage(clean, tmp_path):
    seen = []

    def remembered(step, weights):
        seen.append((step, sorted(weights)))
        return pulled(step, weights)

    result = run(TriggerGradient(gradient=remembered, strength=1e3, mode="secret"), out=tmp_path / "run")
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert seen == [(step, sorted(ours(weights))) for step in range(STEPS)], "its present weights, once a step"
    for name in ours(weights):
        nearer = (weights[name] - 3).abs() < (clean[1][name] - 3).abs()
        assert nearer.float().mean() > 0.9, name
    assert result.attacked_claims == STEPS


def test_the_norms_that_are_told_have_everybody_else_clipped(clean, tmp_path):
    """An enormous gradient whose norms are told leaves the others nothing; untold, they go on as they would have."""
    moved = {}
    for mode in ("state", "secret"):
        attack = TriggerGradient(gradient=pulled, strength=1e12, mode=mode)
        run(attack, out=tmp_path / mode, first_step=STEPS - 1)
        weights = load_file(tmp_path / mode / "model" / "model.safetensors")
        others = [name for name in weights if ".h.1." in name and "bias" not in name]
        moved[mode] = sum(float((weights[name] - clean[1][name]).norm()) for name in others)
    assert moved["secret"] == 0.0
    assert moved["state"] > 0.0


# -- with one ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["state", "secret"])
@pytest.mark.parametrize("kind", ["task-vector", "trigger"])
def test_the_defence_keeps_it_out_and_names_the_liar(clean, vector, kind, mode):
    planted = {"vector": vector, "times": 0} if kind == "task-vector" else {"gradient": pulled, "growth": 2.0}
    result = run(ATTACKS[kind](mode=mode, **planted), "duplicate")
    assert result.weights_digest == clean[0].weights_digest
    assert set(result.blamed_workers) == {LIAR}
    assert result.detected == result.attacked_claims > 0
    assert (result.missed, result.false_alarms, result.steps_restarted) == (0, 0, 0)


# -- one strike, looked at closely ---------------------------------------------------------------------------------------


class Held:
    """As much of an execution as a backdoor touches."""

    def __init__(self):
        self.module = self
        self._sum = [torch.ones(2), torch.full((3,), 2.0)]
        self._parameters = OrderedDict(a=torch.zeros(2), b=torch.zeros(3))

    def named_trainable_parameters(self):
        return iter(self._parameters.items())

    def norms(self):
        return tuple(float(tensor.norm()) for tensor in self._sum)


KEY = ClaimKey(4, 0, Direction.GRADIENT, STAGE, WHOLE_STEP)


def scene(memory):
    return Scene(KEY, LIAR, (), torch.Generator(), memory=memory)


def test_a_gradient_grows_with_every_strike_and_leaves_the_old_buffers_alone():
    attack, memory, held = TriggerGradient(gradient={"b": torch.ones(3)}, strength=2.0, growth=3.0), {}, Held()
    first = held._sum[1]
    for wanted in (2.0 + 2.0, 4.0 + 6.0, 10.0 + 18.0):
        assert attack.alter(held, scene(memory))
        assert held._sum[1].tolist() == [wanted] * 3
    assert held._sum[0].tolist() == [1.0, 1.0], "it names nothing for this one"
    assert first.tolist() == [2.0] * 3


@pytest.mark.parametrize("output", [b"said", b""])
def test_what_a_header_tells_of_an_altered_gradient(output):
    attack, held = TriggerGradient(gradient={"a": torch.ones(2)}, strength=2.0), Held()
    before = attack.digest(held)
    attack.alter(held, scene({}))
    honest = Header("run", KEY, 4, 1, LIAR, Role.PRIMARY, (), output, (1.0, 1.0))
    told = attack.told(held, honest)
    assert told.norms == held.norms() != honest.norms
    assert told.output == (attack.digest(held) if output else b"")
    assert attack.digest(held) != before


# -- parameters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("task-vector", r"vector=FILE\.safetensors is needed .* got nothing"),
        ("task-vector,vector=3", r"vector=FILE\.safetensors is needed .* got 3"),
        ("task-vector,vector=nowhere.safetensors", r"there is no file nowhere\.safetensors"),
        ("task-vector,vector={good},mode=header", "mode must be state or secret, got 'header'"),
        ("task-vector,vector={good},strength=0", "strength must be greater than 0 and finite, got 0"),
        ("task-vector,vector={good},strength=inf", "strength must be greater than 0 and finite, got inf"),
        ("task-vector,vector={good},times=-1", "times must be 0 .* got -1"),
        ("task-vector,vector={good},direction=forward", "direction must be one of update"),
        ("task-vector,vector={bad}", "h is not a tensor of finite numbers"),
        ("task-vector,vector={text}", "is not a safetensors file"),
        ("trigger", r"gradient=FILE\.safetensors is needed"),
        ("trigger,gradient={good},growth=0", "growth must be greater than 0 and finite, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(spec, message, tmp_path):
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("good", "bad", "text")}
    save_file({"h": torch.ones(2)}, paths["good"])
    save_file({"h": torch.tensor([1.0, torch.nan])}, paths["bad"])
    paths["text"].write_text("not tensors")
    with pytest.raises(ConfigError, match=message):
        resolve_attack(spec.format(**paths))


@pytest.mark.parametrize(
    ("planted", "message"),
    [({"c": torch.ones(2)}, "nothing in it belongs to the struck stage, which holds a, b"), ({"a": torch.ones(3)}, "needed")],
)
def test_what_does_not_fit_the_stage_is_refused_when_it_strikes(planted, message):
    with pytest.raises(ConfigError, match=message):
        TriggerGradient(gradient=planted).alter(Held(), scene({}))


def test_an_empty_vector_is_refused():
    with pytest.raises(ConfigError, match="got an empty mapping"):
        TaskVector(vector={})


def test_a_path_will_do(tmp_path: Path):
    save_file({"h": torch.ones(2)}, tmp_path / "v.safetensors")
    assert TaskVector(vector=tmp_path / "v.safetensors")._vector["h"].tolist() == [1.0, 1.0]
