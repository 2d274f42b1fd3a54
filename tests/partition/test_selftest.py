"""The self-test passes for every proven family at any size, and refuses a split that is broken in any of several ways."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from holdfast.errors import PartitionError, SelfTestFailed
from holdfast.partition import describe, families, module, selftest
from holdfast.partition.memory import Batch
from holdfast.partition.overview import model_overview, supported_families
from holdfast.partition.selftest import self_test
from holdfast.partition.shrink import shrink

QUICK = ("gpt2", "opt-350m", "bloom", "llama", "qwen3-tied")
SLOW = (
    *("opt", "qwen2", "mistral", "gemma", "gemma2", "gemma3", "phi", "gpt_neox"),
    *("olmo", "olmo2", "olmo3", "smollm3", "granite", "phi3", "cohere2", "starcoder2", "mixtral", "qwen3_moe", "gpt_oss"),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_proven_families_pass(tiny: ModuleType, name: str, dtype: torch.dtype) -> None:
    report = self_test(tiny.config_of(name), dtype=dtype)
    assert report.proven
    assert report.tensors > 20
    assert "bit-equal" in str(report)


def test_every_proven_type_is_among_the_tiny_models(tiny: ModuleType) -> None:
    assert {tiny.config_of(name).model_type for name in tiny.CONFIGS} == set(families.TESTED)


@pytest.mark.parametrize("kind", ["LlamaConfig", "Gemma3TextConfig", "SmolLM3Config", "GPT2Config"])
def test_a_config_of_full_size_is_tested_small(kind: str) -> None:
    config = getattr(transformers, kind)()
    small = shrink(config, 3)
    assert small.hidden_size <= 128
    assert small.vocab_size <= 96
    assert set(getattr(small, "layer_types", None) or []) == set(getattr(config, "layer_types", None) or [])
    assert config.num_hidden_layers > small.num_hidden_layers >= 3
    assert self_test(config).layers >= 3


def test_a_model_of_two_layers_is_tested_in_more_stages() -> None:
    assert self_test(describe("gpt2:layers=2"), stages=3).layers == 3


def _adds_positions_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.NoPositions, "forward", lambda *_args, **_kwargs: torch.tensor(1e-3))


def _forgets_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier stages would apply the final norm too; the plan still says that the last stage owns it."""
    row = dataclasses.replace(families.GPT2, identities=("drop", "ln_f"), after=())
    monkeypatch.setitem(families.ROWS, "gpt2", row)


def _drops_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module._prune

    def broken(model: Any, family: Any, plan: Any, stage: int) -> None:
        whole(model, family, plan, stage)
        if stage == 1:
            block = model.get_submodule(family.root).get_submodule(family.layers)[plan.layers[1][0]]
            block.forward = lambda hidden, *_args, **_kwargs: hidden

    monkeypatch.setattr(module, "_prune", broken)


@pytest.mark.parametrize("breakage", [_adds_positions_again, _drops_a_layer])
def test_a_broken_split_is_refused_at_its_first_stage(monkeypatch: pytest.MonkeyPatch, breakage: Any) -> None:
    breakage(monkeypatch)
    with pytest.raises(SelfTestFailed, match="first difference at stage 1, output"):
        self_test(describe("gpt2:"))


def test_a_wrong_row_of_the_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _forgets_the_norm(monkeypatch)
    with pytest.raises((SelfTestFailed, PartitionError)):
        self_test(describe("gpt2:"))


def test_a_forgotten_multiplier_is_refused(monkeypatch: pytest.MonkeyPatch, tiny: ModuleType) -> None:
    """Granite multiplies its embeddings; a table without that row must not pass."""
    monkeypatch.setattr(families, "_MULTIPLIERS", {})
    with pytest.raises(SelfTestFailed, match=r"granite model in stages.* stage 1, output"):
        self_test(tiny.config_of("granite"))


def test_a_wrong_gradient_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    split = selftest._run_split

    def broken(*arguments: Any) -> Any:
        trace = split(*arguments)
        name = "transformer.h.1.mlp.c_fc.weight"
        return dataclasses.replace(trace, weight_gradients={**trace.weight_gradients, name: trace.weight_gradients[name] * -1})

    monkeypatch.setattr(selftest, "_run_split", broken)
    with pytest.raises(SelfTestFailed, match=r"stage 1, gradient of transformer\.h\.1\.mlp\.c_fc\.weight"):
        self_test(describe("gpt2:"))


def test_a_self_test_that_cannot_run_is_not_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(selftest, "_run_whole", broken)
    with pytest.raises(SelfTestFailed, match=r"could not run .*no such kernel"):
        self_test(describe("gpt2:"))


def test_an_unknown_family_is_refused_before_the_test() -> None:
    with pytest.raises(PartitionError, match="'mamba' cannot be cut"):
        self_test(transformers.MambaConfig())


def test_the_overview_has_a_row_for_each_stage() -> None:
    overview = model_overview(describe("gpt2:layers=6,width=32"), 3, Batch())
    assert [row.layers[0] for row in overview.rows] == [0, *(row.layers[1] for row in overview.rows[:-1])]
    assert overview.rows[-1].layers[1] == 6
    assert sum(row.parameters for row in overview.rows) == overview.parameters
    assert abs(sum(row.cost_share for row in overview.rows) - 1) < 1e-9
    assert overview.rows[2].memory.total_bytes > 0
    assert overview.self_test.model_type == "gpt2"


def test_supported_families_say_where_they_are_cut() -> None:
    rows = {row.model_type: row for row in supported_families()}
    assert set(rows) == set(families.TESTED)
    assert rows["gpt2"].before == ("wte", "wpe", "drop")
    assert rows["llama"].after == ("norm",)
