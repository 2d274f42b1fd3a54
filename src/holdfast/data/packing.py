"""Packed tokens: documents end to end with end-of-text between them, cut into blocks whose order follows from the seed.

    documents   [d d d] [d d] [d d d d]      tokens   d d d e d d e d d d d
    blocks of S+1 tokens at stride S (S = 4)          |-------|
                                                              |-------|

`S` sequence length, `B` micro-batch size, `M` micro-batches of a step, `N` blocks. The last token of a block is only a
target; it comes again as the first input of the next, so that every token but the first is predicted exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.data.tokenizer import PreTrainedTokenizerBase, end_of_text
from holdfast.errors import DataError
from holdfast.seeds import derive

DOCUMENTS_A_BATCH = 256


@dataclass(frozen=True)
class Tokens:
    """Packed tokens and, for each, how many bytes of UTF-8 text it stands for (end-of-text: 0); both int64 [n]."""

    ids: Tensor
    octets: Tensor


@dataclass(frozen=True)
class Blocks:
    """Held-out blocks, int64 [N, S+1], and the bytes of text that their N * S predicted tokens stand for."""

    ids: Tensor
    token_bytes: int


@dataclass(frozen=True)
class BatchSource:
    """The batches of a run: a pure function of seed and step, so a resumed run needs no state but its step.

    Each epoch is another permutation of all blocks; a step takes the next M * B of them, across epochs where one ends.
    """

    tokens: Tensor
    seed: int
    micro_batches: int
    micro_batch_size: int
    sequence_length: int

    def __post_init__(self) -> None:
        _check_length(len(self.tokens), self.sequence_length, "training")

    @property
    def blocks(self) -> int:
        return (len(self.tokens) - 1) // self.sequence_length

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batches * self.micro_batch_size * self.sequence_length

    def batch(self, step: int) -> Tensor:
        """The tokens of optimizer step `step` (from 0), int64 [M, B, S+1]."""
        count = self.micro_batches * self.micro_batch_size
        places = [divmod(place, self.blocks) for place in range(step * count, (step + 1) * count)]
        index = torch.tensor([_permutation(self.seed, epoch, self.blocks)[place] for epoch, place in places])
        rows = _cut(self.tokens, self.sequence_length).index_select(0, index)
        return rows.view(self.micro_batches, self.micro_batch_size, self.sequence_length + 1)


def pack(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit_tokens: int | None = None) -> Tensor:
    """All documents as one row of tokens, int64 [n], end-of-text between them; no other special token is added.

    It stops after the document with which it has `limit_tokens` tokens, and cuts that one there.
    """
    between = np.array([end_of_text(tokenizer)])
    parts: list[NDArray[np.int64]] = []
    count = 0
    for batch in _batches(documents):
        encoded = tokenizer(
            batch, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        for ids in encoded["input_ids"]:
            parts += [between, np.array(ids, dtype=np.int64)]
            count += 1 + len(ids)
        if limit_tokens is not None and count > limit_tokens:
            break
    return torch.from_numpy(np.concatenate(parts[1:] or [np.empty(0, dtype=np.int64)])[:limit_tokens])


def pack_measured(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit_tokens: int | None = None) -> Tokens:
    """As `pack`, with the bytes of each token; it may stop after the document with which it has `limit_tokens` tokens.

    The bytes of a document's tokens sum up to the document's, whatever the tokenizer normalises or splits.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} keeps no offsets, so bits per byte cannot be told; it needs a tokenizer.json"
        )
    between = end_of_text(tokenizer)
    ids: list[int] = []
    octets: list[int] = []
    for batch in _batches(documents):
        encoded = tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for document, tokens, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if octets:
                ids.append(between)
                octets.append(0)
            ids += tokens
            octets += _octets(document, [end for _begin, end in offsets])
        if limit_tokens is not None and len(ids) >= limit_tokens:
            break
    return Tokens(torch.tensor(ids, dtype=torch.int64), torch.tensor(octets, dtype=torch.int64))


def validation_blocks(tokens: Tokens, sequence_length: int, limit_tokens: int | None = None) -> Blocks:
    """The first blocks of held-out text that predict at most `limit_tokens` tokens (but one block at least)."""
    _check_length(len(tokens.ids), sequence_length, "validation")
    ids = _cut(tokens.ids, sequence_length)
    if limit_tokens is not None:
        ids = ids[: max(1, limit_tokens // sequence_length)]
    predicted = tokens.octets[1 : len(ids) * sequence_length + 1]
    return Blocks(ids.contiguous(), int(predicted.sum()))


def _batches(documents: Sequence[str]) -> Iterator[list[str]]:
    for begin in range(0, len(documents), DOCUMENTS_A_BATCH):
        yield list(documents[begin : begin + DOCUMENTS_A_BATCH])


def _octets(text: str, ends: list[int]) -> list[int]:
    """Bytes of `text` from each token's end back to the furthest end before it; the last token takes what remains.

    >>> _octets("hé!", [1, 2, 2])  # two tokens share the two bytes of "é"
    [1, 2, 1]
    >>> _octets("abc ", [2, 0, 3])  # a token that stands nowhere, and a blank that was dropped
    [2, 0, 2]
    """
    if not ends:
        return []
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    before = np.concatenate([[0], np.cumsum(widths)])
    reached = before[np.maximum.accumulate(ends)]
    reached[-1] = before[-1]
    return [int(width) for width in np.diff(reached, prepend=0)]


def _cut(ids: Tensor, sequence_length: int) -> Tensor:
    return ids.unfold(0, sequence_length + 1, sequence_length)


def _check_length(count: int, sequence_length: int, which: str) -> None:
    if count < sequence_length + 1:
        raise DataError(
            f"the {which} text has {count} tokens, but one block of sequence length {sequence_length} needs "
            f"{sequence_length + 1}; give more text or a smaller --seq-length"
        )


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, blocks: int) -> NDArray[np.int64]:
    """A permutation from raw PCG64 words, the part of numpy's generators that never changes between versions."""
    words = np.random.PCG64(derive(seed, "batches", epoch)).random_raw(blocks)
    return np.argsort(words, kind="stable")
