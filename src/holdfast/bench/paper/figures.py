"""The paper's own figures: validation perplexity after fine-tuning, as printed. Never mixed with those of another scale.

Source: Lu et al., "Exploring the Robustness of Decentralized Training for Large Language Models", tables 1 and 2; the defended
column is the paper's efficient training, which is the remedy `skip` here. Stated settings: K = 6, learning rate 5e-6, batch 4,
micro-batch 1, no dropout. It states neither the length of the sequences, nor the number of steps, nor any spread over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping

_TABLE1: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("OPT-350M", "wikitext2"): (29.77, 24.82, 52.37, 27.73, 2128.31),
    ("OPT-350M", "arxiv"): (22.61, 20.90, 1383.81, 56.14, 1384.22),
    ("OPT-350M", "openwebtext"): (41.38, 38.30, 3578.41, 355.31, 3584.42),
    ("GPT2-1.5B", "wikitext2"): (40.05, 56.43, 2503.65, 25.454, 788.4),
    ("GPT2-1.5B", "arxiv"): (35.34, 28.89, 843.38, 23.42, 275.4),
    ("GPT2-1.5B", "openwebtext"): (53.41, 988.80, 3226.01, 104.87, 2064.69),
}
"""Clean, forward at 0.3 and 0.7, backward at 0.3 and 0.7."""

_TABLE2: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("OPT-350M", "arxiv"): (22.61, 601.92, 19.31),
    ("OPT-350M", "openwebtext"): (41.38, 3563.56, 34.85),
    ("BLOOM-560M", "arxiv"): (67.15, 1682.94, 22.54),
    ("BLOOM-560M", "openwebtext"): (122.25, 3984.84, 61.65),
    ("GPT2-1.5B", "arxiv"): (35.34, 185.11, 19.12),
    ("GPT2-1.5B", "openwebtext"): (53.41, 2435.17, 36.56),
    ("BLOOM-7B", "arxiv"): (59.06, 818.43, 27.91),
    ("BLOOM-7B", "openwebtext"): (102.94, 3077.24, 52.62),
}
"""Clean, forward at 0.5 without a defence, the same with the paper's."""

_COLUMNS = {
    "table1": (_TABLE1, ("clean", "forward 0.3", "forward 0.7", "backward 0.3", "backward 0.7")),
    "table2": (_TABLE2, ("clean", "forward 0.5", "forward 0.5, skip")),
}


def printed(table: str, model: str, data: str) -> Mapping[str, float]:
    """What the paper prints for a model and a data set, by column; empty where it has no such row.

    >>> printed("table2", "OPT-350M", "arxiv")["forward 0.5, skip"]
    19.31
    """
    rows, columns = _COLUMNS[table]
    return dict(zip(columns, rows.get((model, data), ()), strict=False))
