"""A tiny config of the same class as a given one: few layers, small width, every kind of layer kept, for the self-test."""

from __future__ import annotations

import copy
from typing import Any

_HEAD = 16
_SIZES = {
    "intermediate_size": 48,
    "ffn_dim": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "sliding_window": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
_VOCABULARY = 96


def shrink(config: Any, layers: int) -> Any:
    """A copy of `config` of at least `layers` layers (more where the kinds of layers need it) that fits into a megabyte.

    Per-layer lists (layer kinds, rotary switches) are cut to layers that show every kind.
    """
    small = copy.deepcopy(config)
    chosen = _layers_of_every_kind(config, layers)
    for key, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == config.num_hidden_layers and not key.startswith("_"):
            setattr(small, key, [value[index] for index in chosen])
    small.num_hidden_layers = len(chosen)
    _shrink_heads(small, config)
    for key, size in _SIZES.items():
        value = getattr(config, key, None)
        if isinstance(value, int) and not isinstance(value, bool):
            setattr(small, key, min(value, size))
    if isinstance(getattr(config, "max_position_embeddings", None), int):
        small.max_position_embeddings = 64  # more than the model itself may have, so that the test's tokens fit
    small.vocab_size = min(config.vocab_size, _VOCABULARY)
    for key in ("bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if hasattr(small, key):
            setattr(small, key, None)
    if getattr(small, "pad_token_id", None) is not None:
        small.pad_token_id = small.vocab_size - 1
    _shrink_rotary(small)
    return small


def _layers_of_every_kind(config: Any, layers: int) -> list[int]:
    """Indices of the first layer of every kind, filled up from the front, in order."""
    total = config.num_hidden_layers
    kinds = list(getattr(config, "layer_types", None) or ["same"] * total)
    first = {kind: kinds.index(kind) for kind in kinds}
    chosen = set(first.values())
    for index in range(total):
        if len(chosen) >= layers:
            break
        chosen.add(index)
    repeats = [total - 1] * max(layers - len(chosen), 0)
    return sorted(chosen) + repeats


def _shrink_heads(small: Any, config: Any) -> None:
    heads = config.num_attention_heads
    shared = heads // (getattr(config, "num_key_value_heads", None) or heads)
    small_heads = 4 if shared <= 4 else shared
    kept = small_heads // shared if small_heads % shared == 0 else 1
    small.num_attention_heads = small_heads
    if getattr(config, "num_key_value_heads", None) is not None:
        small.num_key_value_heads = kept
    if getattr(config, "head_dim", None) is not None:
        small.head_dim = _HEAD
    small.hidden_size = small_heads * _HEAD
    if getattr(config, "n_inner", None) is not None:
        small.n_inner = 48
    if hasattr(config, "word_embed_proj_dim"):
        narrow = config.word_embed_proj_dim != config.hidden_size
        small.word_embed_proj_dim = small.hidden_size // 2 if narrow else small.hidden_size


def _shrink_rotary(small: Any) -> None:
    """Lists with one factor for each rotary frequency fit the small head."""
    rotary = getattr(small, "rope_parameters", None)
    if isinstance(rotary, dict):
        for key, value in rotary.items():
            if isinstance(value, list) and key.endswith("_factor"):
                rotary[key] = value[: _HEAD // 2]
