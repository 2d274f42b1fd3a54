"""A corpus is documents to train on and documents held out, from wherever `--data` says, with a digest of exactly that text.

embedded                         Python's own language reference, on every machine
synthetic[:order=1,symbols=16]   a seeded Markov source of known entropy
wikitext2 arxiv openwebtext      a local folder (HOLDFAST_DATA, ./data, ../shared/data), else the hub
hub:OWNER/NAME[,field=text]      any text dataset of the hub
PATH                             a .txt, .jsonl or .parquet file, or a folder with train and validation files
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.data import hub
from holdfast.data.embedded import embedded_documents
from holdfast.data.files import SUFFIXES, Split, read_documents, read_folder
from holdfast.data.synthetic import MarkovSource
from holdfast.errors import ConfigError, DataError
from holdfast.toml import parse_spec

FOLDERS = {"wikitext2": "wikitext-2", "arxiv": "arxiv-abstracts", "openwebtext": "openwebtext-1000"}
OPENWEBTEXT_TRAIN, OPENWEBTEXT_VALIDATION = slice(0, 900), slice(900, 950)


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and to validate on.

    `sha256` (hex) covers every byte of both and where each document ends; `source` says where they came from;
    `entropy_bits` is the true entropy rate in bits a symbol, known for the synthetic source only.
    """

    name: str
    train: Sequence[str]
    validation: Sequence[str]
    sha256: str
    source: str
    entropy_bits: float | None = None


def load_corpus(name: str, seed: int = 0) -> Corpus:
    """The corpus that `--data` names; only the synthetic source draws from `seed`.

    Raises DataError where there is no such text or none that can be used, MissingExtra where reading it needs a package.
    """
    if name == "embedded":
        documents, source = embedded_documents()
        return _corpus(name, (documents, None), source)
    if re.fullmatch(r"synthetic([:,].*)?", name):
        return _synthetic(name, seed)
    if name in FOLDERS:
        folder = local_folder(name)
        if folder is not None:
            return _corpus(name, _READERS[name](folder), str(folder))
        dataset = hub.NAMED[name]
        split = hub.read_hub(dataset)
        return _corpus(name, _articles(split) if name == "wikitext2" else split, str(dataset))
    if name.startswith("hub:"):
        dataset = hub.parse_hub(name)
        return _corpus(name, hub.read_hub(dataset), str(dataset))
    return _from_path(name)


def part_of(corpus: Corpus, begin: float, end: float) -> Corpus:
    """The corpus with a part of its training documents, from one share of their number to another; of one alone, of its text.

    Parts that do not overlap have no document in common. Raises DataError where the part is empty.
    """
    if (begin, end) == (0.0, 1.0):
        return corpus
    whole: Sequence[str] = corpus.train if len(corpus.train) > 1 else corpus.train[0]
    part = whole[int(begin * len(whole)) : int(end * len(whole))]
    train = (part,) if isinstance(part, str) else tuple(part)
    if not "".join(train).strip():
        raise DataError(
            f"{corpus.name!r} has {len(corpus.train)} training documents, and none between the shares {begin:g} and {end:g} of "
            "them; make data.train_part larger"
        )
    return replace(corpus, train=train, sha256=_sha256(train, corpus.validation))


def _synthetic(name: str, seed: int) -> Corpus:
    base, parameters = parse_spec(name)
    if base != "synthetic":
        raise ConfigError(f"{name!r}: expected synthetic[:order=O,symbols=N,tokens=T]")
    length = parameters.pop("tokens", 200_000)
    try:
        source = MarkovSource(seed=seed, **parameters)
    except TypeError:
        raise ConfigError(f"{name!r}: the parameters of synthetic are order, symbols and tokens, as integers") from None
    if not isinstance(length, int) or length < 20:
        raise ConfigError(f"{name!r}: tokens must be an integer of at least 20, got {length!r}")
    text = source.text(length)
    return _corpus(name, ([text], None), f"Markov source, {source}", source.entropy_bits)


def _from_path(name: str) -> Corpus:
    path = Path(name).expanduser()
    if path.is_dir():
        return _corpus(name, read_folder(path), str(path))
    if not path.exists():
        raise DataError(
            f"no data at {name!r}: it is no file or folder here, and none of the known names ({', '.join(_NAMES)}); "
            f"files must end in {', '.join(SUFFIXES)}"
        )
    return _corpus(name, (read_documents(path), None), str(path))


_NAMES = ("embedded", "synthetic", *FOLDERS, "hub:OWNER/NAME")


def local_folder(name: str) -> Path | None:
    """Where a text of FOLDERS lies here; None where it would come from the hub, and for every other name."""
    if name not in FOLDERS:
        return None
    folder = FOLDERS[name]
    roots = [Path("data"), Path("../shared/data")]
    if os.environ.get("HOLDFAST_DATA"):
        roots.insert(0, Path(os.environ["HOLDFAST_DATA"]))
    return next((root / folder for root in roots if (root / folder).is_dir()), None)


def _read_openwebtext(folder: Path) -> Split:
    train, validation = read_folder(folder)
    if validation is None and len(train) >= OPENWEBTEXT_VALIDATION.stop:
        return train[OPENWEBTEXT_TRAIN], train[OPENWEBTEXT_VALIDATION]
    return train, validation


def split_articles(text: str) -> list[str]:
    """The articles of a WikiText file: each begins at a top-level heading that stands between blank lines.

    >>> [len(article) for article in split_articles(" \\n = A = \\n \\n = = b = = \\n text \\n \\n = C = \\n \\n more \\n")]
    [31, 19]
    """
    starts = [match.start() for match in re.finditer(r"^ \n(?= = (?!= ).* = \n \n)", text, re.MULTILINE)]
    bounds = [0, *(start for start in starts if start > 0), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(bounds)]


def _articles(split: Split) -> Split:
    """Documents of WikiText come as whole files, or as one row a line, where the hub leaves blank lines empty."""
    train, validation = (None if part is None else split_articles("".join(row or " \n" for row in part)) for part in split)
    return train or [], validation


_READERS: dict[str, Callable[[Path], Split]] = {
    "wikitext2": lambda folder: _articles(read_folder(folder)),
    "arxiv": read_folder,
    "openwebtext": _read_openwebtext,
}


def _corpus(name: str, split: Split, source: str, entropy_bits: float | None = None) -> Corpus:
    train, validation = split
    train = [document for document in train if document.strip()]
    if not train:
        raise DataError(f"{name!r} ({source}) holds no text; training needs at least one document that is not blank")
    if validation is None:
        train, validation = hold_out(train)
    validation = [document for document in validation if document.strip()]
    if not validation or not "".join(train).strip():
        raise DataError(f"{name!r} ({source}) is too short to hold a tenth of it out; give more text or a validation file")
    return Corpus(name, tuple(train), tuple(validation), _sha256(train, validation), source, entropy_bits)


def hold_out(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """The last tenth of the documents (at least one) validates; of a single document, the last tenth of its text.

    >>> hold_out(["0123456789"])
    (['012345678'], ['9'])
    """
    if len(documents) == 1:
        cut = len(documents[0]) * 9 // 10
        return [documents[0][:cut]], [documents[0][cut:]]
    count = max(1, len(documents) // 10)
    return list(documents[:-count]), list(documents[-count:])


def _sha256(train: Sequence[str], validation: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for label, documents in ((b"train", train), (b"validation", validation)):
        digest.update(label + len(documents).to_bytes(8, "little"))
        for document in documents:
            octets = document.encode()
            digest.update(len(octets).to_bytes(8, "little") + octets)
    return digest.hexdigest()
