"""From SWEEP.toml to cells, and what is refused with table and value named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError
from holdfast.sweep import make_grid, read_grid


def test_every_combination_seed_by_seed() -> None:
    grid = make_grid({}, grid={"attack": ["none", "sign-flip"], "rate": [0.3, 0.7]}, seeds=[4, 7])
    assert grid.axes == ("attack", "rate", "seed")
    assert [tuple(cell.axes.values()) for cell in grid.cells] == [
        ("none", None, 4),
        ("sign-flip", 0.3, 4),
        ("sign-flip", 0.7, 4),
        ("none", None, 7),
        ("sign-flip", 0.3, 7),
        ("sign-flip", 0.7, 7),
    ]
    attacked = grid.cells[2].config
    assert (attacked.attack[0].spec, attacked.attack[0].rate, attacked.training.seed) == ("sign-flip", 0.7, 4)
    assert grid.cells[0].config.attack == ()


def test_names_paths_and_specs() -> None:
    grid = make_grid(
        {"training": {"steps": 9}, "attack": ({"spec": "zeros", "rate": 0.2},)},
        grid={
            "optimizer.learning_rate": [1e-3],
            "defence": ["duplicate,on_alert=skip"],
            "fault": ["none", "crash stage=2 step=1"],
            "stages": [5],
            "attack_stages": ["1-2"],
            "attack": [["sign-flip,rate=0.4", "gaussian"]],
        },
    )
    config = grid.cells[1].config
    assert config.optimizer.learning_rate == 1e-3
    assert (config.defence.name, config.defence.on_alert) == ("duplicate", "skip")
    assert config.faults == ("crash stage=2 step=1",)
    assert [(attack.spec, attack.rate, attack.stages) for attack in config.attack] == [
        ("sign-flip", 0.4, (1, 2)),
        ("gaussian", 1.0, (1, 2)),
    ]
    assert (config.training.steps, config.pipeline.stages) == (9, 5)
    assert grid.cells[1].axes["attack"] == "sign-flip,rate=0.4 + gaussian"


def test_a_file_with_cases_and_left_out_cells(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[training]\nsteps = 6\nseed = 5\n")
    (tmp_path / "sweep.toml").write_text("""
        name = "remedies"
        base = "run.toml"
        seeds = 2
        [grid]
        attack = ["none", "sign-flip"]
        [[case]]
        name = "off"
        defence = "none"
        [[case]]
        name = "skip"
        on_alert = "skip"
        [[skip]]
        case = "skip"
        attack = "none"
    """)
    grid = read_grid(tmp_path / "sweep.toml")
    assert grid.name == "remedies"
    assert [tuple(cell.axes.values()) for cell in grid.cells[:3]] == [
        ("off", "none", 0),
        ("off", "sign-flip", 0),
        ("skip", "sign-flip", 0),
    ]
    assert grid.cells[2].config.defence.on_alert == "skip"
    assert len(grid.cells) == 6
    assert grid.cells[0].config.training.steps == 6


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"grid": {"atack": ["none"]}}, r"\[grid\] atack: unknown setting"),
    ({"grid": {"attack": "none"}}, r"\[grid\] attack = 'none': needed is a list"),
    ({"grid": {"attack": []}}, "needed is a list"),
    ({"grid": {"steps": [3, 3]}}, r"\[grid\] steps has 3 twice"),
    ({"grid": {"steps": [-3]}}, r"the cell steps = -3: training.steps: .* got -3"),
    ({"grid": {"attack": ["sgn-flip"]}}, r"the cell attack = 'sgn-flip': unknown attack 'sgn-flip'; did you mean 'sign-flip'"),
    ({"grid": {"on_alert": ["skpi"]}}, "the cell on_alert = 'skpi': unknown remedy"),
    ({"grid": {"attack": ["sign-flip"], "rate": [1.5]}}, r"rate = 1.5: attack.0.rate"),
    ({"grid": {"attack": ["sign-flip"], "attack_stages": ["4-1"]}}, r"\[grid\] attack_stages = '4-1': "),
    ({"grid": {"fault": ["burn stage=1 step=1"]}}, "fault = 'burn stage=1 step=1'"),
    ({"grid": {"optimiser.beta1": [0.5]}}, r"\[grid\] optimiser.beta1: no section 'optimiser'"),
    ({"grid": {"optimizer.beta3": [0.5]}}, "optimizer.beta3 = 0.5: unknown setting"),
    ({"grid": {"seed": [1]}}, "say seeds = N"),
    ({"grid": {"out": ["here"]}}, "a sweep keeps its results itself"),
    ({"base": {"training": {"seed": 2}}}, "base. has a seed"),
    ({"seeds": 0}, "seeds = 0"),
    ({"seeds": [1, 1]}, "a seed twice"),
    ({"seeds": "3"}, "seeds = '3'"),
    ({"cases": [{"steps": 3}]}, "needs a name"),
    ({"cases": [{"name": "a"}, {"name": "a"}]}, "stands there twice"),
    ({"cases": [{"name": "a", "steps": 3}], "grid": {"steps": [4]}}, r"'a' sets 'steps', which \[grid\] sets too"),
    ({"cases": [{"name": "a", "stepz": 3}]}, r"\[\[case\]\] 'a': stepz: unknown setting"),
    ({"grid": {"steps": [4]}, "skip": [{"step": 4}]}, r"\[\[skip\]\] step: no such axis"),
    ({"grid": {"steps": [4]}, "skip": [{"steps": 5}]}, r"\[\[skip\]\] steps = 5: the axis has 4"),
    ({"grid": {"steps": [4]}, "skip": [{"steps": 4}]}, "no cell is left"),
    ({"seeds": range(100_001)}, "at most are 100,000"),
]


@pytest.mark.parametrize(("given", "told"), WRONG)
def test_what_is_wrong_is_named_before_anything_runs(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_grid(given.get("base", {}), **{key: value for key, value in given.items() if key != "base"})


def test_a_file_with_an_unknown_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text("[gird]\nsteps = [1]\n")
    with pytest.raises(ConfigError, match="unknown 'gird'; a sweep has base, case, grid, name, seeds, skip"):
        read_grid(tmp_path / "sweep.toml")
