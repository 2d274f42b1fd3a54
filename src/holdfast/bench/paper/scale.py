"""How large the tables are: which models, how they are pre-trained, and how they are fine-tuned.

    tiny     two CPU cores      0.3 M parameters, pre-trained here
    small    one GPU, bfloat16  50 to 100 M parameters, pre-trained here
    paper    the paper's        its checkpoints, by hub name or from a directory, and its settings
    smoke    a minute           shows that the command works here; its figures mean nothing

All fine-tune as the paper does: K = 6 stages, 4 micro-batches of one sequence, no dropout. Its learning rate of 5e-6 hardly
moves a small model in some tens of steps, so the others have a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from holdfast.errors import ConfigError

CORPORA = ("wikitext2", "arxiv", "openwebtext")
PAPER_RATE = 5e-6
FINE_TUNED, HELD_BACK = (0.0, 0.5), (0.5, 1.0)
"""Which half of a corpus's training documents is fine-tuned on, and which is kept for pre-training."""


@dataclass(frozen=True)
class PreTraining:
    """One plain run over the held-back part of the corpora in `data`: `tokens` of each, batches of `batch` sequences.

    A row's own corpus is left out where it is one of several: fine-tuning then has something to learn, as it has in the paper,
    whose models come from the web and not from the data set. The rate is constant after its warm-up: a model whose rate was
    annealed gets worse first when it is trained on.
    """

    steps: int
    vocabulary: int
    data: tuple[str, ...] = CORPORA
    batch: int = 16
    sequence_length: int = 64
    tokens: int = 500_000
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    seed: int = 0

    def for_row(self, data: str) -> PreTraining:
        """The recipe of the models that are fine-tuned on `data`; text that the scale does not know is its own.

        >>> PreTraining(1, 300).for_row("arxiv").data, PreTraining(1, 300).for_row("embedded").data
        (('wikitext2', 'openwebtext'), ('embedded',))
        """
        others = tuple(name for name in self.data if name != data) if data in self.data else ()
        return replace(self, data=others or (data,))


@dataclass(frozen=True)
class Scale:
    """`models` are descriptions or hub names by the name that a row has; `tables` are settings of every run, `overfit` those in
    which a run reads so little text so often that it gets worse again on what it has not read.
    """

    name: str
    models: Mapping[str, str]
    chosen: Mapping[str, tuple[str, ...]]
    tables: Mapping[str, Any]
    pre_training: PreTraining | None = None
    data: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"table1": CORPORA, "table2": CORPORA[1:]})
    device: str = "cpu"
    overfit: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether the models are made here."""
        return self.pre_training is not None


def _settings(rate: float, steps: int, length: int, validation: int, **data: Any) -> dict[str, Any]:
    return {
        "data": {"sequence_length": length, "validation_tokens": validation, **data},
        "pipeline": {"stages": 6, "micro_batches": 4, "micro_batch_size": 1},
        "optimizer": {"learning_rate": rate, "schedule": "constant", "warmup_steps": 3},
        "training": {"steps": steps},
    }


_TINY = {
    "GPT-2 small": "gpt2:layers=6,width=64,heads=4",
    "OPT": "opt:layers=6,width=64,heads=4",
    "BLOOM": "bloom:layers=6,width=64,heads=4",
    "GPT-2 wide": "gpt2:layers=6,width=96,heads=4",
}
_SMALL = {
    "GPT-2 small": "gpt2:layers=12,width=512,heads=8",
    "OPT": "opt:layers=12,width=512,heads=8",
    "BLOOM": "bloom:layers=12,width=512,heads=8",
    "GPT-2 wide": "gpt2:layers=12,width=768,heads=12",
}
_SMOKE = {
    "GPT-2": "gpt2:layers=6,width=16,heads=2",
    "OPT": "opt:layers=6,width=16,heads=2",
}
_PAPER = {
    "OPT-350M": "facebook/opt-350m",
    "BLOOM-560M": "bigscience/bloom-560m",
    "GPT2-1.5B": "openai-community/gpt2-xl",
    "BLOOM-7B": "bigscience/bloom-7b1",
}

SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            "tiny",
            _TINY,
            {"table1": ("OPT", "GPT-2 wide"), "table2": tuple(_TINY)},
            _settings(2e-3, 40, 64, 8192, train_part=FINE_TUNED, train_tokens=40_000),
            PreTraining(steps=700, vocabulary=1024),
            overfit={"data": {"train_tokens": 6000}, "training": {"steps": 120, "evaluate_every": 20}},
        ),
        Scale(
            "small",
            _SMALL,
            {"table1": ("OPT", "GPT-2 wide"), "table2": tuple(_SMALL)},
            {
                **_settings(3e-4, 300, 256, 65_536, train_part=FINE_TUNED, train_tokens=2_000_000),
                "model": {"dtype": "bfloat16"},
            },
            PreTraining(  # 8 M tokens: five times through the two other corpora; after nineteen it knew them by heart
                steps=1000,
                vocabulary=16_384,
                batch=32,
                sequence_length=256,
                tokens=4_000_000,
                learning_rate=5e-4,
                warmup_steps=200,
            ),
            device="cuda",
        ),
        Scale(
            "paper",
            _PAPER,
            {"table1": ("OPT-350M", "GPT2-1.5B"), "table2": tuple(_PAPER)},
            _settings(PAPER_RATE, 1000, 1024, 131_072),
            device="cuda",
        ),
        Scale(
            "smoke",
            _SMOKE,
            {"table1": tuple(_SMOKE), "table2": tuple(_SMOKE)},
            _settings(1e-3, 3, 16, 256, train_part=FINE_TUNED, train_tokens=2000),
            PreTraining(steps=5, vocabulary=300, data=("embedded",), batch=4, sequence_length=16, tokens=4000, warmup_steps=2),
            data={"table1": ("embedded",), "table2": ("embedded",)},
            overfit={"data": {"train_tokens": 200}, "training": {"steps": 4, "evaluate_every": 2}},
        ),
    )
}


def overfitted(scale: Scale) -> Scale:
    """The scale in which clean runs overfit, as the paper's did. Raises ConfigError where none is known."""
    if not scale.overfit:
        known = ", ".join(name for name, other in SCALES.items() if other.overfit)
        raise ConfigError(
            f"--overfit: nobody has looked for it at --scale {scale.name}; known are {known}, elsewhere say --steps and "
            "--set data.train_tokens=N"
        )
    tables = {**scale.tables, **{name: {**scale.tables.get(name, {}), **table} for name, table in scale.overfit.items()}}
    return replace(scale, tables=tables)
