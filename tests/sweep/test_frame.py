"""Records as frames: nothing is lost on the way, and the interval is that of the textbook."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError
from holdfast.sweep import Record, frame, summary, sweep
from holdfast.sweep.frame import mean


def record(seed: int, perplexity: Any, **more: Any) -> Record:
    result = {"run_id": f"r{seed}", "validation_perplexity": perplexity, "seed": 99, "blamed": {"w1": 2}}
    return Record(f"k{seed}", {"attack": "zeros", "seed": seed}, {}, result, environment={"commit": "c0ffee"}, **more)


def test_axes_numbers_and_origin_stand_in_one_row() -> None:
    table = frame([record(0, 5.0, command="holdfast train"), Record("k1", {"attack": None, "seed": 1}, {}, error="broke")])
    assert list(table.columns[:3]) == ["attack", "seed", "validation_perplexity"]
    assert table.loc[0, ["key", "run_id", "commit", "command"]].tolist() == ["k0", "r0", "c0ffee", "holdfast train"]
    assert (table.loc[0, "seed"], table.loc[1, "error"]) == (0, "broke")
    assert math.isnan(table.loc[1, "validation_perplexity"])


def test_the_interval_is_students() -> None:
    """Four values with mean 5 and s = sqrt(20/3): t(3) at 97.5 % is 3.18245."""
    found = mean([2.0, 4.0, 6.0, 8.0])
    assert (found.mean, found.n) == (5.0, 4)
    half = 3.182446305284263 * math.sqrt(20 / 3) / 2
    assert found.low == pytest.approx(5 - half)
    assert found.high == pytest.approx(5 + half)


def test_a_geometric_mean_is_that_of_the_logarithms() -> None:
    found = mean([10.0, 1000.0], geometric=True)
    assert found.mean == pytest.approx(100.0)
    assert found.low * found.high == pytest.approx(100.0**2)


def test_what_has_no_number_is_counted_and_not_averaged() -> None:
    table = frame([record(0, 5.0), record(1, None), record(2, "inf"), record(3, 7.0)])
    (row,) = summary(table, "attack").to_dict("records")
    assert (row["validation_perplexity"], row["validation_perplexity_n"], row["validation_perplexity_lost"]) == (6.0, 2, 2)


def test_one_seed_has_no_interval() -> None:
    (row,) = summary(frame([record(0, 5.0)]), ["attack"]).to_dict("records")
    assert row["validation_perplexity"] == 5.0
    assert math.isnan(row["validation_perplexity_low"])


@pytest.mark.parametrize(
    "wrong", [{"by": "atack"}, {"by": "attack", "values": "perplexity"}, {"by": "attack", "values": "run_id"}]
)
def test_a_column_that_is_not_there_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no column|no number"):
        summary(frame([record(0, 5.0)]), **wrong)


def test_a_sweep_from_python_is_a_frame_and_is_kept(tiny: dict[str, Any], tmp_path: Path) -> None:
    grid = {"attack": ["none", "sign-flip"], "defence": ["none", "duplicate"]}
    table = sweep(tiny, grid=grid, out=tmp_path)
    digests = table.set_index(["attack", "defence"])["weights_digest"]
    assert digests["sign-flip", "duplicate"] == digests["none", "none"] != digests["sign-flip", "none"]
    assert table["error"].isna().all()
    again = sweep(tiny, grid=grid, out=tmp_path)
    assert again["run_id"].tolist() == table["run_id"].tolist()


def test_a_sweep_without_a_directory_takes_short_names(tiny: dict[str, Any]) -> None:
    table = sweep({**tiny, "steps": 1, "attack": "zeros,rate=0.5"}, cases=[{"name": "a"}, {"name": "b", "defence": "none"}])
    assert table["case"].tolist() == ["a", "b"]
    assert table["steps"].tolist() == [1, 1]
