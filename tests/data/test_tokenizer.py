"""Tokenizers are deterministic, spell any text, and open with plain AutoTokenizer."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from holdfast.data import END_OF_TEXT, Corpus, load_corpus, load_tokenizer, train_tokenizer
from holdfast.data.tokenizer import panics_as_errors, read_vocabulary
from holdfast.errors import ConfigError, DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_corpora = pytest.mark.skipif(not SHARED.is_dir(), reason="the corpora are not at ../shared/data beside the project")
STRANGE = " naïve  日本 \U0001f600\r\n\n\ttab"


@pytest.fixture(scope="module")
def embedded() -> Corpus:
    return load_corpus("embedded")


@pytest.fixture(scope="module")
def tokenizer(embedded: Corpus) -> PreTrainedTokenizerFast:
    return train_tokenizer(embedded, 400)


def test_it_has_the_vocabulary_asked_for_and_spells_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 400
    assert tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.decode(tokenizer(STRANGE)["input_ids"]) == STRANGE


def test_training_is_the_same_in_another_process(tokenizer: PreTrainedTokenizerFast) -> None:
    program = (
        "import hashlib; from holdfast.data import load_corpus, train_tokenizer as t; "
        "print(hashlib.sha256(t(load_corpus('embedded'), 400).backend_tokenizer.to_str().encode()).hexdigest())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


@pytest.mark.parametrize("config", [None, GPT2Config, LlamaConfig])
def test_auto_tokenizer_opens_what_is_saved(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, config: type | None) -> None:
    tokenizer.save_pretrained(tmp_path)
    if config is not None:
        config().save_pretrained(tmp_path)
    for opened in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert opened(STRANGE)["input_ids"] == tokenizer(STRANGE)["input_ids"]
        assert opened.eos_token_id == tokenizer.eos_token_id
        assert len(opened) == 400


def test_the_vocabulary_must_hold_every_byte(embedded: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"vocabulary of 256 tokens.*needs 257"):
        train_tokenizer(embedded, 256)


def test_a_symbol_of_the_synthetic_source_is_one_token() -> None:
    corpus = load_corpus("synthetic:symbols=5,tokens=400")
    tokenizer = train_tokenizer(corpus, 512)
    assert len(tokenizer) == 6
    assert len(tokenizer(corpus.validation[0])["input_ids"]) == len(corpus.validation[0])


def test_a_bare_vocab_and_merges_folder_opens(tmp_path: Path) -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = [*bytes_to_unicode().values(), "he", "ll", END_OF_TEXT]
    vocabulary = ", ".join(f'"{letter}": {n}' for n, letter in enumerate(letters) if letter not in '"\\')
    (tmp_path / "vocab.json").write_text("{" + vocabulary + "}", encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\n", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_token_id == len(letters) - 1
    assert tokenizer("hello")["input_ids"] == [letters.index(part) for part in ("he", "ll", "o")]


@needs_corpora
def test_the_gpt2_vocabulary_beside_the_project_opens() -> None:
    tokenizer = load_tokenizer(SHARED / "gpt2-bpe")
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]
    assert tokenizer.eos_token_id == 50256


def test_a_missing_or_useless_tokenizer_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no folder '/no/such'"):
        load_tokenizer("/no/such")
    with pytest.raises(DataError, match=r"no usable tokenizer at .*vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"neither an end-of-sequence nor.*set eos_token"):
        load_tokenizer(tmp_path)


PANICS = '{"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[["a","b"]],"continuing_subword_prefix":"##"}}'
"""The library's parser cuts a prefix of two letters from a word of one."""


@pytest.mark.parametrize("text", [PANICS, "[" * 100_000, "{}", "\x00", '{"model": ' + "9" * 5_000 + "}"])
def test_a_tokenizer_at_which_the_library_panics_is_refused(tmp_path: Path, text: str) -> None:
    """A panic is no Exception in Python: it went past whoever caught those, and ended in a traceback."""
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "a"}')
    with pytest.raises(DataError, match="is no tokenizer"):
        read_vocabulary(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_ctrl_c_while_a_tokenizer_is_read_stays_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), panics_as_errors():
        raise KeyboardInterrupt
