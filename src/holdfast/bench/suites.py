"""The grids of the experiment by name, and from a grid to its cells.

suite       question
quick       does the experiment itself work? a few attacks whose truth is known
catalogue   every attack that there is against every defence: what is caught, what is missed, at what cost
blame       who is named, where the liar's lie is about somebody else, or about nothing
collusion   how often spot checks find two neighbours who agree, against 1-(1-p)^n
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from holdfast.attacks import ATTACKS, resolve_attack
from holdfast.bench.cell import ALL_STAGES, HONEST, UNCHECKED, Cell, Setup, config_of, directions_of, honest_cell, is_lottery
from holdfast.errors import ConfigError
from holdfast.settings import split_attack

DEFENCES: tuple[str, ...] = (
    "none",
    "duplicate",
    "duplicate-only",
    "duplicate,check_claims=0.1",
    "spot-check,check_steps=0.1",
    "statistics,check_steps=0.1",
    "duplicate,cluster.numerics=native+split-sums+native+math-attention+native+native",
)
"""What the catalogue is held against; in the last one the two holders of every stage compute with other bytes."""

PLANTED = ("task-vector", "trigger")
"""What they plant is made beforehand; `holdfast bench backdoor` does that, and measures them."""

SPOT_CHECKS: tuple[str, ...] = tuple(f"duplicate,check_claims={p}" for p in (0.01, 0.02, 0.05, 0.1))
"""Two neighbours who agree pass every check that they make of one another; each claim is re-executed with probability p."""


@dataclass(frozen=True, slots=True)
class Grid:
    """All combinations, and for each defence the honest run; without `directions`, each attack's own default."""

    attacks: tuple[str, ...]
    defences: tuple[str, ...]
    stages: tuple[str, ...] = (ALL_STAGES,)
    directions: tuple[str, ...] = ()
    rates: tuple[float, ...] = (0.5,)
    seeds: range = range(3)


@dataclass(frozen=True, slots=True)
class Suite:
    """A grid that has a name, and the number of steps that it needs."""

    grid: Grid
    steps: int = 4


SUITES: Mapping[str, Suite] = {
    "quick": Suite(
        Grid(("sign-flip", "gaussian", "wrong-update", "framing"), DEFENCES[:3], rates=(1.0,), seeds=range(1)), steps=2
    ),
    "catalogue": Suite(Grid(tuple(name for name in ATTACKS if name not in PLANTED), DEFENCES, seeds=range(3)), steps=8),
    "blame": Suite(
        Grid(
            ("framing", "equivocation", "flood", "lazy,mode=copy,direction=all"), ("duplicate",), rates=(1.0,), seeds=range(100)
        ),
    ),
    "collusion": Suite(Grid(("collusion",), ("duplicate", *SPOT_CHECKS), seeds=range(100)), steps=8),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells to run, the clean ones first; `impossible` are those of a suite that this version cannot run, and why."""

    cells: tuple[Cell, ...]
    impossible: Mapping[Cell, str]


def plan(grid: Grid, setup: Setup, typed: frozenset[str] = frozenset()) -> Plan:
    """Every cell of the grid, every clean run that one of them is held against, and for spot checks the run without.

    What a suite names and this version lacks becomes an impossible cell; what a user has `typed`, and any setting that is
    refused, raises ConfigError.
    """
    config_of(honest_cell(UNCHECKED, grid.seeds[0]), setup)
    lacking = {name: why for name in grid.attacks if (why := _lacks_attack(name)) is not None}
    lacking |= {name: why for name in grid.defences if (why := _lacks_defence(name, setup)) is not None}
    for name in typed & lacking.keys():
        raise ConfigError(lacking[name])
    cells: list[Cell] = []
    impossible: dict[Cell, str] = {}
    for cell in _cells(grid, lacking):
        why = lacking.get(cell.attack) or lacking.get(cell.defence)
        if why is not None:
            impossible[cell] = why
            continue
        cells += [cell.unhindered(), cell] if is_lottery(config_of(cell, setup)) else [cell]
    clean = sorted({cell.clean() for cell in cells}, key=lambda cell: cell.seed)
    return Plan(tuple(dict.fromkeys([*clean, *cells])), impossible)


def _cells(grid: Grid, lacking: Mapping[str, str]) -> list[Cell]:
    """In the order of the seeds, so that what is prepared for one serves all its cells."""
    cells = []
    for seed in grid.seeds:
        for defence in grid.defences:
            cells.append(honest_cell(defence, seed))
            for attack in grid.attacks:
                if attack == HONEST:
                    continue
                if attack in lacking:
                    cells.append(Cell(attack, ALL_STAGES, "?", grid.rates[0], defence, seed))
                    continue
                cells += [
                    _placed(Cell(attack, stage, direction, rate, defence, seed))
                    for stage in grid.stages
                    for direction in directions_of(attack, grid.directions)
                    for rate in grid.rates
                ]
    return list(dict.fromkeys(cells))


def _placed(cell: Cell) -> Cell:
    """A rate and stages that stand in the attack's own spec go before those of the grid."""
    table = split_attack(cell.attack)
    stage = "+".join(str(stage) for stage in table["stages"]) if "stages" in table else cell.stage
    return replace(cell, rate=table.get("rate", cell.rate), stage=stage)


def _lacks_attack(spec: str) -> str | None:
    try:
        if spec != HONEST:
            resolve_attack(split_attack(spec)["spec"])
    except ConfigError as error:
        return str(error)
    return None


def _lacks_defence(spec: str, setup: Setup) -> str | None:
    try:
        config_of(honest_cell(spec, 0), setup)
    except ConfigError as error:
        return str(error)
    return None
