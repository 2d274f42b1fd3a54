"""Calibration of a job: every pair, stage and direction gets a bound; other honest steps stay inside it; jumps are refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from holdfast.calibrate import Examiner, calibrate_job, honest_probes, why_it_jumps
from holdfast.claim import Direction
from holdfast.config import resolve
from holdfast.errors import ConfigError
from holdfast.job import Job, prepare
from holdfast.numerics import ARITHMETICS, NATIVE, Arithmetic, numerics_class, pinned
from holdfast.optimizer import learning_rate
from holdfast.rehearsal import Rehearsal
from holdfast.verify.calibration import Calibration, from_toml
from holdfast.verify.resync import judge_update
from holdfast.verify.tolerance import Agreement, Distance, distance, verdict

GPT2 = "gpt2:layers=4,width=16,heads=2"


def job_of(model: str = GPT2, dtype: str = "float32", **sections: Any) -> Job:
    tables = {
        "model": {"name": model, "dtype": dtype},
        "data": {"name": "synthetic:order=1,symbols=16,tokens=20000", "sequence_length": 16, "vocabulary": 258},
        "pipeline": {"stages": 4, "micro_batches": 2, "micro_batch_size": 2},
    }
    return prepare(resolve(tables | sections))


def arithmetics_of(dtype: str) -> list[Arithmetic]:
    return [
        NATIVE,
        ARITHMETICS["math-attention"],
        ARITHMETICS["fp64-accumulation" if dtype == "float32" else "fp32-accumulation"],
    ]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def calibrated(request: pytest.FixtureRequest) -> tuple[Job, list[Arithmetic], Calibration]:
    job, arithmetics = job_of(dtype=request.param), arithmetics_of(request.param)
    return job, arithmetics, calibrate_job(job, arithmetics)


def test_every_pair_of_every_middle_stage_and_direction_has_a_bound(calibrated) -> None:
    job, arithmetics, calibration = calibrated
    names = [str(numerics_class(arithmetic, job.dtype)) for arithmetic in arithmetics]
    dtype = job.config.model.dtype
    for (one, other), stage, direction in itertools.product(itertools.permutations(names, 2), (1, 2), Direction):
        assert calibration.bound_for(stage, dtype, one, other, direction).alarm.overall > 0
        assert calibration.budget_for(stage, dtype, one, other, steps=150) > 0
    assert len(calibration.rows) == 3 * 2 * 4
    assert from_toml(calibration.to_toml()) == calibration
    spreads = [row.spread for pairing, row in calibration.rows.items() if pairing.direction is Direction.FORWARD]
    assert any(spread.largest.overall > 0 for spread in spreads), "these arithmetics differ"
    assert all(spread.probes == 8 for spread in spreads), "4 steps of 2 micro-batches"


def test_the_steps_of_the_run_raise_no_alarm(calibrated) -> None:
    """On other text than the probes', while the model learns."""
    job, arithmetics, calibration = calibrated
    examiner, checks = Examiner(job, arithmetics), 0
    with pinned("cpu"):
        rehearsal = Rehearsal(job, arithmetics)
        for step in range(15):
            for accounts in rehearsal.step(step, learning_rate(job.config.optimizer, step, 150)):
                for claimed, own in itertools.permutations(accounts.results, 2):
                    pairing = examiner.pairing(accounts, claimed, own)
                    bound = calibration.bound_for(pairing.stage, pairing.dtype, *pairing.classes, pairing.direction)
                    found = examiner.measure(accounts, accounts.results[claimed], own)
                    ruling = verdict(found, bound) if isinstance(found, Distance) else judge_update(found, bound)
                    assert ruling is Agreement.WITHIN, (accounts.step, pairing, found, bound)
                    checks += 1
    assert checks == 15 * 2 * (4 + 2) * 6


def test_probes_are_reproducible_and_of_text_behind_the_run() -> None:
    job, arithmetics = job_of(), arithmetics_of("float32")
    first, again = (list(honest_probes(job, arithmetics, steps=1)) for _ in range(2))
    assert first == again
    longer = job_of(training={"steps": 3})
    assert [probe.distance for probe in honest_probes(longer, arithmetics, steps=1)] != [probe.distance for probe in first]


def test_an_arithmetic_that_is_off_by_more_than_any_cap_cannot_be_calibrated() -> None:
    from contextlib import contextmanager

    from torch.nn import functional

    @contextmanager
    def sloppy():
        exact = functional.scaled_dot_product_attention
        functional.scaled_dot_product_attention = lambda *given, **named: 1.2 * exact(*given, **named)
        torch.nn.functional.scaled_dot_product_attention = functional.scaled_dot_product_attention
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = exact

    with pytest.raises(ConfigError, match="one numerics class"):
        calibrate_job(job_of(), [NATIVE, Arithmetic("sloppy", (sloppy,))])


# -- what jumps ----------------------------------------------------------------------------------------------------------


def test_a_kink_makes_gradients_jump_by_more_than_any_bound() -> None:
    """Two machines see the same number a rounding apart, on either side of zero."""
    weight = torch.full((1, 4), 0.5)
    seen = [torch.full((8, 4), 0.3, requires_grad=True) for _ in range(2)]
    found = []
    for sign, inputs in zip((1, -1), seen, strict=True):
        before = inputs @ weight.t() - 0.6 + sign * torch.finfo(torch.float32).eps
        output = torch.relu(before) @ weight + inputs
        found.append((output.detach(), torch.autograd.grad(output.sum(), inputs)[0]))
    (one, of_one), (other, of_other) = found
    assert distance(one, other).worst_row < 1e-6
    assert distance(of_one, of_other).worst_row > 0.3


@pytest.mark.parametrize(
    ("model", "told"), [(GPT2, None), ("llama:layers=4,width=16,heads=2", None), ("opt:layers=4,width=16,heads=2", "ReLU")]
)
def test_families_with_a_kink_are_known(model: str, told: str | None) -> None:
    why = why_it_jumps(job_of(model))
    assert (why is None) if told is None else (told in (why or ""))


def test_a_model_that_jumps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ReLU units.*one numerics class"):
        calibrate_job(job_of("opt:layers=4,width=16,heads=2"), arithmetics_of("float32"))


def test_experts_are_chosen_by_jumps() -> None:
    from dataclasses import replace

    from transformers import Qwen3MoeConfig

    from holdfast.partition.skeleton import prepare_config

    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8, intermediate_size=16,
    )  # fmt: skip
    job = job_of()
    job = replace(job, source=replace(job.source, config=prepare_config(config)))
    assert "num_experts" in (why_it_jumps(job) or "")


def test_packed_tensors_jump_and_are_refused() -> None:
    pipeline = {"stages": 4, "micro_batches": 2, "micro_batch_size": 2, "wire_dtype": "int8"}
    with pytest.raises(ConfigError, match="rounding jumps at ties"):
        calibrate_job(job_of(pipeline=pipeline), arithmetics_of("float32"))
