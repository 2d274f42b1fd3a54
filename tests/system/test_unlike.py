"""Workers that compute with other bytes: honest ones raise no alarm, and lies beyond the bound are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.errors import ConfigError
from holdfast.event import Alert, Event, Ruling, SpotChecked, StepRestarted
from holdfast.evidence.audit_log import Status, audit
from holdfast.evidence.casebook import Law
from holdfast.result import RunResult
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge, misstates

UNLIKE = ("native", "split-sums", "native", "math-attention", "split-sums+math-attention", "native")
"""Every neighbour computes otherwise than the one before it."""

TINY: dict[str, Any] = {
    "model": "gpt2:layers=6,width=16,heads=2",
    "data": "synthetic",
    "seq_length": 8,
    "vocabulary": 300,
    "steps": 4,
    "stages": 6,
    "micro_batches": 2,
    "micro_batch_size": 2,
    "warmup_steps": 2,
    "seed": 5,
    "cluster": {"wire_check": True, "numerics": UNLIKE},
}


def run(**settings: Any) -> tuple[RunResult, list[Event]]:
    told: list[Event] = []
    return Experiment(**{**TINY, **settings}, observers=[lambda event, _s: told.append(event)]).run(), told


def test_unlike_workers_really_compute_other_bytes() -> None:
    """With defences off nobody compares: the weights are others than those of like workers."""
    alike = {"wire_check": True}
    assert run(defence="none")[0].weights_digest != run(defence="none", cluster=alike)[0].weights_digest


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_with_nobody_lying_there_is_no_alarm_and_the_primaries_weights_stand(dtype: str) -> None:
    numerics = {
        "float32": UNLIKE,
        "bfloat16": ("native", "fp32-accumulation", "native", "fp32-accumulation", "native", "native"),
    }
    cluster = {"wire_check": True, "numerics": numerics[dtype]}
    result, told = run(dtype=dtype, cluster=cluster)
    assert [event for event in told if isinstance(event, (Alert, StepRestarted))] == []
    assert result.weights_digest == run(dtype=dtype, cluster=cluster, defence="none")[0].weights_digest
    assert result.certified


LIES = {
    "sign-flip,stages=2,direction=both": "w2",
    "perturb,epsilon=0.001,stages=2,direction=both": "w2",
    "other-input,stages=3": "w3",
    "wrong-norm,stages=2": "w2",
    "wrong-gradient,mode=state,stages=2": "w2",
    "wrong-update,mode=state,stages=2": "w2",
    "framing,stages=2,direction=both": "w3",
    "sign-flip,stages=4": "w4",
    "gaussian,stages=1": "w1",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_beyond_the_bound_is_named(lie: str) -> None:
    result, told = run(attack=f"{lie},first_step=1")
    assert {worker for event in told if isinstance(event, Ruling) for worker in event.culprits} == {LIES[lie]}
    assert result.false_alarms == 0
    assert result.detected > 0


def test_a_lie_far_inside_the_bound_is_nobody_s_business() -> None:
    """Two parts in a hundred million: rounding, as far as anybody can tell."""
    result, told = run(attack="perturb,epsilon=2e-8,stages=2")
    assert [event for event in told if isinstance(event, Alert)] == []
    assert result.attacked_claims > 0


def test_a_crash_begins_the_step_again() -> None:
    result, told = run(fault=["crash stage=2 step=1 at=backward"])
    assert [event.step for event in told if isinstance(event, StepRestarted)] == [1]
    assert [event for event in told if isinstance(event, Alert)] == []
    assert result.rollbacks == 0


def test_spot_checks_measure_too() -> None:
    """The checker computes like the initiator, most workers do not."""
    result, told = run(defence="spot-check", check_steps=1.0)
    assert sum(event.claims for event in told if isinstance(event, SpotChecked)) == 4 * 4 * 6
    assert [event for event in told if isinstance(event, Alert)] == []
    caught, _ = run(defence="spot-check", check_steps=1.0, attack="perturb,epsilon=0.001,worker=w3,first_step=2")
    assert set(caught.blamed_workers) == {"w3"}
    assert caught.weights_digest != result.weights_digest, "w4 computes stage 3 now, otherwise than w3 did"


def test_evidence_across_classes_holds_without_the_run(tmp_path: Path) -> None:
    for name, attack in {"lie": "sign-flip,stages=2,direction=both", "framing": "framing,stages=2,direction=both"}.items():
        run(attack=attack, out=str(tmp_path / name))
        found = audit((tmp_path / name / "evidence.jsonl").read_bytes(), Law(compare, judge, misstates))
        assert found.status is Status.INTACT, found.fault
        assert set(found.guilty) == {{"lie": "w2", "framing": "w3"}[name]}


def test_a_pair_that_was_never_measured_is_refused(tmp_path: Path) -> None:
    from holdfast.calibrate import calibrate_job
    from holdfast.config import resolve
    from holdfast.job import prepare
    from holdfast.numerics import resolve_arithmetic
    from holdfast.settings import merge

    job = prepare(resolve(merge({}, TINY)))
    table = calibrate_job(job, [resolve_arithmetic(name) for name in ("native", "split-sums")])
    path = tmp_path / "calibration.toml"
    path.write_text(table.to_toml(), encoding="utf-8")
    pair = {"numerics": ("native", "split-sums", "native", "split-sums", "native", "native")}
    given = {"name": "duplicate", "calibration": str(path)}
    assert run(cluster=pair, defence=given)[0].alerts == 0
    with pytest.raises(ConfigError, match="never measured"):
        run(defence=given)
    with pytest.raises(ConfigError, match="doctor --numerics"):
        run(cluster=pair, defence={"name": "duplicate", "calibration": str(tmp_path / "nothing.toml")})
