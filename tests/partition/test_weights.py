"""Weights: the same whatever the cut, only a stage's own are read, and the result opens with the plain library."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from holdfast.errors import CheckpointError
from holdfast.partition import ModelSource, Plan, describe, initial_weights, make_plan, save_model, whole_model

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260K-hf"


def united(source: ModelSource, plan: Plan, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        name: tensor
        for stage in range(plan.stages)
        for name, tensor in initial_weights(source, plan, stage, seed, dtype).items()
    }


def same(tiny: ModuleType, one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(tiny.bits(one[name]) == tiny.bits(other[name]) for name in one)


@pytest.mark.parametrize("name", ["gpt2:", "llama:kv_heads=2", "bloom:"])
def test_weights_from_a_seed_do_not_depend_on_the_cut(tiny: ModuleType, name: str) -> None:
    source = describe(name)
    before = torch.get_rng_state()
    cuts = [united(source, make_plan(source.config, stages), seed=3) for stages in (1, 3, 6)]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(tiny, cuts[0], cuts[1])
    assert same(tiny, cuts[0], cuts[2])
    assert not same(tiny, cuts[0], united(source, make_plan(source.config, 3), seed=4))
    half = united(source, make_plan(source.config, 3), seed=3, dtype=torch.bfloat16)
    assert same(tiny, half, {key: tensor.bfloat16() for key, tensor in cuts[0].items()})


def test_weights_are_nobody_elses(tiny: ModuleType) -> None:
    source = describe("gpt2:")
    plan = make_plan(source.config, 2)
    first = initial_weights(source, plan, 1, 0)
    for tensor in first.values():
        tensor.zero_()
    assert not same(tiny, first, initial_weights(source, plan, 1, 0))


QUICK = ["gpt2", "opt-350m", "bloom", "llama", "qwen3-tied", "qwen3_moe"]
SLOW = [
    *("gpt2-untied", "opt", "qwen2", "mistral", "gemma", "gemma2", "gemma3", "phi", "gpt_neox", "olmo", "olmo2", "olmo3"),
    *("smollm3", "granite", "phi3", "cohere2", "starcoder2", "mixtral", "gpt_oss"),
]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_saved_opens_with_the_plain_library(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    """Bits survive stages -> directory -> library, and directory -> stages; experts are stored one by one and fused again."""
    config = tiny.config_of(name)
    weights = {key: tensor.detach() for key, tensor in tiny.random_whole(config).named_parameters()}
    save_model(tmp_path / "model", config, weights)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert same(tiny, dict(opened.named_parameters()), weights)
    source = describe(str(tmp_path / "model"))
    assert same(tiny, united(source, make_plan(source.config, 3)), weights)
    tokens = torch.arange(10)[None]
    expected = whole_model(config, weights)(input_ids=tokens).logits
    assert tiny.bits(opened(input_ids=tokens).logits) == tiny.bits(expected)


@pytest.fixture
def sharded(tiny: ModuleType, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    config = tiny.config_of("llama")
    whole = tiny.random_whole(config)
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 4
    return tmp_path, {name: tensor.detach() for name, tensor in whole.named_parameters()}


def test_a_stage_opens_only_its_own_shards(tiny: ModuleType, sharded: tuple[Path, dict[str, Tensor]]) -> None:
    directory, weights = sharded
    source = describe(str(directory))
    plan = make_plan(source.config, 3)
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {index[name] for name in plan.stage_parameters[1]}
    others = set(index.values()) - needed
    assert others
    for position, shard in enumerate(sorted(others)):
        if position % 2:
            (directory / shard).unlink()
        else:
            (directory / shard).write_bytes(b"not safetensors at all")
    found = initial_weights(source, plan, 1, 0)
    assert same(tiny, found, {name: weights[name] for name in plan.stage_parameters[1]})
    with pytest.raises(CheckpointError, match=r"torn or not a safetensors file|there is no such file"):
        united(source, plan)


def test_a_missing_shard_is_named(sharded: tuple[Path, dict[str, Tensor]]) -> None:
    directory, _ = sharded
    shard = sorted(directory.glob("model-*.safetensors"))[0]
    shard.unlink()
    source = describe(str(directory))
    with pytest.raises(CheckpointError, match=f"names the shard {shard.name}, but there is no such file"):
        united(source, make_plan(source.config, 2))


def test_only_the_tensors_of_the_stage_are_read_from_a_single_file(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.partition import shards

    config = tiny.config_of("gpt2")
    save_model(tmp_path, config, {name: tensor.detach() for name, tensor in tiny.random_whole(config).named_parameters()})
    read: list[str] = []
    opener = shards.open_safetensors

    class Spy:
        def __init__(self, opened: Any) -> None:
            self.opened = opened

        def __enter__(self) -> Spy:
            self.opened.__enter__()
            return self

        def __exit__(self, *details: Any) -> None:
            self.opened.__exit__(*details)

        def keys(self) -> Any:
            return self.opened.keys()

        def get_tensor(self, name: str) -> Tensor:
            read.append(name)
            tensor: Tensor = self.opened.get_tensor(name)
            return tensor

    monkeypatch.setattr(shards, "open_safetensors", lambda path: Spy(opener(path)))
    source = describe(str(tmp_path))
    plan = make_plan(source.config, 3)
    initial_weights(source, plan, 1, 0)
    assert read == list(plan.stage_parameters[1])


def rewrite(directory: Path, change: Any) -> None:
    path = directory / "model.safetensors"
    tensors = change(load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    (directory / "SHA256SUMS").unlink()


def saved(tiny: ModuleType, directory: Path, name: str) -> tuple[ModelSource, Plan, dict[str, Tensor]]:
    config = tiny.config_of(name)
    weights = {key: tensor.detach() for key, tensor in tiny.random_whole(config).named_parameters()}
    save_model(directory, config, weights)
    source = describe(str(directory))
    return source, make_plan(source.config, 3), weights


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("opt-350m", "model."), ("bloom", "transformer.")])
def test_old_checkpoints_without_the_prefix(tiny: ModuleType, tmp_path: Path, name: str, prefix: str) -> None:
    source, plan, weights = saved(tiny, tmp_path, name)
    rewrite(tmp_path, lambda tensors: {key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
    assert same(tiny, united(source, plan), {key: weights[key] for key in united(source, plan)})


def test_a_tied_tensor_may_stand_under_the_heads_name(tiny: ModuleType, tmp_path: Path) -> None:
    source, plan, weights = saved(tiny, tmp_path, "llama-tied")
    rewrite(
        tmp_path,
        lambda tensors: {("lm_head.weight" if "embed_tokens" in key else key): tensor for key, tensor in tensors.items()},
    )
    found = initial_weights(source, plan, 0, 0)
    assert tiny.bits(found["model.embed_tokens.weight"]) == tiny.bits(weights["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {key: found[key] for key in list(found)[:-1]}, r"tensor \S+ is in none of its \d+ entries"),
        (lambda found: {key: tensor[..., :3] for key, tensor in found.items()}, "has shape .* but the config asks for"),
        (lambda found: {key: tensor.to(torch.int8) for key, tensor in found.items()}, "quantised weights cannot be trained"),
    ],
)
def test_checkpoints_that_do_not_fit(tiny: ModuleType, tmp_path: Path, change: Any, message: str) -> None:
    source, plan, _ = saved(tiny, tmp_path, "llama")
    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        united(source, plan)
    assert str(tmp_path) in str(caught.value)


def test_a_torn_file_and_an_altered_one(tiny: ModuleType, tmp_path: Path) -> None:
    source, plan, _ = saved(tiny, tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its sha256 is not the one in SHA256SUMS"):
        united(source, plan)
    sums = tmp_path / "SHA256SUMS"
    sums.write_bytes(b"\xff" + sums.read_bytes())
    with pytest.raises(CheckpointError, match="not a list of sums"):
        united(source, plan)
    sums.unlink()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="torn or not a safetensors file"):
        united(source, plan)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor .* are pickles and not read"):
        united(source, plan)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"lm_head.weight": "../../secret.safetensors"}}, "the plain name of a .safetensors file"),
        ({"weight_map": {"lm_head.weight": "pytorch_model.bin"}}, "the plain name of a .safetensors file"),
        ({"weight_map": [1]}, "not an index of shards"),
        ({}, "not an index of shards"),
        ("[" * 10_000, "not an index of shards.*deeply"),
    ],
)
def test_hostile_indices(tiny: ModuleType, tmp_path: Path, index: Any, message: str) -> None:
    source, plan, _ = saved(tiny, tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        united(source, plan)


def test_an_index_that_lies(tiny: ModuleType, sharded: tuple[Path, dict[str, Tensor]]) -> None:
    directory, _ = sharded
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    wrong = index["weight_map"]["model.norm.weight"]
    index["weight_map"]["model.embed_tokens.weight"] = wrong
    path.write_text(json.dumps(index))
    source = describe(str(directory))
    with pytest.raises(CheckpointError, match=f"{wrong}: no usable tensor model.embed_tokens.weight"):
        initial_weights(source, make_plan(source.config, 2), 0, 0)


def test_types_that_the_library_rearranges_while_loading_are_refused(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read as they stand, their weights would be silently wrong."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Transpose, WeightConverter

    source, plan, _ = saved(tiny, tmp_path, "llama")
    turned = [WeightConverter("up_proj.weight", "up_proj.weight", operations=[Transpose()])]
    monkeypatch.setattr(conversion_mapping, "get_checkpoint_conversion_mapping", lambda _kind: turned)
    with pytest.raises(CheckpointError, match=r"rearranges .*by Transpose"):
        initial_weights(source, plan, 1, 0)


def test_a_save_over_an_older_one_leaves_no_old_shards(tiny: ModuleType, sharded: tuple[Path, dict[str, Tensor]]) -> None:
    directory, weights = sharded
    save_model(directory, tiny.config_of("llama"), {name: tensor * 2 for name, tensor in weights.items()})
    assert [path.name for path in directory.glob("model*")] == ["model.safetensors"]
    opened = AutoModelForCausalLM.from_pretrained(directory)
    assert same(tiny, dict(opened.named_parameters()), {name: tensor * 2 for name, tensor in weights.items()})


def test_whole_model_wants_every_tensor(tiny: ModuleType) -> None:
    config = tiny.config_of("llama")
    weights = {name: tensor.detach() for name, tensor in tiny.random_whole(config).named_parameters()}
    weights.pop("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"lack 1 tensors: model\.norm\.weight"):
        whole_model(config, weights)
    with pytest.raises(CheckpointError, match="no weights were given"):
        whole_model(config, {})


def test_a_failed_save_leaves_nothing_behind(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        save_model(tmp_path / "model", tiny.config_of("llama"), {"lm_head.weight": torch.zeros(64, 32)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"the trained model {STORIES.name} is not beside the project")
def test_a_really_trained_model_round_trips(tiny: ModuleType, tmp_path: Path) -> None:
    source = describe(str(STORIES))
    plan = make_plan(source.config, 3)
    weights = united(source, plan)
    assert plan.parameters == 260_032
    plain = AutoModelForCausalLM.from_pretrained(STORIES)
    assert same(tiny, {name: weights[name] for name in plan.model_order}, dict(plain.named_parameters()))

    from transformers import AutoTokenizer

    save_model(tmp_path / "model", source.config, weights, AutoTokenizer.from_pretrained(STORIES))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "model")("Once upon a time", return_tensors="pt").input_ids
    assert tiny.bits(opened(input_ids=tokens).logits) == tiny.bits(plain(input_ids=tokens).logits)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118 - not a mapping
