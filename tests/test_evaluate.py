"""Perplexity and bits per byte are those of the formulas, and a directory scores as the model that was saved into it."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from holdfast import evaluate as module
from holdfast.config import DataConfig
from holdfast.data import Blocks, MarkovSource, load_corpus, pack_measured, train_tokenizer, validation_blocks
from holdfast.errors import CheckpointError, ConfigError, DataError, PartitionError
from holdfast.evaluate import Evaluation, evaluate, evaluate_directory

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
SYNTHETIC = DataConfig(name="synthetic:symbols=5,tokens=3000", sequence_length=16, validation_tokens=160)


def tiny_gpt2(vocabulary: int = 9, positions: int = 16) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def saved(directory: Path, model: nn.Module | None = None) -> Path:
    (model or tiny_gpt2(6)).save_pretrained(directory)
    train_tokenizer(load_corpus(SYNTHETIC.name), 512).save_pretrained(directory)
    return directory


def synthetic_blocks() -> Blocks:
    corpus = load_corpus(SYNTHETIC.name)
    tokens = pack_measured(corpus.validation, train_tokenizer(corpus, 512))
    return validation_blocks(tokens, SYNTHETIC.sequence_length, SYNTHETIC.validation_tokens)


class Oracle(nn.Module):
    """Predicts a first-order Markov source as one who knows its table; token t is the letter t - 1."""

    def __init__(self, source: MarkovSource) -> None:
        super().__init__()
        self.config = GPT2Config(n_positions=1024)
        self.embedding = nn.Embedding(source.symbols + 1, source.symbols + 1)
        table = torch.full((source.symbols + 1, source.symbols + 1), -math.inf)
        table[1:, 1:] = torch.from_numpy(source.table).log()
        self.embedding.weight.data = table

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        return type("Output", (), {"logits": self.embedding(input_ids)})


def test_a_perfect_model_scores_the_entropy_of_the_source() -> None:
    source = MarkovSource(order=1, symbols=8, seed=2)
    corpus = load_corpus("synthetic:order=1,symbols=8,tokens=200000", seed=2)
    blocks = validation_blocks(pack_measured(corpus.validation, train_tokenizer(corpus, 512)), 64)
    found = evaluate(Oracle(source), blocks)
    assert found.loss / math.log(2) == pytest.approx(source.entropy_bits, abs=0.02)
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2), rel=1e-12)
    assert found.tokens == found.bytes == blocks.ids[:, 1:].numel()
    assert found.bits_per_byte == pytest.approx(source.bits(corpus.validation[0][: found.tokens + 1]), abs=1e-5)


def test_the_numbers_are_those_of_the_formulas() -> None:
    model = tiny_gpt2()
    blocks = Blocks(torch.randint(0, 9, (7, 13)), token_bytes=200)
    found = evaluate(model, blocks, batch_size=3)
    model.eval()
    with torch.no_grad():
        predictions = [(model(row[None, :-1]).logits.log_softmax(-1)[0], row[1:, None]) for row in blocks.ids]
    losses = [float(logs.gather(1, targets).sum()) for logs, targets in predictions]
    assert found.loss == pytest.approx(-sum(losses) / (7 * 12), rel=1e-6)
    assert found.perplexity == math.exp(found.loss)
    assert found.bits_per_byte == pytest.approx(-sum(losses) / math.log(2) / 200, rel=1e-6)
    assert (found.tokens, found.bytes) == (84, 200)


def test_evaluation_repeats_leaves_the_mode_and_keeps_no_gradient() -> None:
    model = tiny_gpt2()
    model.train()
    blocks = Blocks(torch.randint(0, 9, (5, 9)), token_bytes=50)
    with torch.random.fork_rng():
        assert evaluate(model, blocks) == evaluate(model, blocks)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert evaluate(model.eval(), blocks) == evaluate(model, blocks)
    assert not model.training


def test_a_ruined_model_has_a_number_too() -> None:
    model = tiny_gpt2()
    model.transformer.wte.weight.data *= 1e6
    assert evaluate(model, Blocks(torch.randint(0, 9, (2, 9)), token_bytes=9)).perplexity == math.inf
    model.transformer.wte.weight.data.fill_(math.nan)
    assert math.isnan(evaluate(model, Blocks(torch.randint(0, 9, (2, 9)), token_bytes=9)).perplexity)


def test_longer_than_the_model_or_foreign_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="sequences of 17 tokens are longer than the model's 16 positions"):
        evaluate(tiny_gpt2(), Blocks(torch.zeros(1, 18, dtype=torch.int64), 1))
    with pytest.raises(DataError, match="has token 9, but the model knows only 9"):
        evaluate(tiny_gpt2(), Blocks(torch.full((1, 5), 9), 1))


def test_a_directory_scores_as_its_model_to_the_bit(tmp_path: Path) -> None:
    saved(tmp_path / "run" / "model")
    expected = evaluate(tiny_gpt2(6), synthetic_blocks())
    assert evaluate_directory(tmp_path / "run" / "model", SYNTHETIC) == expected
    assert evaluate_directory(tmp_path / "run", SYNTHETIC) == expected
    train = evaluate_directory(tmp_path / "run", SYNTHETIC, part="train")
    assert (train.tokens, train != expected) == (160, True)


def test_weights_at_odd_offsets_of_a_file_are_aligned_before_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library maps files, so a header of another length moves every tensor; matrix products may then differ in bits."""
    directory = saved(tmp_path)
    expected = evaluate(tiny_gpt2(6), synthetic_blocks())
    places: set[int] = set()

    def watched(model: GPT2LMHeadModel, blocks: Blocks) -> Evaluation:
        places.update(parameter.data_ptr() % 64 for parameter in model.parameters())
        assert model.lm_head.weight is model.transformer.wte.weight
        return evaluate(model, blocks)

    monkeypatch.setattr(module, "evaluate", watched)
    for padding in ("", "x" * 8, "x" * 16):
        weights = load_file(directory / "model.safetensors")
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt", "p": padding})
        assert evaluate_directory(directory, SYNTHETIC) == expected
    assert places == {0}


def test_an_adapter_directory_is_scored_on_its_base(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    base = saved(tmp_path / "base")
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks the library for a name that will go
        adapted = peft.get_peft_model(GPT2LMHeadModel.from_pretrained(base), config)
    adapted.save_pretrained(tmp_path / "adapter")
    found = evaluate_directory(tmp_path / "adapter", SYNTHETIC)
    assert found == evaluate(adapted, synthetic_blocks())
    assert found != evaluate_directory(base, SYNTHETIC)
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        evaluate_directory(tmp_path / "adapter", SYNTHETIC)


def test_a_directory_that_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longer than the 16 positions"):
        evaluate_directory(saved(tmp_path), SYNTHETIC.model_copy(update={"sequence_length": 17}))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.h.1.ln_1.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks the weights of transformer\.h\.1\.ln_1\.bias"):
        evaluate_directory(tmp_path, SYNTHETIC)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot load the model"):
        evaluate_directory(tmp_path, SYNTHETIC)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot load the model"):
        evaluate_directory(tmp_path, SYNTHETIC)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    with pytest.raises((CheckpointError, PartitionError, DataError), match="unheard_of"):
        evaluate_directory(tmp_path, SYNTHETIC)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the corpora are not at ../shared/data beside the project")
def test_a_trained_model_scores_as_published_beside_it() -> None:
    """`stories260K` has 5.32 nats a token on 100 blocks of 512 tokens of WikiText-2's test text."""
    data = DataConfig(name=str(SHARED / "wikitext-2" / "test.txt"), sequence_length=512, validation_tokens=100 * 512)
    found = evaluate_directory(SHARED / "stories260K-hf", data, part="all")
    assert found.tokens == 51_200
    assert found.loss == pytest.approx(5.32, abs=0.06)
