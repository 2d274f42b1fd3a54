"""Text in, batches out: corpora, their tokenizer, and packed tokens whose order follows from seed and step alone.

load_corpus --> Corpus --> load_tokenizer | train_tokenizer --> pack --> BatchSource.batch(step)
                                                            pack_measured --> validation_blocks
"""

from holdfast.data.corpus import Corpus, load_corpus, part_of
from holdfast.data.packing import BatchSource, Blocks, Tokens, pack, pack_measured, validation_blocks
from holdfast.data.synthetic import MarkovSource
from holdfast.data.tokenizer import END_OF_TEXT, load_tokenizer, read_vocabulary, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "BatchSource",
    "Blocks",
    "Corpus",
    "MarkovSource",
    "Tokens",
    "load_corpus",
    "load_tokenizer",
    "pack",
    "pack_measured",
    "part_of",
    "read_vocabulary",
    "train_tokenizer",
    "validation_blocks",
]
