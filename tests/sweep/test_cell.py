"""A cell's key follows its settings and the content of the files that they name, and nothing else."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from holdfast.config import RunConfig, resolve
from holdfast.errors import ConfigError
from holdfast.settings import add_attacks
from holdfast.sweep import Cell
from holdfast.sweep.cell import command_of
from holdfast.toml import assign

BEFORE_AND_AFTER: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {"training": {"seed": 0}}, True),  # a default that is said
    ({}, {"output": {"dir": "elsewhere", "keep": 9}}, True),
    ({}, {"machines": {"metrics": "127.0.0.1:9464"}}, True),
    ({}, {"training": {"seed": 1}}, False),
    ({}, {"attack": ({"spec": "sign-flip"},)}, False),
    ({"attack": ({"spec": "sign-flip"},)}, {"attack": ({"spec": "sign-flip", "rate": 1.0},)}, True),
    ({}, {"defence": {"name": "none"}}, False),
]


@pytest.mark.parametrize(("one", "other", "same"), BEFORE_AND_AFTER)
def test_the_key_is_that_of_the_resolved_settings(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert (Cell({"a": 1}, one).key == Cell({"b": 2}, other).key) is same


def test_the_kind_of_measurement_is_part_of_the_key() -> None:
    assert Cell({}, {}).key != Cell({}, {}, kind="memory").key


def test_a_model_or_text_counts_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    model, text = tmp_path / "model", tmp_path / "text.txt"
    (model / "deeper").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "deeper/weights").write_bytes(b"12")
    text.write_text("words")
    moved = Path(shutil.copytree(model, tmp_path / "moved"))
    key = Cell({}, {"model": {"name": str(model)}, "data": {"name": str(text)}}).key
    assert Cell({}, {"model": {"name": str(moved)}, "data": {"name": str(text.rename(tmp_path / "other.txt"))}}).key == key
    (moved / "deeper/weights").write_bytes(b"13")
    assert Cell({}, {"model": {"name": str(moved)}, "data": {"name": str(tmp_path / "other.txt")}}).key != key


def test_a_plug_in_of_a_file_counts_by_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("factor = 1")

    def key(file: Path, parameters: str = "") -> str:
        return Cell({}, {"attack": ({"spec": f"{file}:Mine{parameters}"},), "defence": {"on_alert": f"{file}:Other"}}).key

    first = key(file)
    assert key(Path(shutil.copy(file, tmp_path / "copy.py"))) == first
    assert key(file, ",factor=2") != first
    file.write_text("factor = 2")
    assert key(file) != first


def test_the_command_repeats_the_run() -> None:
    config = resolve(
        {
            "model": {"name": "gpt2:layers=6,width=16,heads=2"},
            "data": {"name": "a text.txt"},
            "training": {"seed": 3, "steps": 7},
            "optimizer": {"learning_rate": 1e-4},
            "pipeline": {"schedule": "1f1b"},
            "cluster": {"speeds": (1.0, 2.0, 1.0, 1.0, 1.0, 1.0), "wire_check": True},
            "defence": {"name": "duplicate", "on_alert": "skip"},
            "attack": (
                {"spec": "scale,factor=3", "rate": 0.3, "stages": (1, 3), "persistent": True},
                {"spec": "zeros", "worker": "w2"},
            ),
            "faults": ("crash stage=2 step=1", "stall stage=1 step=2 seconds=3"),
        }
    )
    assert _parsed(command_of(config)) == config
    assert _parsed(command_of(RunConfig())) == RunConfig()


def _parsed(command: str) -> RunConfig:
    """What `holdfast train` makes of a command line."""
    words = shlex.split(command)
    pairs = list(zip(words[2::2], words[3::2], strict=True))
    tables = add_attacks({}, [value for option, value in pairs if option == "--attack"])
    faults = tuple(value for option, value in pairs if option == "--fault")
    return resolve(assign(tables | {"faults": faults}, [value for option, value in pairs if option == "--set"]))


def test_settings_that_are_refused_have_no_key() -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        _ = Cell({}, {"training": {"stepz": 3}}).key
