"""What is prepared before a run: the cut follows the costs that were asked for."""

from __future__ import annotations

import pytest

from holdfast import job
from holdfast.config import resolve
from holdfast.toml import assign

TINY = ["model.name=gpt2:layers=4,width=16,heads=2", "data.name=synthetic", "data.sequence_length=8", "pipeline.stages=3"]


@pytest.mark.parametrize(("costs", "measured"), [("estimated", False), ("measured", True)])
def test_stages_are_cut_by_estimated_or_measured_costs(monkeypatch, costs, measured):
    asked = []
    costs_of = job.costs_of

    def remember(*arguments, measure):
        asked.append(measure)
        return costs_of(*arguments, measure=measure)

    monkeypatch.setattr(job, "costs_of", remember)
    plan = job.prepare(resolve(assign({}, [*TINY, f"pipeline.costs={costs}"]))).plan
    assert asked == [measured]
    assert plan.layers[0][0] == 0
    assert plan.layers[-1][1] == 4


def test_a_fast_device_gets_more_layers():
    plan = job.prepare(resolve(assign({}, [*TINY, "cluster.speeds=[1, 4, 1]"]))).plan
    assert plan.layers == ((0, 1), (1, 3), (3, 4))
