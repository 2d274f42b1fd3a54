"""The synthetic source has the entropy that it claims."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest

from holdfast.data import MarkovSource, load_corpus
from holdfast.errors import ConfigError


def test_a_seed_gives_one_text_everywhere() -> None:
    text = MarkovSource(order=1, symbols=4, seed=7).text(1000)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3aaa1bd6210bb498"
    assert text != MarkovSource(order=1, symbols=4, seed=8).text(1000)
    assert load_corpus("synthetic", 1).sha256 != load_corpus("synthetic", 2).sha256


@pytest.mark.parametrize(("order", "symbols"), [(0, 4), (1, 16), (2, 6), (3, 4)])
def test_who_knows_the_table_pays_the_entropy_and_no_less(order: int, symbols: int) -> None:
    source = MarkovSource(order, symbols, seed=3)
    assert 0 < source.entropy_bits < math.log2(symbols)
    assert source.bits(source.text(60_000)) == pytest.approx(source.entropy_bits, abs=0.03)


def test_the_entropy_is_that_of_all_short_texts() -> None:
    """H = H(X1 X2 X3) - H(X1 X2) in the stationary distribution, summed over every text of three letters."""
    source = MarkovSource(order=1, symbols=3, seed=5)

    def joint(length: int) -> float:
        total = 0.0
        for letters in itertools.product(range(3), repeat=length):
            p = source.stationary[letters[0]] * math.prod(source.table[a, b] for a, b in itertools.pairwise(letters))
            total -= p * math.log2(p)
        return total

    assert source.entropy_bits == pytest.approx(joint(3) - joint(2), abs=1e-12)
    assert np.allclose(source.stationary @ source.table, source.stationary, atol=1e-12)


def test_the_corpus_carries_the_entropy() -> None:
    corpus = load_corpus("synthetic:order=2,symbols=5,tokens=1000", seed=4)
    source = MarkovSource(order=2, symbols=5, seed=4)
    assert corpus.entropy_bits == source.entropy_bits
    assert corpus.train[0] + corpus.validation[0] == source.text(1000)
    assert (len(corpus.train[0]), len(corpus.validation[0])) == (900, 100)


@pytest.mark.parametrize(("order", "symbols"), [(1, 1), (1, 63), (-1, 4), (20, 4)])
def test_an_impossible_source_is_refused(order: int, symbols: int) -> None:
    with pytest.raises(ConfigError, match="symbols must be 2 to 62"):
        MarkovSource(order, symbols)
