"""What a checkpoint says of the run so far is counted on from, so it is what a run can have come to, or refused."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from holdfast.errors import CheckpointError
from holdfast.event import BOTH, REAL, VIRTUAL
from holdfast.progress import SUMS, Progress
from holdfast.result import RunResult

GOOD: dict[str, Any] = Progress(dict.fromkeys(SUMS, 3), {"w2": 1}, {"2": 1}, 4.5, ("w1",)).to_json()


def test_it_survives_its_form() -> None:
    assert Progress.from_json(GOOD) == Progress(dict.fromkeys(SUMS, 3), {"w2": 1}, {"2": 1}, 4.5, ("w1",))
    assert Progress.from_json({}) == Progress()
    unmeasured = Progress(dict.fromkeys(SUMS, 0.0)).to_json()
    assert math.isnan(Progress.from_json(unmeasured).train_loss)


@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize(
    "value",
    [None, 3, "x", [], {}, [None], [["w1"]], {"w2": "1"}, {"w2": 1.5}, {"w2": -1}, {"w2": True}, {"w2": [[]]}],
    ids=repr,
)
def test_what_has_another_form_is_refused(name: str, value: Any) -> None:
    if (name, value) in [("lies", {}), ("stages", {}), ("lost", []), ("train_loss", 3)]:
        return  # those it can have
    with pytest.raises(CheckpointError, match=r"count of the run so far is unusable .*use an older one"):
        Progress.from_json({**GOOD, name: value})


@pytest.mark.parametrize("count", [math.nan, math.inf, "nan", -1, -0.5, True, None, "3", [], 10**400], ids=repr)
def test_a_count_that_is_no_number_from_0_is_refused(count: Any) -> None:
    """A negative second made the seconds of the whole run zero, and its speed a division by that."""
    with pytest.raises(CheckpointError, match="unusable"):
        Progress.from_json({**GOOD, "sums": {**GOOD["sums"], "seconds": count}})


@pytest.mark.parametrize(("before", "here", "both"), [("", REAL, REAL), (VIRTUAL, VIRTUAL, VIRTUAL), (VIRTUAL, REAL, BOTH)])
def test_the_clock_of_a_run_that_has_gone_on(before: str, here: str, both: str) -> None:
    result = RunResult(
        **{field.name: 1 for field in fields(RunResult)} | {"blamed_workers": {}, "blamed_stages": {}, "clock": here}
    )
    assert Progress.from_json({**GOOD, "clock": before}).plus(result).clock == both
    assert Progress.of(result, frozenset()).clock == here


def test_a_count_that_is_missing_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'tokens' is missing"):
        Progress.from_json({**GOOD, "sums": {name: 1 for name in SUMS if name != "tokens"}})
    with pytest.raises(CheckpointError, match="another form"):
        Progress.from_json({name: value for name, value in GOOD.items() if name != "lost"})
