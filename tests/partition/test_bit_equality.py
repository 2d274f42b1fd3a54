"""Split and whole agree to the bit: logits, the gradient at every cut and every weight gradient, for every proven family."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

QUICK = ("gpt2", "opt", "opt-350m", "bloom", "llama", "llama-tied", "qwen3", "qwen3-tied", "granite")
SLOW = ("gpt2-untied", "qwen2", "mistral", "gemma", "gemma2", "gemma3", "phi", "gpt_neox", "olmo2", "smollm3")
SLOWER = ("olmo", "olmo3", "phi3", "cohere2", "starcoder2", "mixtral", "qwen3_moe", "gpt_oss")
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in (*SLOW, *SLOWER))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stages", [2, 3, 6])
@pytest.mark.parametrize("name", FAMILIES)
def test_split_is_whole(tiny: ModuleType, name: str, stages: int, dtype: torch.dtype) -> None:
    config = tiny.config_of(name)
    whole = tiny.random_whole(config, dtype)
    plan, modules = tiny.split(config, whole, stages, dtype)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, config.vocab_size, (2, 9), generator=generator)

    logits = whole(input_ids=tokens, use_cache=False).logits
    inputs, outputs = [], []
    hidden = tokens
    for stage, module in enumerate(modules):
        inputs.append(hidden if stage == 0 else hidden.detach().requires_grad_())
        hidden = module(inputs[-1])
        outputs.append(hidden)
    assert tiny.bits(hidden) == tiny.bits(logits)

    gradient = torch.randn(logits.shape, generator=generator).to(dtype)
    logits.backward(gradient)
    for stage in reversed(range(stages)):
        outputs[stage].backward(gradient)
        gradient = inputs[stage].grad
    expected = dict(whole.named_parameters())
    for stage, module in enumerate(modules):
        for parameter_name, parameter in module.named_owned_parameters():
            found = parameter.grad
            if stage == 0 and plan.tied is not None and parameter_name == plan.tied[1]:
                head = modules[-1].tied_parameter()
                assert head is not None
                found = head.grad + found
            assert tiny.bits(found) == tiny.bits(expected[parameter_name].grad), (stage, parameter_name)
    owned = [parameter_name for module in modules for parameter_name, _ in module.named_owned_parameters()]
    assert sorted(owned) == sorted(plan.model_order)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_padding_mask_travels_beside_the_hidden_states(tiny: ModuleType, name: str) -> None:
    config = tiny.config_of(name)
    whole = tiny.random_whole(config)
    _, modules = tiny.split(config, whole, 3)
    tokens = torch.randint(0, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :4] = 0
    hidden = tokens
    for module in modules:
        hidden = module(hidden, mask)
    assert tiny.bits(hidden) == tiny.bits(whole(input_ids=tokens, attention_mask=mask, use_cache=False).logits)


def test_minus_zero_survives_a_stage_boundary(tiny: ModuleType) -> None:
    """Adding +0.0 for absent positions would turn -0.0 into +0.0: other bytes, and a false alarm."""
    config = tiny.config_of("gpt2")
    _, modules = tiny.split(config, tiny.random_whole(config), 3)
    root = modules[1].model.transformer
    hidden = torch.full((1, 4, 32), -0.0)
    assert tiny.bits(hidden + root.wpe(torch.arange(4)[None])) == tiny.bits(hidden)
