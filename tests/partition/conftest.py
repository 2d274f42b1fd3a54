"""Tiny configs of every proven family, and a whole model with random weights to compare a split against."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from holdfast.partition.module import StageModule
from holdfast.partition.plan import Plan, make_plan
from holdfast.partition.skeleton import from_config, prepare_config

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED: dict[str, Any] = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}
GPT2: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 32}
NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
OPT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    **NO_TOKENS,
}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {**GPT2, **NO_TOKENS}),
    "gpt2-untied": ("GPT2Config", {**GPT2, **NO_TOKENS, "tie_word_embeddings": False}),
    "opt": ("OPTConfig", {**OPT, "word_embed_proj_dim": 32}),
    "opt-350m": ("OPTConfig", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "bloom": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 6, "n_head": 4, **NO_TOKENS}),
    "llama": ("LlamaConfig", GROUPED),
    "llama-tied": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", GROUPED),
    "qwen3-tied": ("Qwen3Config", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {**SHAPE, "num_key_value_heads": 2}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 4}),
    "gemma": ("GemmaConfig", GROUPED),
    "gemma2": ("Gemma2Config", {**GROUPED, "sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "sliding_window": 4}),
    "phi": ("PhiConfig", SHAPE),
    "gpt_neox": ("GPTNeoXConfig", SHAPE),
    "olmo2": ("Olmo2Config", SHAPE),
    "smollm3": ("SmolLM3Config", {**SHAPE, "num_key_value_heads": 2}),
    "granite": ("GraniteConfig", {**SHAPE, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "olmo": ("OlmoConfig", SHAPE),
    "olmo3": ("Olmo3Config", {**SHAPE, "sliding_window": 4}),
    "phi3": ("Phi3Config", SHAPE),
    "cohere2": ("Cohere2Config", {**SHAPE, "num_key_value_heads": 2, "sliding_window": 4}),
    "starcoder2": ("Starcoder2Config", {**SHAPE, "num_key_value_heads": 2}),
    "mixtral": ("MixtralConfig", {**SHAPE, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", {**GROUPED, **MOE}),
    "gpt_oss": ("GptOssConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}),
}


def config_of(name: str, **changes: Any) -> Any:
    kind, arguments = CONFIGS[name]
    return prepare_config(getattr(transformers, kind)(**{**arguments, **changes}))


def random_whole(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The library's own model, built the ordinary way, every parameter random (norms and biases too)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = from_config(config, dtype)
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter.add_(torch.randn(parameter.shape).to(dtype), alpha=0.05)
    return whole


def split(config: Any, whole: Any, stages: int, dtype: torch.dtype = torch.float32) -> tuple[Plan, list[StageModule]]:
    plan = make_plan(config, stages)
    weights = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    modules = []
    for stage, names in enumerate(plan.stage_parameters):
        module = StageModule(config, plan, stage, dtype=dtype)
        module.load_weights({name: weights[name] for name in names})
        if module.tied_parameter() is not None:
            assert plan.tied is not None
            module.load_tied(weights[plan.tied[1]])
        modules.append(module)
    return plan, modules


def bits(tensor: Tensor | None) -> bytes | None:
    """Equality of tensors is equality of bytes."""
    return None if tensor is None else tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """This module: tests are collected without being importable from one another."""
    return sys.modules[__name__]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
