"""Models from scratch, from directories and from the hub's cache; hostile and broken configs get one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import CheckpointError, ConfigError, HoldfastError, PartitionError, SetupError
from holdfast.partition import describe, hub, make_plan
from holdfast.partition.scratch import SCRATCH_KINDS

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def directory(tmp_path: Path, config: Any) -> str:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize("kind", SCRATCH_KINDS)
def test_a_description_says_the_shape(kind: str) -> None:
    source = describe(f"{kind}:layers=3,width=48,heads=4,tied=false", vocabulary=300, positions=40)
    assert source.from_scratch
    assert source.model_type == kind
    assert (source.config.num_hidden_layers, source.config.hidden_size, source.config.vocab_size) == (3, 48, 300)
    assert source.positions == (None if kind == "bloom" else 40)
    plan = make_plan(source.config, 3)
    assert plan.tied is None
    assert plan.width == 48


def test_defaults_and_needs_fill_the_gaps() -> None:
    source = describe("gpt2:", vocabulary=777, positions=99)
    assert (source.config.n_layer, source.config.vocab_size, source.positions) == (6, 777, 99)
    assert make_plan(source.config, 2).tied is not None
    assert make_plan(describe("qwen3:kv_heads=2,tied=true").config, 2).tied is not None
    assert describe("opt:post_norm=true,projection=32").config.word_embed_proj_dim == 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2:depth=3", "unknown parameter 'depth'; gpt2 models from scratch take layers"),
        ("gpt2:kv_heads=2", "unknown parameter 'kv_heads'"),
        ("llama:post_norm=true", "unknown parameter 'post_norm'"),
        ("gpt2:layers=0", "layers is a whole number of at least 1, got 0"),
        ("gpt2:layers=2.5", "layers is a whole number"),
        ("gpt2:layers=true", "layers is a whole number"),
        ("llama:tied=1", "tied is true or false"),
        ("llama:width=30,heads=4", "width must be a multiple of heads"),
        ("llama:heads=4,kv_heads=3", "heads of kv_heads"),
        ("gpt2:layers", "expected param=value"),
        ("rwkv:layers=3", "no model 'rwkv:layers=3'"),
        ("./nowhere/at/all", "there is no such directory"),
        ("../../nowhere", "there is no such directory"),
    ],
)
def test_wrong_descriptions(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(name)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="is a file; give the directory"):
        describe(str(path))


def test_what_the_tokenizer_and_the_data_need() -> None:
    with pytest.raises(ConfigError, match="vocabulary of 64 tokens, but the tokenizer has 512"):
        describe("gpt2:vocabulary=64", vocabulary=512)
    with pytest.raises(ConfigError, match="sequences of 128 tokens are longer than the 64 positions"):
        describe("gpt2:positions=64", positions=128)
    assert describe("bloom:positions=64", positions=128).positions is None


def test_a_directory(tmp_path: Path) -> None:
    source = describe(directory(tmp_path, LLAMA), dropout=0.0)
    assert not source.from_scratch
    assert make_plan(source.config, 3).layers == ((0, 1), (1, 2), (2, 3))
    with pytest.raises(ConfigError, match="longer than the 32 positions"):
        describe(str(tmp_path), positions=33)


def test_a_name_on_the_hub_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SetupError, match=r"cannot fetch config\.json of 'some-lab/some-model'.* not in the cache"):
        describe("some-lab/some-model")


def test_a_name_in_the_hubs_cache_is_pinned_to_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--lab--tiny" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    directory(snapshot, LLAMA)
    asked = []

    def cached_file(name: str, filename: str, *, revision: str | None = None, **_: Any) -> str | None:
        asked.append((name, filename, revision))
        path = snapshot / filename
        return str(path) if path.exists() else None

    monkeypatch.setattr("transformers.utils.cached_file", cached_file)
    monkeypatch.setattr(hub, "ask", lambda _name: (hub.Hub.HAS, ""))
    source = describe("lab/tiny")
    assert source.files is not None
    assert source.files.find("model.safetensors") is None
    assert asked == [
        ("lab/tiny", "config.json", None),
        ("lab/tiny", "config.json", commit),
        ("lab/tiny", "model.safetensors", commit),
    ]


HOSTILE: list[tuple[Any, type[HoldfastError], str]] = [
    ({**LLAMA, "_attn_implementation_internal": "someone/kernel"}, CheckpointError, "begins with an underscore"),
    ({**LLAMA, "_attn_implementation": "someone/kernel"}, CheckpointError, "begins with an underscore"),
    ({**LLAMA, "_name_or_path": {"a": 1}}, CheckpointError, "begins with an underscore"),
    ({**LLAMA, "rope_parameters": {"_run": "x", "rope_type": "default"}}, CheckpointError, "begins with an underscore"),
    ({**LLAMA, "model_type": "stranger", "auto_map": {"AutoConfig": "code.Config"}}, PartitionError, "code .* is never run"),
    ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, PartitionError, "quantised"),
    ({**LLAMA, "hidden_size": "wide"}, CheckpointError, "not a valid config"),
    ({**LLAMA, "model_type": 3}, CheckpointError, "names no model_type"),
    ([], CheckpointError, "names no model_type"),
    ("{", CheckpointError, "is not valid JSON"),
    ("[" * 100_000, CheckpointError, "is not valid JSON"),
]


@pytest.mark.parametrize(("config", "error", "message"), HOSTILE)
def test_hostile_configs(tmp_path: Path, config: Any, error: type[HoldfastError], message: str) -> None:
    with pytest.raises(error, match=message):
        describe(directory(tmp_path, config))


def test_keys_that_choose_code_are_dropped(tmp_path: Path) -> None:
    chosen = {"attn_implementation": "someone/kernel", "auto_map": {"AutoModel": "code.Model"}, "_name_or_path": "x/y"}
    config = describe(directory(tmp_path, {**LLAMA, **chosen})).config
    assert config._attn_implementation == "sdpa"
    assert not hasattr(config, "auto_map")


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -1},
        {"hidden_size": -32},
        {"vocab_size": -1},
        {"num_attention_heads": 0},
    ],
    ids=str,
)
def test_absurd_shapes(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises((PartitionError, CheckpointError)):
        make_plan(describe(directory(tmp_path, {**LLAMA, **change})).config, 2)


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        describe(str(tmp_path))
