"""The grid of a table: every model, data set, column and seed is a cell, and says by itself what is run.

seeds --> models --> data --> columns         cells of one row stand together: they share text, tokenizer and plan
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from holdfast.bench.paper.columns import BEFORE, CLEAN, COLUMNS, Column
from holdfast.bench.paper.pretrain import Starter
from holdfast.bench.paper.scale import SCALES, Scale, overfitted
from holdfast.config import RunConfig, resolve
from holdfast.errors import ConfigError, HoldfastError, SetupError
from holdfast.partition import describe
from holdfast.settings import merge
from holdfast.sweep.cell import TRAINING, Cell, Scalar
from holdfast.toml import assign

TABLES = tuple(COLUMNS)
EVALUATION = "evaluation"
"""The kind of a cell that looks at a starting model as it is."""


@dataclass(frozen=True)
class Question:
    """What is asked: the table, its scale, and what was chosen of it. `directories` hold models, by the name of their row,
    `chosen` names columns (none: all). `overfit` is told of a scale that reads little text over and over.
    """

    table: str
    scale: Scale
    models: tuple[str, ...]
    data: tuple[str, ...]
    seeds: range
    steps: int | None = None
    device: str = "cpu"
    assignments: tuple[str, ...] = ()
    directories: Mapping[str, str] | None = None
    chosen: tuple[str, ...] = ()
    overfit: bool = False

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(column for column in COLUMNS[self.table] if not self.chosen or column.name in self.chosen)

    @property
    def rows(self) -> list[tuple[str, str]]:
        return [(model, data) for model in self.models for data in self.data]

    def starter(self, model: str, data: str) -> Starter | None:
        """How the model of a row is made, or None where it is given."""
        recipe = self.scale.pre_training
        if recipe is None or model in (self.directories or {}):
            return None
        return Starter(self.scale.models[model], recipe.for_row(data), self.device)

    def start(self, model: str, data: str) -> str:
        """What `model.name` is in the cells of a row: below the store for a model that is made here."""
        starter = self.starter(model, data)
        return starter.name if starter is not None else (self.directories or {}).get(model, self.scale.models[model])


def ask(
    table: str,
    scale: str,
    *,
    models: Sequence[str] = (),
    data: Sequence[str] = (),
    seeds: range = range(1),
    directories: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
    overfit: bool = False,
    **more: Any,
) -> Question:
    """A question with what the scale says where nothing was chosen. Raises ConfigError for names that it does not know."""
    if scale not in SCALES:
        raise ConfigError(f"--scale {scale!r}: known are {', '.join(SCALES)}")
    chosen = overfitted(SCALES[scale]) if overfit else SCALES[scale]
    known = [column.name for column in COLUMNS[table]]
    for name in columns:
        if name not in known:
            raise ConfigError(f"--columns {name!r}: {table} has {', '.join(map(repr, known))}")
    if columns and CLEAN not in columns:
        columns = (CLEAN, *columns)
    for name in (*models, *(directories or {})):
        if name not in chosen.models:
            raise ConfigError(f"no model {name!r} at --scale {scale}; there are {', '.join(map(repr, chosen.models))}")
    more.setdefault("device", chosen.device)
    return Question(
        table,
        chosen,
        tuple(models) or chosen.chosen[table],
        tuple(data) or chosen.data[table],
        seeds,
        directories=directories,
        chosen=tuple(columns),
        overfit=overfit,
        **more,
    )


def cells_of(question: Question) -> list[Cell]:
    """Every cell, in the order in which they are run; the starting model is looked at once. Raises ConfigError."""
    starts = {row: question.start(*row) for row in question.rows}
    found = []
    for seed in question.seeds:
        for model, data in question.rows:
            tables = _row(question, starts[model, data], data, seed)
            for column in question.columns:
                if column.name != BEFORE or seed == question.seeds[0]:
                    found.append(_cell(question, tables, column, {"model": model, "data": data}, seed))
    return found


def _row(question: Question, start: str, data: str, seed: int) -> dict[str, Any]:
    """Settings that all columns of a row have."""
    given = {"steps": question.steps, "device": question.device, "seed": seed, "data": data}
    tables = merge(question.scale.tables, given)
    tables["model"] = {**tables.get("model", {}), "name": start}
    return assign(tables, question.assignments)


def _cell(question: Question, row: Mapping[str, Any], column: Column, place: Mapping[str, str], seed: int) -> Cell:
    plain = resolve(row)
    tables = dict(row)
    for section, values in column.settings(seed, plain.pipeline.stages, plain.training.steps).items():
        tables[section] = {**tables.get(section, {}), **values} if isinstance(values, dict) else values
    config = resolve(tables)
    axes: dict[str, Scalar] = {**place, "column": column.name, "seed": 0 if column.name == BEFORE else seed}
    looked_at = column.name == BEFORE
    return Cell({"scale": question.scale.name, **axes}, _plain(config, column), EVALUATION if looked_at else TRAINING)


def _plain(config: RunConfig, column: Column) -> dict[str, Any]:
    """The whole configuration; what the starting model is worth depends on nothing but model and text."""
    tables = config.model_dump(mode="json", exclude_none=True)
    if column.name == BEFORE:
        tables = {name: tables[name] for name in ("model", "data")}
    return tables


def check_models(question: Question) -> None:
    """Raise SetupError naming every model that is neither here nor on a hub that can be reached, and how to give it."""
    given = dict.fromkeys(
        (model, question.start(model, data)) for model, data in question.rows if not question.starter(model, data)
    )
    lacking = {model: (name, why) for model, name in given if (why := _why_not(name))}
    if lacking:
        names = ", ".join(f"{name} ({model})" for model, (name, _) in lacking.items())
        model, (hub, why) = next(iter(lacking.items()))
        raise SetupError(
            f"--scale {question.scale.name} fine-tunes {names}, which cannot be had here. Where there is a network run "
            f"`hf download {hub} --local-dir DIR`, then give --model-dir '{model}=DIR', and so for each. ({why})"
        )


def _why_not(name: str) -> str:
    """Why a given model cannot be loaded; nothing where it can. A hub without an address is not asked, which takes a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if not Path(name).is_dir() and not isinstance(try_to_load_from_cache(name, "config.json"), str):
        host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            return f"the hub {host} cannot be reached: {error.strerror or error}"
    try:
        describe(name)
    except HoldfastError as error:
        return str(error)
    return ""
