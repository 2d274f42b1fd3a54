"""The attacks on a few entries of a tensor, all others left as they were: too little for a norm, a mean or a sample to see.

    name       says instead of x                                  after
    nan        x with a share of NaN or infinity                  poisoning of every sum downstream
    one-row    x, but for [b, s, :]: edited or replaced by noise  what sampling rows has to find: 1 of B x S
    bit-flip   x, with random bits of random entries flipped      Hochschild et al. 2021, Dixit et al. 2021: silent corruption

A digest is over every byte, so recomputation catches them all. A bound on the distance may not: one flipped low bit of one
entry is inside any tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Attack, Scene
from holdfast.attacks.tensors import scene_for_doctest as scene_for_doctest

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers whose bits stand for a number of so many bytes."""


@dataclass(kw_only=True)
class NotANumber(Attack):
    """Poison a share of the entries with NaN, or (`infinity=true`) infinity; at least one.

    >>> NotANumber(share=1.0, infinity=True).forge(torch.tensor([1.0, -3.0]), scene_for_doctest())
    tensor([inf, inf])
    """

    share: float = 0.01
    infinity: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            self.refuse(f"share must be greater than 0 and at most 1, got {self.share}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        count = max(1, round(self.share * honest.numel()))
        where = torch.randperm(honest.numel(), generator=scene.generator)[:count].to(honest.device)
        poisoned = honest.clone(memory_format=torch.contiguous_format)
        poisoned.view(-1)[where] = math.inf if self.infinity else math.nan
        return poisoned


@dataclass(kw_only=True)
class OneRow(Attack):
    """Edit one row of the batch, one token of one sequence: r + size * |r| * n/|n| (`replace=true`: size * |r| * n/|n|).

    `row` and `token` count modulo B and S, so that -1 is the last one. Every other row is the honest one, to the bit.

    >>> forged = OneRow(row=1, token=0).forge(torch.ones(2, 3, 4), scene_for_doctest())
    >>> (forged != 1).any(dim=-1).nonzero()
    tensor([[1, 0]])
    """

    row: int = 0
    token: int = 0
    size: float = 1.0
    replace: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.size < math.inf:
            self.refuse(f"size must be greater than 0 and finite, got {self.size}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        forged = honest.clone(memory_format=torch.contiguous_format)
        row = forged[self.row % honest.shape[0], self.token % honest.shape[1]]
        noise = scene.normal_like(row).float()
        length = float(torch.linalg.vector_norm(row.float())) or 1.0
        edit = noise * (self.size * length / torch.linalg.vector_norm(noise))
        row.copy_(edit if self.replace else row.float() + edit)
        return forged


@dataclass(kw_only=True)
class BitFlip(Attack):
    """Flip `bits` random bits in each of `count` random entries, as failing hardware does without a word.

    Nobody need be dishonest for it: Hochschild et al. 2021 ("Cores that don't count") and Dixit et al. 2021 ("Silent data
    corruptions at scale") met it in healthy fleets. An exponent bit makes a number huge, infinite or NaN, a low one changes
    nothing that anybody would notice; the bytes differ in any case. With `highest=N` only the N lowest bits are flipped.

    >>> x = torch.tensor([1.0, 2.0, 3.0])
    >>> (BitFlip(count=2).forge(x, scene_for_doctest()) != x).sum()
    tensor(2)
    """

    bits: int = 1
    count: int = 1
    highest: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.bits <= 16:
            self.refuse(f"bits must be 1 to 16, got {self.bits}")
        if self.count < 1:
            self.refuse(f"count must be at least 1, got {self.count}")
        if self.highest != 0 and self.highest < self.bits:
            self.refuse(f"highest must be 0 (any bit) or at least the {self.bits} bits to flip, got {self.highest}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        size = honest.element_size()
        width = min(self.highest or 8 * size, 8 * size)
        forged = honest.clone(memory_format=torch.contiguous_format)
        words = forged.view(-1).view(WORDS[size])
        for place in torch.randperm(honest.numel(), generator=scene.generator)[: self.count].tolist():
            for bit in torch.randperm(width, generator=scene.generator)[: self.bits].tolist():
                mask = 1 << bit if bit < 8 * size - 1 else -(1 << bit)  # the sign of a number is the sign of its word
                words[place] ^= mask
        return forged
