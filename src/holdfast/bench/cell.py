"""A cell is one run of the experiment on detection: attack x stage x direction x rate x defence x seed, and its settings.

    spec of an attack    sign-flip,factor=2        as after `train --attack`; `honest` is the run in which nobody lies
    spec of a defence    spot-check,check_steps=0.1
                         duplicate,on_alert=skip,cluster.speeds=1+1+1+1+1+1
                         a name, then settings of the table [defence], or of another one by its path; `+` joins a list

Whatever the version at hand can be configured to do is a defence here: a new one needs no code.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from holdfast.attacks import resolve_attack
from holdfast.cast import Troupe
from holdfast.config import RunConfig, resolve
from holdfast.errors import ConfigError
from holdfast.settings import check_available, defence_tables, merge, numbers, split_attack
from holdfast.toml import assign, parse_spec

HONEST = "honest"
"""Stands for an attack where nobody lies: what false alarms and the defence's own cost are measured on."""
ALL_STAGES = "all"
NO_DIRECTION = "-"
UNCHECKED = "none"
DUPLICATES = ("duplicate", "duplicate-only")
LOTTERY = ("check_claims", "check_steps")

SCALES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "model": {"name": "gpt2:layers=6,width=16,heads=2"},
        "data": {"name": "synthetic", "sequence_length": 8, "vocabulary": 300, "validation_tokens": 64},
        "pipeline": {"stages": 6, "micro_batches": 2, "micro_batch_size": 2},
        "optimizer": {"clip_norm": 0.1, "warmup_steps": 2},
    },
    "small": {
        "model": {"name": "gpt2:layers=6,width=64,heads=4"},
        "data": {"name": "synthetic", "sequence_length": 64, "vocabulary": 512, "validation_tokens": 1024},
        "pipeline": {"stages": 6, "micro_batches": 4, "micro_batch_size": 4},
        "optimizer": {"clip_norm": 1.0, "warmup_steps": 2},
    },
}
"""Models that the experiment is run with; what is measured is counted in claims, so that size changes cost alone."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all cells of an experiment have in common; `assignments` are `section.key=value`."""

    scale: str = "tiny"
    steps: int = 4
    micro_batches: int | None = None
    assignments: tuple[str, ...] = ()

    def tables(self) -> dict[str, Any]:
        if self.scale not in SCALES:
            raise ConfigError(f"--scale {self.scale!r}: known are {', '.join(SCALES)}")
        return assign(merge(SCALES[self.scale], {"steps": self.steps, "micro_batches": self.micro_batches}), self.assignments)

    def options(self) -> list[str]:
        words = ["--scale", self.scale, "--steps", str(self.steps)]
        words += [] if self.micro_batches is None else ["--micro-batches", str(self.micro_batches)]
        return words + [word for text in self.assignments for word in ("--set", text)]


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """`stage` is `all` or as after `--attack-stages`; `direction` is one that the attack knows (`-` where nobody lies)."""

    attack: str
    stage: str
    direction: str
    rate: float
    defence: str
    seed: int

    @property
    def honest(self) -> bool:
        return self.attack == HONEST

    def clean(self) -> Cell:
        """The run that this one is held against: nobody lies, nobody checks, the rest of the settings is the same."""
        elsewhere = [
            pair for pair in self.defence.split(",")[1:] if "." in _key(pair) and not _key(pair).startswith("defence.")
        ]
        return honest_cell(",".join([UNCHECKED, *elsewhere]), self.seed)

    def unhindered(self) -> Cell:
        """The same lies without spot checks: how many of them there are to be found. Accomplices need their duplicates."""
        if self.defence.partition(",")[0] not in DUPLICATES:
            return replace(self, defence=self.clean().defence)
        kept = [pair for pair in self.defence.split(",") if _key(pair).removeprefix("defence.") not in LOTTERY]
        return replace(self, defence=",".join(kept))

    def command(self, setup: Setup) -> str:
        """The command line that runs this cell alone."""
        words = ["holdfast", "bench", "detection", "--attack", self.attack, "--defence", self.defence]
        if not self.honest:
            words += ["--stages", self.stage, "--direction", self.direction, "--rate", f"{self.rate:g}"]
        return shlex.join([*words, "--first-seed", str(self.seed), "--seeds", "1", *setup.options()])

    @property
    def place(self) -> str:
        """All but the seed, in words."""
        what = self.attack if self.honest else f"{self.label}, stage {self.stage}, rate {self.rate:g},"
        return f"{what} against {self.defence}"

    def __str__(self) -> str:
        return f"{self.place}, seed {self.seed}"

    @property
    def label(self) -> str:
        """Attack and direction, the direction named once."""
        named = self.honest or "direction=" in self.attack
        return self.attack if named else f"{self.attack} {self.direction}"


def honest_cell(defence: str, seed: int) -> Cell:
    """The run in which nobody lies."""
    return Cell(HONEST, ALL_STAGES, NO_DIRECTION, 0.0, defence, seed)


def directions_of(attack: str, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The directions that a grid has for an attack: its spec's, else those that are `wanted`, else its own default.

    Raises ConfigError for an attack that does not exist, or does not know a direction.
    """
    if attack == HONEST:
        return (NO_DIRECTION,)
    table = split_attack(attack)
    misconduct = resolve_attack(table["spec"])
    if "direction" in parse_spec(table["spec"])[1] or not wanted:
        return (misconduct.direction,)
    every = tuple(misconduct.choices) if tuple(wanted) == ("every",) else tuple(wanted)
    return tuple(resolve_attack(f"{table['spec']},direction={direction}").direction for direction in every)


def config_of(cell: Cell, setup: Setup) -> RunConfig:
    """The configuration of the cell's run. Raises ConfigError for what does not exist, or not in this version."""
    tables = merge(setup.tables(), {"seed": cell.seed})
    for section, values in defence_tables(cell.defence).items():
        tables[section] = {**tables.get(section, {}), **values}
    if not cell.honest:
        tables["attack"] = (_attack_table(cell),)
    config = resolve(tables)
    check_available(config)
    Troupe(config)
    return config


def is_lottery(config: RunConfig) -> bool:
    """Whether its spot checks are drawn with fixed probabilities (statistics of traffic raise them)."""
    return config.spot_checked and config.defence_name != "statistics"


def _attack_table(cell: Cell) -> dict[str, Any]:
    table = split_attack(cell.attack)
    if "direction" not in parse_spec(table["spec"])[1]:
        table["spec"] += f",direction={cell.direction}"
    if cell.stage != ALL_STAGES:
        table["stages"] = numbers(cell.stage, "--stages")
    return {"rate": cell.rate, **table}


def _key(pair: str) -> str:
    return pair.partition("=")[0].strip().replace("-", "_")
