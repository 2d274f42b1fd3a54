"""Small models described in a line, `gpt2:layers=6,width=64,heads=4`: from the words of a description to the library's.

    layers width heads         shape of the blocks
    hidden kv_heads            width of the MLP (default 4 times `width`; not BLOOM), shared heads (Llama, Qwen3)
    vocabulary positions       where they are left out: what the tokenizer and the data need
    tied                       head and embedding share a tensor (default: as usual for the kind)
    post_norm projection       OPT only: norms after the blocks, and a narrower embedding, as in OPT-350M

A word that the kind does not know is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.errors import ConfigError
from holdfast.toml import parse_spec

_INTEGERS = ("layers", "width", "heads", "kv_heads", "hidden", "vocabulary", "positions", "projection")
_FLAGS = ("tied", "post_norm")
_ONLY = {
    "kv_heads": ("llama", "qwen3"),
    "hidden": ("gpt2", "opt", "llama", "qwen3"),
    "projection": ("opt",),
    "post_norm": ("opt",),
}
_DEFAULTS = {"layers": 6, "width": 64, "heads": 4}
_NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def config_from_spec(text: str, vocabulary: int | None, positions: int | None) -> Any:
    """The library's config for a description; raises ConfigError naming the wrong word or value."""
    kind, given = parse_spec(text.rstrip(":"))
    if kind not in _KINDS:
        raise ConfigError(f"{text!r}: expected param=value after the kind, for example gpt2:layers=6,width=64,heads=4")
    known = [word for word in (*_INTEGERS, *_FLAGS) if kind in _ONLY.get(word, _KINDS)]
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"{text!r}: unknown parameter {key!r}; {kind} models from scratch take {', '.join(known)}")
        if key in _FLAGS and not isinstance(value, bool):
            raise ConfigError(f"{text!r}: {key} is true or false, got {value!r}")
        if key in _INTEGERS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{text!r}: {key} is a whole number of at least 1, got {value!r}")
    words = {"vocabulary": vocabulary or 512, "positions": positions or 256, **_DEFAULTS, **given}
    words.setdefault("hidden", 4 * words["width"])
    words.setdefault("kv_heads", words["heads"])
    if words["width"] % words["heads"] or words["heads"] % words["kv_heads"]:
        raise ConfigError(f"{text!r}: width must be a multiple of heads, and heads of kv_heads")
    return _KINDS[kind](words)


def _gpt2(words: dict[str, Any]) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=words["vocabulary"],
        n_positions=words["positions"],
        n_embd=words["width"],
        n_layer=words["layers"],
        n_head=words["heads"],
        n_inner=words["hidden"],
        tie_word_embeddings=words.get("tied", True),
        **_NO_TOKENS,
    )


def _opt(words: dict[str, Any]) -> Any:
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=words["vocabulary"],
        max_position_embeddings=words["positions"],
        hidden_size=words["width"],
        num_hidden_layers=words["layers"],
        num_attention_heads=words["heads"],
        ffn_dim=words["hidden"],
        word_embed_proj_dim=words.get("projection", words["width"]),
        do_layer_norm_before=not words.get("post_norm", False),
        tie_word_embeddings=words.get("tied", True),
        **_NO_TOKENS,
    )


def _bloom(words: dict[str, Any]) -> Any:
    from transformers import BloomConfig

    return BloomConfig(
        vocab_size=words["vocabulary"],
        hidden_size=words["width"],
        n_layer=words["layers"],
        n_head=words["heads"],
        tie_word_embeddings=words.get("tied", True),
        **_NO_TOKENS,
    )


def _rotary(words: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": words["vocabulary"],
        "max_position_embeddings": words["positions"],
        "hidden_size": words["width"],
        "num_hidden_layers": words["layers"],
        "num_attention_heads": words["heads"],
        "num_key_value_heads": words["kv_heads"],
        "head_dim": words["width"] // words["heads"],
        "intermediate_size": words["hidden"],
        "tie_word_embeddings": words.get("tied", False),
        **_NO_TOKENS,
    }


def _llama(words: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_rotary(words))


def _qwen3(words: dict[str, Any]) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**_rotary(words))


_KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "gpt2": _gpt2,
    "opt": _opt,
    "bloom": _bloom,
    "llama": _llama,
    "qwen3": _qwen3,
}
SCRATCH_KINDS = tuple(_KINDS)
