"""Tokenizers: the one that lies beside a model, or a byte-level BPE trained on the corpus; both are Hugging Face tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.data.corpus import Corpus
from holdfast.errors import ConfigError, DataError
from holdfast.partition.hub import check_hub, is_path, unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as PreTrainedTokenizerBase
else:
    PreTrainedTokenizerBase = Any

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub name, or of a folder with nothing but vocab.json and merges.txt.

    Runs no code that comes with it. Raises DataError where there is none, or none with an end-of-text token.
    """
    from transformers import AutoTokenizer, GPT2Tokenizer

    folder = Path(directory)
    if not folder.is_dir() and is_path(str(directory)):
        raise DataError(f"no folder {str(directory)!r}; give one that holds a tokenizer, or a hub name")
    cached = not folder.is_dir() and not check_hub(str(directory))
    bare = (folder / "merges.txt").is_file() and not any((folder / name).exists() for name in ("tokenizer.json", "config.json"))
    loader = GPT2Tokenizer if bare and not (folder / "tokenizer_config.json").exists() else AutoTokenizer
    try:
        with panics_as_errors():
            tokenizer = loader.from_pretrained(str(directory), trust_remote_code=False, local_files_only=cached)
    except Exception as error:  # the parsers of the library raise whatever a file makes them stumble over
        if cached:
            raise unreachable(str(directory)) from None
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"no usable tokenizer at {str(directory)!r}: {reason}; give a folder with tokenizer.json, "
            "or with vocab.json and merges.txt"
        ) from error
    end_of_text(tokenizer)
    return tokenizer


def read_vocabulary(file: Path) -> dict[str, int]:
    """The tokens of a tokenizer.json with their numbers. Raises DataError where it is none."""
    from tokenizers import Tokenizer

    try:
        with panics_as_errors():
            return dict(Tokenizer.from_file(str(file)).get_vocab())
    except Exception as error:  # noqa: BLE001  (the library raises nothing more precise)
        raise DataError(f"{file} is no tokenizer ({error})") from None


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """The parser of tokenizer.json panics at some files; Python sees an exception that is no Exception. Here a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(str(error)) from None


def train_tokenizer(corpus: Corpus, vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE of at most `vocabulary` tokens, end-of-text included, from the training documents; deterministic.

    It can spell any text. For the synthetic source a token is one symbol instead, so that the corpus's `entropy_bits` is
    what a perfect model pays for a token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet() if corpus.entropy_bits is None else []
    smallest = len(alphabet) + 1
    if vocabulary < smallest:
        raise ConfigError(
            f"a vocabulary of {vocabulary} tokens cannot spell every byte; data.vocabulary needs {smallest} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary if alphabet else 1,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.train, trainer, length=len(corpus.train))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False)


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands between documents: end-of-sequence, else beginning-of-sequence."""
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise DataError(
        f"the tokenizer at {tokenizer.name_or_path!r} has neither an end-of-sequence nor a beginning-of-sequence token; "
        "set eos_token in its tokenizer_config.json"
    )
