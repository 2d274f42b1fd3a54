"""The experiments as functions: frames with the columns that are told, kept where that is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from holdfast.bench import overhead as experiment
from holdfast.bench import run_aggregation, run_detection, run_overhead, run_recovery, run_table
from holdfast.bench.aggregation import SCALES, Question
from holdfast.bench.incidents import TAKEOVER
from holdfast.bench.recovery import quick
from holdfast.sweep.frame import ORIGIN


def test_a_table_is_a_frame_and_is_kept(tmp_path: Path) -> None:
    asked = {"scale": "smoke", "models": ("GPT-2",), "columns": ("depth",), "overfit": True, "out": tmp_path}
    runs = run_table("table2", **asked)
    assert [*runs.columns[:5], *runs.columns[-len(ORIGIN) :]] == ["scale", "model", "data", "column", "seed", *ORIGIN]
    assert runs["column"].tolist() == ["clean", "depth"]
    assert {"validation_perplexity", "best_perplexity", "weights_digest"} <= set(runs.columns)
    assert all(runs["commit"].notna() & runs["started"].notna())
    measured: list[object] = []
    again = run_table("table2", **asked, tell=measured.append)
    assert measured == []
    assert again.equals(runs), "what is read is what was measured"


def test_detection_has_the_clean_runs_beside_the_others() -> None:
    runs = run_detection(["zeros"], ["duplicate"], steps=1)
    assert runs[["attack", "defence", "missed"]].values.tolist() == [
        ["honest", "none", 0],
        ["honest", "duplicate", 0],
        ["zeros", "duplicate", 0],
    ]
    assert runs["detected"].iloc[-1] > 0
    assert runs["command"].str.startswith("holdfast bench detection").all()


def test_overhead_and_recovery_have_a_row_for_each_place() -> None:
    plan = dataclasses.replace(experiment.quick(("local",)), parts=("virtual",), sizes={"local": ((4, 2),)}, modes_at=((4, 2),))
    costs = run_overhead(plan)
    assert len(costs) == len(plan.settings())
    assert costs.loc[costs["defence"] == "duplicate", "ratio"].gt(1).all()
    lies = dataclasses.replace(quick(), parts=("lie",))
    lost = run_recovery(lies).set_index("way")
    assert lost.loc["duplicate,on_alert=replace", "steps_lost"] == 0
    assert TAKEOVER not in lost.index


@pytest.mark.slow
def test_aggregation_has_a_row_for_each_attack_and_each_aggregate() -> None:
    question = Question(SCALES["smoke"], range(1), attacks=("sign-flip",), parts=("tests", "training"))
    found = run_aggregation(question)
    assert set(found["part"]) == {"watched", "training"}
    assert found.loc[found["part"] == "training", "perplexity"].gt(0).all()
    assert set(found.loc[found["part"] == "watched", "direction"]) == {"forward", "backward"}
