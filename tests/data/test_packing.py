"""Packed tokens lose no byte, and batches follow from seed and step alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from holdfast.data import (
    BatchSource,
    Tokens,
    load_corpus,
    pack,
    pack_measured,
    train_tokenizer,
    validation_blocks,
)
from holdfast.errors import DataError


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(load_corpus("embedded"), 300)


def counting(length: int) -> torch.Tensor:
    return torch.arange(length)


def test_end_of_text_stands_between_documents_only(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b = (tokenizer(text)["input_ids"] for text in ("first one", "second"))
    assert pack(["first one", "second"], tokenizer).tolist() == [*a, tokenizer.eos_token_id, *b]
    assert pack([], tokenizer).tolist() == []
    assert pack(["x"] * 600, tokenizer).tolist() == pack(["x"], tokenizer).tolist() + 599 * [
        tokenizer.eos_token_id,
        *tokenizer("x")["input_ids"],
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_every_byte_belongs_to_one_token(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> None:
    tokens = pack_measured(documents, tokenizer)
    assert torch.equal(tokens.ids, pack(documents, tokenizer))
    assert int(tokens.octets.sum()) == sum(len(document.encode()) for document in documents)
    assert int(tokens.octets.min()) >= 0


def test_a_token_has_the_bytes_of_its_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "the quick brown function, in Python"
    tokens = pack_measured([text, "end"], tokenizer)
    spelled = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert tokens.octets[: len(spelled)].tolist() == [len(piece) for piece in spelled]
    assert tokens.octets[len(spelled)] == 0
    assert tokens.ids[len(spelled)] == tokenizer.eos_token_id


def test_text_that_a_tokenizer_drops_is_counted() -> None:
    words = Tokenizer(models.WordLevel({"one": 0, "two": 1, "[E]": 2}, unk_token="[E]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[E]")
    assert pack_measured(["  one  two  ", "one"], tokenizer).octets.tolist() == [5, 7, 0, 3]


def test_packing_may_stop_once_it_has_enough(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = ["word " * 10] * 1000
    whole, part = pack_measured(documents, tokenizer), pack_measured(documents, tokenizer, limit_tokens=100)
    assert 100 <= len(part.ids) < len(whole.ids)
    assert torch.equal(part.ids, whole.ids[: len(part.ids)])


def test_training_text_may_end_at_a_number_of_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [f"document {n}" for n in range(600)]
    whole = pack(documents, tokenizer)
    for limit in (1, 10, len(whole), len(whole) + 1):
        assert torch.equal(pack(documents, tokenizer, limit), whole[:limit])


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    source = BatchSource(counting(1000), seed=3, micro_batches=2, micro_batch_size=3, sequence_length=8)
    later = BatchSource(counting(1000), seed=3, micro_batches=2, micro_batch_size=3, sequence_length=8)
    assert source.batch(7).shape == (2, 3, 9)
    assert source.batch(7).dtype == torch.int64
    assert [torch.equal(source.batch(n), later.batch(7)) for n in (6, 7, 8)] == [False, True, False]
    other = BatchSource(counting(1000), seed=4, micro_batches=2, micro_batch_size=3, sequence_length=8)
    assert not torch.equal(source.batch(7), other.batch(7))
    assert source.tokens_per_step == 48


def test_the_order_is_the_same_on_every_machine() -> None:
    source = BatchSource(counting(101), seed=0, micro_batches=1, micro_batch_size=10, sequence_length=10)
    assert (source.batch(0)[0, :, 0] // 10).tolist() == [5, 8, 2, 3, 1, 4, 0, 7, 6, 9]
    assert (source.batch(1)[0, :, 0] // 10).tolist() == [6, 1, 9, 0, 5, 2, 4, 7, 3, 8]


def test_an_epoch_has_every_block_once_and_the_next_another_order() -> None:
    source = BatchSource(counting(105), seed=1, micro_batches=2, micro_batch_size=2, sequence_length=4)
    assert source.blocks == 26
    rows = torch.cat([source.batch(step).reshape(4, 5) for step in range(13)])
    assert torch.equal(rows - rows[:, :1], torch.arange(5).expand(52, 5))
    first, second = rows[:26, 0].tolist(), rows[26:, 0].tolist()
    assert sorted(first) == sorted(second) == list(range(0, 104, 4))
    assert first != second


def test_micro_batches_cut_one_order() -> None:
    """The same tokens a step give the same rows, however they are cut into micro-batches."""
    whole = BatchSource(counting(999), seed=1, micro_batches=1, micro_batch_size=6, sequence_length=4)
    cut = BatchSource(counting(999), seed=1, micro_batches=3, micro_batch_size=2, sequence_length=4)
    assert torch.equal(whole.batch(5).reshape(6, 5), cut.batch(5).reshape(6, 5))


def test_text_shorter_than_one_block_is_refused() -> None:
    assert BatchSource(counting(9), 0, 2, 2, 8).batch(0).shape == (2, 2, 9)
    with pytest.raises(DataError, match=r"training text has 8 tokens, but one block of sequence length 8 needs 9"):
        BatchSource(counting(8), 0, 1, 1, 8)
    with pytest.raises(DataError, match=r"validation text has 8 tokens.*smaller --seq-length"):
        validation_blocks(Tokens(counting(8), counting(8)), 8)


def test_validation_predicts_each_token_once_and_counts_its_bytes() -> None:
    tokens = Tokens(counting(23), torch.full((23,), 3))
    blocks = validation_blocks(tokens, 5)
    assert blocks.ids.tolist() == [list(range(n, n + 6)) for n in (0, 5, 10, 15)]
    assert blocks.token_bytes == 20 * 3
    assert len(validation_blocks(tokens, 5, limit_tokens=14).ids) == 2
    assert validation_blocks(tokens, 5, limit_tokens=14).token_bytes == 30
    assert len(validation_blocks(tokens, 5, limit_tokens=1).ids) == 1
