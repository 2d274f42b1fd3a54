"""`holdfast doctor --numerics`: the spread of this machine's arithmetics, and a calibration that can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from holdfast.claim import Direction
from holdfast.numerics import ARITHMETICS, numerics_class
from holdfast.verify.calibration import from_toml

SMALL = "gpt2:layers=3,width=16,heads=2"


def test_numerics_as_a_table_and_as_a_file(holdfast, tmp_path: Path) -> None:
    file = tmp_path / "numerics.toml"
    outcome = holdfast("doctor", "--numerics", "--model", SMALL, "--dtype", "float32", "--out", str(file))
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split()[:3] == ["dtype", "direction", "pair"]
    told = [line for line in lines if line.startswith("float32")]
    assert len(told) == 4 * 6 * 5 // 2, "directions times pairs of six arithmetics"
    assert not any("fp32-accumulation" in line for line in told), "it changes nothing in fp32"
    calibration = from_toml(file.read_text(encoding="utf-8"))
    names = [str(numerics_class(ARITHMETICS[name], torch.float32)) for name in ("native", "math-attention")]
    bound = calibration.bound_for(1, "float32", *names, Direction.BACKWARD)
    assert f"{bound.alarm.overall:.1e} / {bound.alarm.worst_row:.1e}" in outcome.out
    again = holdfast("doctor", "--numerics", "--model", SMALL, "--out", str(file))
    assert again.code == 2
    assert "exists" in again.err


def test_numerics_as_json(holdfast) -> None:
    outcome = holdfast("doctor", "--numerics", "--model", SMALL, "--dtype", "bfloat16", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out.splitlines()[-1])
    rows = found["rows"]
    assert {row["direction"] for row in rows} == set(Direction)
    assert {"fp32-accumulation", "native"} <= {name for row in rows for name in (row["one"], row["other"])}
    for row in rows:
        assert row["median"][0] <= row["largest"][0] <= row["alarm"][0] < row["guilty"][0] <= 1e-2
        assert (row["equal"] == row["probes"]) == (row["largest"] == [0, 0])


def test_a_model_that_jumps_is_measured_and_has_no_bound(holdfast, tmp_path: Path) -> None:
    file = tmp_path / "numerics.toml"
    words = ("doctor", "--numerics", "--model", "opt:layers=3,width=16,heads=2", "--dtype", "float32")
    outcome = holdfast(*words)
    assert outcome.code == 0, outcome.err
    assert "no bound: opt" in outcome.out
    assert all(line.split()[-1] == "none" for line in outcome.out.splitlines() if line.startswith("float32"))
    refused = holdfast(*words, "--out", str(file))
    assert refused.code == 2
    assert "ReLU" in refused.err
    assert not file.exists()


@pytest.mark.parametrize(
    "words", [("--numerics", "--dtype", "float16"), ("--dtype", "float32"), ("--out", "x.toml"), ("--stages", "4")]
)
def test_wrong_wishes(holdfast, words: tuple[str, ...]) -> None:
    outcome = holdfast("doctor", *words)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
