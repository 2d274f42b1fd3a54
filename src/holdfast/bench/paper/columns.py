"""The columns of a table: what a run is up against, and what it does about it.

    before            the starting model as it is
    clean             fine-tuned, nobody lies
    dropout           the same with dropout: the usual regularisation
    depth             nobody lies, but the steps and stages that `skip` would leave out are left out: stochastic depth
    ATTACK RATE       nobody checks
    ATTACK RATE, R    the duplicated block with the remedy R: skip (the paper's efficient training), restart, replace

The draws (in which step which stage lies) are the same in all columns of a seed; a lower rate strikes a part of those steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast import seeds
from holdfast.attacks import Campaign

BEFORE, CLEAN, DROPOUT, DEPTH = "before", "clean", "dropout", "depth"
DROPOUT_RATE = 0.1
"""Of GPT-2, OPT and BLOOM where they were trained."""
REMEDIES = ("skip", "restart", "replace")
ATTACKS = {
    "forward": ("sign-flip",),
    "backward": ("gaussian",),
    "both": ("sign-flip", "gaussian"),
}


@dataclass(frozen=True)
class Column:
    """`attack` is a key of ATTACKS (empty: nobody lies), `remedy` one of REMEDIES (empty: nobody checks)."""

    name: str
    attack: str = ""
    rate: float = 0.0
    remedy: str = ""

    def settings(self, seed: int, stages: int, steps: int) -> dict[str, Any]:
        """Tables that this column adds to those of its row."""
        strikes = seeds.derive(seed, "strikes") % 2**31
        tables: dict[str, Any] = {"defence": {"name": "none"}}
        if self.remedy:
            tables["defence"] = {"name": "duplicate", "on_alert": self.remedy}
        if self.attack:
            tables["attack"] = tuple({"spec": spec, "rate": self.rate, "seed": strikes} for spec in ATTACKS[self.attack])
        if self.name == DROPOUT:
            tables["model"] = {"dropout": DROPOUT_RATE}
        if self.name == DEPTH:
            campaign = Campaign(tuple(range(1, stages - 1)), rate=self.rate, seed=strikes)
            drawn = ((step, campaign.strike(step)) for step in range(steps))
            tables["training"] = {"bypass": tuple((step, stage) for step, stage in drawn if stage is not None)}
        return tables


def _attacked(attack: str, rate: float, *remedies: str) -> list[Column]:
    name = f"{attack} {rate:g}"
    return [Column(name, attack, rate), *(Column(f"{name}, {remedy}", attack, rate, remedy) for remedy in remedies)]


COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "table1": (
        Column(BEFORE),
        Column(CLEAN),
        *_attacked("forward", 0.3),
        *_attacked("forward", 0.7),
        *_attacked("backward", 0.3),
        *_attacked("backward", 0.7),
        Column("both 0.7, replace", "both", 0.7, "replace"),
    ),
    "table2": (
        Column(BEFORE),
        Column(CLEAN),
        Column(DROPOUT),
        Column(DEPTH, rate=0.5),
        *_attacked("forward", 0.5, *REMEDIES),
        *_attacked("backward", 0.5, *REMEDIES),
        *_attacked("both", 0.5, *REMEDIES),
    ),
}
