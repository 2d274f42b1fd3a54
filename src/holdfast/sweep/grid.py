"""From a grid to its cells: axes x named cases x seeds, each resolved before the first of them runs.

base = "run.toml"                        the settings that all cells have: a file beside this one, or [base] tables
seeds = 3                                0, 1, 2; or a list

[grid]                                   every combination
attack = ["none", "sign-flip"]           specs as after --attack; a list in the list: several at once
rate = [0.3, 0.7]                        of all attacks; a cell without one has no rate
defence = ["none", "duplicate,on_alert=skip"]      a name, with settings of [defence]
"optimizer.learning_rate" = [1e-3, 3e-3]           any setting, by its short name or its path

[[case]]                                 a named row that changes several settings together
name = "skip"
defence = "duplicate"
on_alert = "skip"

[[skip]]                                 combinations to leave out
attack = "none"
defence = "duplicate,on_alert=skip"
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.config import RunConfig
from holdfast.errors import ConfigError, HoldfastError
from holdfast.settings import SECTIONS, SETTINGS, add_attacks, merge, split_attack
from holdfast.sweep.cell import Cell, Scalar
from holdfast.toml import read_toml

NONE = "none"
"""Stands for no attack, and for no fault."""
CASE, SEED = "case", "seed"
CAMPAIGN = ("rate", "attack_stages")
"""Axes that say how an attack strikes; None in a cell where nobody lies."""
MOST_CELLS = 100_000
NO_CASE: Sequence[Mapping[str, Any] | None] = (None,)


@dataclass(frozen=True)
class Grid:
    """Cells in the order in which they run, seed by seed; `axes` are their columns, `text` the file that they come from."""

    name: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    text: str = ""


def read_grid(path: Path) -> Grid:
    """The cells of a SWEEP.toml. Raises ConfigError naming table and value."""
    tables = read_toml(path)
    known = {"name", "base", "seeds", "grid", CASE, "skip"}
    for key in tables.keys() - known:
        raise ConfigError(f"{path}: unknown {key!r}; a sweep has {', '.join(sorted(known))}")
    base = tables.get("base", {})
    if isinstance(base, str):
        base = read_toml(path.parent / base)
        if isinstance(base.get("training"), dict):
            base["training"].pop(SEED, None)  # a run's own; the sweep has several
    given = {key: tables[key] for key in ("seeds", "grid", "skip") if key in tables}
    grid = make_grid(base, **given, cases=tables.get(CASE, ()), name=str(tables.get("name", path.stem)))
    return Grid(grid.name, grid.axes, grid.cells, path.read_text(encoding="utf-8"))


def make_grid(
    base: Mapping[str, Any],
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    cases: Iterable[Mapping[str, Any]] = (),
    seeds: int | Iterable[int] = 1,
    skip: Iterable[Mapping[str, Any]] = (),
    name: str = "sweep",
) -> Grid:
    """All cells: `base` are tables, `grid` has the values of each axis, a case has `name` and settings. Raises ConfigError."""
    axes = _axes(grid or {})
    rows = _cases(cases, axes)
    drawn = _seeds(seeds)
    if SEED in base or SEED in (base.get("training") or {}):
        raise ConfigError("[base] has a seed; say seeds = N or seeds = [0, 1, 2] at the top of the sweep")
    base = {key: value for key, value in base.items() if key != "output"}
    columns = (*([CASE] if rows else []), *axes, SEED)
    out = _skips(skip, axes, rows)
    count = len(drawn) * max(1, len(rows)) * _product(len(values) for values in axes.values())
    if count > MOST_CELLS:
        raise ConfigError(f"the grid has {count:,} combinations; at most are {MOST_CELLS:,}: give shorter lists")
    cells: dict[tuple[Scalar, ...], Cell] = {}
    for seed, row, *values in itertools.product(drawn, rows or NO_CASE, *axes.values()):
        cell = _cell(base, row, dict(zip(axes, values, strict=True)), seed)
        if not any(all(cell.axes[axis] in wanted for axis, wanted in rule.items()) for rule in out):
            cells.setdefault(tuple(cell.axes.values()), cell)
    if not cells:
        raise ConfigError("no cell is left: [[skip]] leaves out every combination of the grid")
    for cell in cells.values():
        _check(cell)
    return Grid(name, columns, tuple(cells.values()))


def _cell(base: Mapping[str, Any], case: Mapping[str, Any] | None, values: Mapping[str, Any], seed: int) -> Cell:
    settings = {**{key: value for key, value in (case or {}).items() if key != "name"}, **values}
    where = "[[case]]" if case is not None else "[grid]"
    tables = _apply(base, settings, where)
    tables["training"] = {**tables.get("training", {}), SEED: seed}
    lies = bool(tables.get("attack"))
    axes = {axis: None if axis in CAMPAIGN and not lies else label(value) for axis, value in values.items()}
    return Cell({**({CASE: case["name"]} if case is not None else {}), **axes, SEED: seed}, tables)


def _apply(base: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tables with these settings: attacks first, so that their rate finds them."""
    tables = {name: dict(table) if isinstance(table, Mapping) else table for name, table in base.items()}
    for name in sorted(settings, key=lambda name: (name != "attack", name in CAMPAIGN)):
        try:
            tables = _place(tables, name, settings[name])
        except ConfigError as error:
            raise ConfigError(f"{where} {name} = {settings[name]!r}: {error}") from None
    return tables


def _place(tables: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    if name == "attack":
        return {**tables, "attack": _attacks(value)}
    if name in CAMPAIGN:
        if not tables.get("attack"):
            return tables
        rate, stages = (value, None) if name == "rate" else (None, str(value))
        return add_attacks(tables, (), rate, stages)
    if name == "defence" and isinstance(value, str):
        from holdfast.settings import defence_tables

        for section, found in defence_tables(value).items():
            tables[section] = {**tables.get(section, {}), **found}
        return tables
    if name in ("fault", "faults"):
        return {**tables, "faults": () if value == NONE else (value,) if isinstance(value, str) else tuple(value)}
    if "." in name:
        section, _, key = name.partition(".")
        if not isinstance(tables.setdefault(section, {}), dict):
            raise ConfigError(f"{section!r} is no table of settings")
        return {**tables, section: {**tables[section], key: value}}
    return merge(tables, {name: value})


def _attacks(value: Any) -> tuple[dict[str, Any], ...]:
    if value == NONE:
        return ()
    several = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(spec, str) for spec in several):
        raise ConfigError("an attack of a sweep is a name or file.py:Class with parameters, since its content is hashed")
    return tuple(split_attack(spec) for spec in several)


def label(value: Any) -> Scalar:
    """A value of an axis as one word.

    >>> label(["sign-flip", "gaussian"]), label(0.3)
    ('sign-flip + gaussian', 0.3)
    """
    if isinstance(value, list | tuple):
        return " + ".join(str(each) for each in value) or NONE
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _axes(grid: Mapping[str, Any]) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping):
        raise ConfigError(f"[grid] is a table of lists, got {grid!r}")
    for name, values in grid.items():
        _check_name(name, "[grid]")
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"[grid] {name} = {values!r}: needed is a list of values, for example {name} = [{values!r}]")
        twice = [value for index, value in enumerate(values) if value in values[:index]]
        if twice:
            raise ConfigError(f"[grid] {name} has {twice[0]!r} twice")
    return {name: list(values) for name, values in grid.items()}


def _cases(given: Any, axes: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(given, Iterable) or isinstance(given, str | Mapping):
        raise ConfigError("case: needed are tables, each [[case]] with a name")
    rows: list[dict[str, Any]] = []
    for case in given:
        if not isinstance(case, Mapping) or not isinstance(case.get("name"), str) or not case["name"].strip():
            raise ConfigError(f"[[case]] {case!r}: it needs a name, a string")
        if any(case["name"] == other["name"] for other in rows):
            raise ConfigError(f"[[case]] name = {case['name']!r} stands there twice")
        for name in case.keys() - {"name"}:
            _check_name(name, f"[[case]] {case['name']!r}:")
            if name in axes:
                raise ConfigError(f"[[case]] {case['name']!r} sets {name!r}, which [grid] sets too; leave it to one of them")
        rows.append(dict(case))
    return rows


def _check_name(name: str, where: str) -> None:
    section = name.partition(".")[0]
    if name in (SEED, "training.seed"):
        raise ConfigError(f"{where} {name}: say seeds = N or seeds = [0, 1, 2] at the top of the sweep")
    if section == "output" or any(name == setting.name and setting.path.startswith("output.") for setting in SETTINGS):
        raise ConfigError(f"{where} {name}: a sweep keeps its results itself; there is nothing to set")
    if "." in name and section not in SECTIONS:
        raise ConfigError(f"{where} {name}: no section {section!r}; there are {', '.join(SECTIONS)}")
    known = {setting.name for setting in SETTINGS} | {"attack", "faults", *CAMPAIGN}
    if "." not in name and name not in known:
        raise ConfigError(f"{where} {name}: unknown setting; known are {', '.join(sorted(known))}, or section.key")


def _seeds(given: Any) -> list[int]:
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return list(range(given))
    found = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    if not found or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in found):
        raise ConfigError(f"seeds = {given!r}: needed is how many (1 or more), or a list of numbers from 0")
    if len(set(found)) != len(found):
        raise ConfigError(f"seeds = {given!r} has a seed twice")
    return found


def _skips(given: Any, axes: Mapping[str, Sequence[Any]], cases: Sequence[Mapping[str, Any]]) -> list[dict[str, list[Scalar]]]:
    """Which values of which axes a left-out cell has, as labels."""
    if not isinstance(given, Iterable) or isinstance(given, str | Mapping):
        raise ConfigError("skip: needed are tables, each [[skip]] with values of axes")
    there = {axis: [*map(label, values), *([None] if axis in CAMPAIGN else [])] for axis, values in axes.items()}
    there |= {CASE: [str(case["name"]) for case in cases]} if cases else {}
    rules = []
    for rule in given:
        if not isinstance(rule, Mapping) or not rule:
            raise ConfigError(f'[[skip]] {rule!r}: it needs values of axes, for example attack = "none"')
        wanted = {axis: [label(v) for v in (value if isinstance(value, list) else [value])] for axis, value in rule.items()}
        for axis, values in wanted.items():
            if axis not in there:
                raise ConfigError(f"[[skip]] {axis}: no such axis; the grid has {', '.join(there) or 'none'}")
            for value in values:
                if value not in there[axis]:
                    raise ConfigError(f"[[skip]] {axis} = {value!r}: the axis has {', '.join(map(str, there[axis]))}")
        rules.append(wanted)
    return rules


def _check(cell: Cell) -> None:
    """Resolve a cell, and look at its attacks, its remedy, its faults and the files that it names."""
    from holdfast.cast import Troupe
    from holdfast.settings import check_available

    try:
        config: RunConfig = cell.config
        check_available(config)
        Troupe(config)
        _ = cell.key
    except HoldfastError as error:
        place = ", ".join(f"{axis} = {value!r}" for axis, value in cell.axes.items() if axis != SEED)
        raise ConfigError(f"the cell {place or '[base]'}: {error}") from None


def _product(counts: Iterable[int]) -> int:
    total = 1
    for count in counts:
        total *= count
    return total
