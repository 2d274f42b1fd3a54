"""LoRA in stages equals LoRA on the whole model, starts the same whatever the cut, and saves as a normal PEFT directory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from holdfast.errors import CheckpointError, MissingExtra, PartitionError
from holdfast.partition import (
    Lora,
    Plan,
    StageModule,
    describe,
    initial_weights,
    is_adapter,
    make_plan,
    save_adapter,
    save_model,
    whole_model,
)

pytest.importorskip("peft", reason="the extra 'lora' is not installed")

NAMES = ["gpt2:layers=3,width=32", "llama:layers=3,width=32,kv_heads=2", "opt:layers=3,width=32", "bloom:layers=3,width=32"]


def built(name: str, stages: int, lora: Lora, dtype: torch.dtype = torch.float32) -> tuple[Plan, list[StageModule]]:
    """Stages with adapters that are not at their neutral start: B is not zero."""
    source = describe(name, vocabulary=64)
    plan = make_plan(source.config, stages, lora=lora)
    modules = []
    for stage in range(stages):
        module = StageModule(source.config, plan, stage, dtype=dtype)
        weights = initial_weights(source, plan, stage, 0, dtype)
        module.load_weights({key: tensor + 0.01 if ".lora_B" in key else tensor for key, tensor in weights.items()})
        modules.append(module)
    tied = modules[-1].tied_parameter()
    if tied is not None:
        assert plan.tied is not None
        modules[-1].load_tied(modules[0].weights()[plan.tied[1]])
    return plan, modules


def united(modules: list[StageModule]) -> dict[str, Tensor]:
    return {name: tensor for module in modules for name, tensor in module.weights().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_split_is_whole_with_adapters(tiny: ModuleType, name: str, dtype: torch.dtype) -> None:
    lora = Lora(rank=2, alpha=4)
    plan, modules = built(name, 3, lora, dtype)
    whole = whole_model(describe(name, vocabulary=64).config, united(modules), lora)
    tokens = torch.arange(10)[None]
    hidden, inputs, outputs = tokens, [], []
    for module in modules:
        inputs.append(hidden.detach().requires_grad_() if outputs else tokens)
        hidden = module(inputs[-1])
        outputs.append(hidden)
    logits = whole(input_ids=tokens, use_cache=False).logits
    assert tiny.bits(hidden) == tiny.bits(logits)
    gradient = torch.ones_like(logits)
    logits.backward(gradient)
    for entered, left in zip(reversed(inputs), reversed(outputs), strict=True):
        left.backward(gradient)
        gradient = entered.grad
    expected = {parameter_name: parameter.grad for parameter_name, parameter in whole.named_parameters()}
    trained = 0
    for stage, module in enumerate(modules):
        assert [key for key, _ in module.named_trainable_parameters()] == list(plan.trainable_of(stage))
        for key, parameter in module.named_trainable_parameters():
            inner = key.removeprefix("base_model.model.").replace(".weight", ".default.weight")
            assert tiny.bits(parameter.grad) == tiny.bits(expected[inner]), key
            trained += 1
        frozen = [parameter for key, parameter in module.named_owned_parameters() if not is_adapter(key)]
        assert frozen
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert trained == len(plan.trainable) > 0


def test_adapters_start_the_same_whatever_the_cut(tiny: ModuleType) -> None:
    source = describe(NAMES[1], vocabulary=64)
    cuts = []
    for stages in (1, 2, 3):
        plan = make_plan(source.config, stages, lora=Lora(2))
        cuts.append({k: v for stage in range(stages) for k, v in initial_weights(source, plan, stage, 7).items()})
    for other in cuts[1:]:
        assert cuts[0].keys() == other.keys()
        assert all(tiny.bits(cuts[0][name]) == tiny.bits(other[name]) for name in other)
    adapters = {name: tensor for name, tensor in cuts[0].items() if is_adapter(name)}
    assert all(bool(tensor.any()) == (".lora_A" in name) for name, tensor in adapters.items())
    assert len({tiny.bits(tensor) for name, tensor in adapters.items() if ".lora_A" in name}) == len(adapters) // 2
    assert set(adapters) == set(make_plan(source.config, 1, lora=Lora(2)).trainable)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own call
@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_directory_is_a_normal_one(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plan, modules = built(name, 3, Lora(2))
    config = describe(name, vocabulary=64).config
    weights = united(modules)
    assert plan.lora is not None
    save_model(tmp_path / "base", config, weights)
    save_adapter(tmp_path / "adapter", plan.lora, weights, base=str(tmp_path / "base"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    opened = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = torch.arange(10)[None]
    expected = whole_model(config, weights, plan.lora)(input_ids=tokens).logits
    assert tiny.bits(opened(input_ids=tokens).logits) == tiny.bits(expected)
    with opened.disable_adapter():
        assert tiny.bits(opened(input_ids=tokens).logits) != tiny.bits(expected)


def test_targets_can_be_named() -> None:
    config = describe(NAMES[1], vocabulary=64).config
    plan = make_plan(config, 3, lora=Lora(2, targets=("up_proj", "down_proj")))
    assert {name.split(".")[-3] for name in plan.trainable} == {"up_proj", "down_proj"}
    with pytest.raises(PartitionError, match="LoRA cannot adapt no_such_matrix"):
        make_plan(config, 3, lora=Lora(2, targets=("no_such_matrix",)))


def test_there_must_be_adapters_to_save(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter tensors"):
        save_adapter(tmp_path / "adapter", Lora(2), {"lm_head.weight": torch.zeros(1)}, base="base")
    assert not (tmp_path / "adapter").exists()


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"pip install 'holdfast\[lora\]'"):
        make_plan(describe(NAMES[1]).config, 3, lora=Lora(2))
