"""A cell is one run of a grid: what a reader sees of it (axes), all that decides its result (tables), and a hash of the latter.

    axes      attack = "sign-flip", rate = 0.7, seed = 3
    tables    {"training": {"seed": 3}, "attack": [{"spec": "sign-flip", "rate": 0.7}], ...}
    more      what else decides the result: what an experiment measures that is no setting of a run
    key       sha256 over the resolved settings, the content of the files that they name, and `more`

Two cells with one key have one result, whatever their axes are called and wherever their files lie.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from holdfast.config import RunConfig, resolve
from holdfast.sweep.content import with_contents
from holdfast.toml import toml_literal, toml_value

Scalar = str | int | float | bool | None

SCHEMA = 1
"""Part of every key: a version that computes other results from the same settings raises it."""
TRAINING = "training"
"""The kind of a cell that is one run, measured by what `train --json` says of it."""


@dataclass(frozen=True)
class Cell:
    """`tables` are what `holdfast.config.resolve` takes, the seed included. `kind` names what is measured, where that is more
    than a run: cells of two kinds never share a result. `more` has plain (JSON) values.
    """

    axes: Mapping[str, Scalar]
    tables: Mapping[str, Any] = field(compare=False)
    kind: str = TRAINING
    more: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> RunConfig:
        """The resolved settings, without those of the output. Raises ConfigError."""
        return resolve({name: table for name, table in self.tables.items() if name != "output"})

    @cached_property
    def key(self) -> str:
        """64 hexadecimal digits. Raises ConfigError for settings that are refused, DataError for a file that is unreadable."""
        settings = self.config.model_dump(mode="json", exclude={"output": True, "machines": {"metrics", "expose_metrics"}})
        told = {"schema": SCHEMA, "kind": self.kind, "settings": with_contents(settings), "more": self.more}
        return hashlib.sha256(json.dumps(told, sort_keys=True, allow_nan=False).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The axes in words, without those that say nothing.

        >>> Cell({"attack": "sign-flip", "rate": 0.5, "way": ""}, {}).name
        'attack sign-flip, rate 0.5'
        """
        return in_words(self.axes) or self.key[:12]

    @property
    def command(self) -> str:
        """The command line that repeats this run alone: everything that is not a default is said."""
        return command_of(self.config)


def in_words(axes: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{axis} {shown(value)}" for axis, value in axes.items() if value != "")


def shown(value: Scalar) -> str:
    """A value of an axis, for people.

    >>> shown(0.30000000000000004), shown(None), shown(True)
    ('0.3', '–', 'yes')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def command_of(config: RunConfig) -> str:
    """`holdfast train` with the settings of `config` that are no defaults, but for those of the output.

    >>> command_of(resolve({"training": {"steps": 5}, "attack": ({"spec": "sign-flip", "rate": 0.5},)}))
    'holdfast train --attack sign-flip,rate=0.5 --set training.steps=5'
    """
    tables = config.model_dump(mode="json", exclude={"output"})
    words = ["holdfast", "train"]
    for attack in tables.pop("attack"):
        words += ["--attack", _spelled(attack)]
    for fault in tables.pop("faults"):
        words += ["--fault", fault]
    usual = RunConfig().model_dump(mode="json")
    for section, table in tables.items():
        for key, value in table.items():
            if value is not None and value != usual[section][key]:
                words += ["--set", f"{section}.{key}={value if _bare(value) else toml_literal(value)}"]
    return shlex.join(words)


def _spelled(attack: Mapping[str, Any]) -> str:
    """An attack with its campaign, as after `--attack`."""
    usual = {"rate": 1.0, "first_step": 0, "persistent": False}
    told = [str(attack["spec"])]
    for key, value in attack.items():
        if key != "spec" and value is not None and value != usual.get(key):
            several = isinstance(value, list)
            told.append(f"{key}={'+'.join(map(str, value)) if several else value if key == 'worker' else toml_literal(value)}")
    return ",".join(told)


def _bare(value: Any) -> bool:
    """Whether a string is itself after `--set key=`, and no number or table."""
    return isinstance(value, str) and toml_value(value) == value and value == value.strip() != ""
