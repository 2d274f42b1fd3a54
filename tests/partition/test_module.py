"""A stage takes exactly its own weights, keeps nobody else's, and never disturbs the global random state."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from holdfast.errors import CheckpointError, PartitionError
from holdfast.partition import StageModule, make_plan


def test_a_stage_holds_its_own_parameters_and_no_others(tiny: ModuleType) -> None:
    config = tiny.config_of("gpt2")
    plan = make_plan(config, 3)
    for stage in range(3):
        module = StageModule(config, plan, stage)
        held = sum(parameter.numel() for parameter in module.parameters())
        tied = module.tied_parameter()
        assert held == plan.parameter_counts[stage] + (tied.numel() if tied is not None else 0)
        assert [name for name, _ in module.named_owned_parameters()] == list(plan.stage_parameters[stage])
        assert (tied is not None) == (stage == 2)


def test_one_stage_is_the_whole_model(tiny: ModuleType) -> None:
    config = tiny.config_of("opt-350m")
    whole = tiny.random_whole(config)
    _, (module,) = tiny.split(config, whole, 1)
    tokens = torch.arange(8)[None]
    assert tiny.bits(module(tokens)) == tiny.bits(whole(input_ids=tokens, use_cache=False).logits)
    assert module.tied_parameter() is None
    assert module.model.lm_head.weight is module.model.model.decoder.embed_tokens.weight


def test_weights_that_do_not_fit_change_nothing(tiny: ModuleType) -> None:
    config = tiny.config_of("llama")
    _, modules = tiny.split(config, tiny.random_whole(config), 3)
    module = modules[1]
    before = {name: tensor.clone() for name, tensor in module.weights().items()}
    name = next(iter(before))
    spoiled = {
        "lack 1 tensors": {other: tensor + 1 for other, tensor in before.items() if other != name},
        "hold unknown 1 tensors: made.up": {**before, "made.up": torch.zeros(1)},
        r"got \[3\] of torch.float32, needed": {**before, name: torch.zeros(3)},
        "got .* of torch.float64, needed": {other: tensor.double() for other, tensor in before.items()},
    }
    for message, weights in spoiled.items():
        with pytest.raises(CheckpointError, match=message):
            module.load_weights(weights)
    assert all(tiny.bits(tensor) == tiny.bits(before[other]) for other, tensor in module.weights().items())


def test_a_tied_head_is_set_from_stage_0(tiny: ModuleType) -> None:
    config = tiny.config_of("gpt2")
    plan, modules = tiny.split(config, tiny.random_whole(config), 3)
    fresh = modules[0].weights()[plan.tied[1]] * 2
    modules[2].load_tied(fresh)
    assert tiny.bits(modules[2].tied_parameter()) == tiny.bits(fresh)
    assert modules[2].tied_parameter().data_ptr() != fresh.data_ptr()
    with pytest.raises(CheckpointError, match="stage 1 has no tied head"):
        modules[1].load_tied(fresh)
    with pytest.raises(CheckpointError, match="tied head of stage 2: got"):
        modules[2].load_tied(fresh[:1])


def test_building_a_stage_leaves_the_random_state_alone(tiny: ModuleType) -> None:
    config = tiny.config_of("gemma3")
    plan = make_plan(config, 2)
    before = torch.get_rng_state()
    StageModule(config, plan, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_forgotten_weights_show_as_nan(tiny: ModuleType) -> None:
    config = tiny.config_of("llama")
    module = StageModule(config, make_plan(config, 2), 0)
    assert torch.isnan(module(torch.arange(4)[None])).all()


@pytest.mark.parametrize("stage", [-1, 2])
def test_stages_are_numbered_from_0(tiny: ModuleType, stage: int) -> None:
    config = tiny.config_of("llama")
    with pytest.raises(PartitionError, match="numbered 0 to 1"):
        StageModule(config, make_plan(config, 2), stage)


def test_a_plan_of_another_model_is_refused(tiny: ModuleType) -> None:
    plan = make_plan(tiny.config_of("llama"), 2)
    with pytest.raises(PartitionError, match="does not fit its plan"):
        StageModule(tiny.config_of("qwen3"), plan, 0)
