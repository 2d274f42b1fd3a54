"""A Markov source of known entropy: what no model can beat, so that a loss can be tested against an exact number.

The source draws a symbol given the last `order` symbols, from a table that the seed fixes. Its entropy rate is

    H = sum_c  pi(c) * sum_s  -p(s|c) log2 p(s|c)        pi: the stationary distribution over contexts c
"""

from __future__ import annotations

import itertools
import string
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import ConfigError
from holdfast.seeds import derive

ALPHABET = string.ascii_lowercase + string.ascii_uppercase + string.digits
MAX_TABLE = 1 << 20


@dataclass(frozen=True)
class MarkovSource:
    """Text of `symbols` letters (one byte each), where each depends on the `order` before it.

    Every symbol has a positive probability in every context, so the chain is ergodic. Python's generator promises the same
    stream in every version and IEEE products are exact, hence one seed gives one text everywhere.
    """

    order: int = 1
    symbols: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(isinstance(value, int) for value in (self.order, self.symbols)):
            raise TypeError("order and symbols must be integers")
        if not (2 <= self.symbols <= len(ALPHABET) and self.order >= 0 and self.symbols ** (self.order + 1) <= MAX_TABLE):
            raise ConfigError(
                f"synthetic source of order {self.order} over {self.symbols} symbols: symbols must be 2 to {len(ALPHABET)}, "
                f"order at least 0, and symbols^(order+1) at most {MAX_TABLE}"
            )

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """p(s|c), shape [symbols^order, symbols]; the context's newest symbol is its lowest digit in base `symbols`."""
        random = Random(derive(self.seed, "synthetic", "table"))
        count = self.symbols ** (self.order + 1)
        weights = np.array([random.random() ** 2 for _ in range(count)]) ** 2 + 1e-3
        rows = weights.reshape(-1, self.symbols)
        probabilities: NDArray[np.float64] = rows / rows.sum(axis=1, keepdims=True)
        return probabilities

    @cached_property
    def stationary(self) -> NDArray[np.float64]:
        """How often each context occurs, shape [symbols^order]."""
        contexts = self.symbols**self.order
        share = np.full(contexts, 1.0 / contexts)
        for _ in range(10_000):
            joint = share[:, None] * self.table
            following = joint.reshape(self.symbols, -1).sum(axis=0) if self.order else share  # the oldest symbol leaves
            if np.abs(following - share).max() < 1e-15:
                break
            share = following
        normalised: NDArray[np.float64] = share / share.sum()
        return normalised

    @cached_property
    def entropy_bits(self) -> float:
        """The entropy rate in bits a symbol (and a byte, and a token of the corpus's own tokenizer)."""
        surprise = -(self.table * np.log2(self.table)).sum(axis=1)
        return float((self.stationary * surprise).sum())

    def text(self, length: int) -> str:
        """`length` symbols, begun in the stationary distribution."""
        random = Random(derive(self.seed, "synthetic", "text"))
        contexts = len(self.stationary)
        context = min(bisect(list(itertools.accumulate(self.stationary.tolist())), random.random()), contexts - 1)
        cumulative = [list(itertools.accumulate(row)) for row in self.table.tolist()]
        letters = []
        for _ in range(length):
            symbol = min(bisect(cumulative[context], random.random()), self.symbols - 1)
            letters.append(ALPHABET[symbol])
            context = (context * self.symbols + symbol) % contexts
        return "".join(letters)

    def bits(self, text: str) -> float:
        """The surprise of `text` after its first `order` symbols, in bits a symbol, to one who knows the table."""
        symbols = [ALPHABET.index(letter) for letter in text]
        context, total = 0, 0.0
        for position, symbol in enumerate(symbols):
            if position >= self.order:
                total -= float(np.log2(self.table[context, symbol]))
            context = (context * self.symbols + symbol) % len(self.stationary)
        return total / (len(symbols) - self.order)
