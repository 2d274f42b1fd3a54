"""A rehearsal is the run itself: the same bits as the trainer's, and nothing between the accounts but their arithmetics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.claim import Direction
from holdfast.config import resolve
from holdfast.digest import same_bytes, state_digest, tensors_digest, weights_digest
from holdfast.errors import ConfigError
from holdfast.experiment import Experiment
from holdfast.job import Job, prepare
from holdfast.numerics import ARITHMETICS, NATIVE, Arithmetic, pinned
from holdfast.optimizer import learning_rate
from holdfast.rehearsal import Accounts, Rehearsal
from holdfast.verify.resync import Candidate

STEPS = 3
TABLES: dict[str, Any] = {
    "data": {"name": "synthetic:order=1,symbols=16,tokens=20000", "sequence_length": 16, "vocabulary": 258},
    "pipeline": {"stages": 4, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": STEPS},
}


def job_of(model: str, dropout: float = 0.0, **sections: Any) -> Job:
    return prepare(resolve({**TABLES, "model": {"name": model, "dropout": dropout}, **sections}))


def digests(candidate: Candidate) -> tuple[bytes, bytes]:
    return state_digest(candidate.state), tensors_digest(candidate.gradient)


def rehearsed(job: Job, arithmetics: list[Arithmetic]) -> tuple[Rehearsal, list[Accounts]]:
    with pinned("cpu"):
        rehearsal = Rehearsal(job, arithmetics)
        rates = [learning_rate(job.config.optimizer, step, STEPS) for step in range(STEPS)]
        return rehearsal, [accounts for step, rate in enumerate(rates) for accounts in rehearsal.step(step, rate)]


@pytest.mark.parametrize(
    "model", ["gpt2:layers=4,width=16,heads=2", "llama:layers=4,width=16,heads=2", "llama:layers=4,width=16,heads=2,tied=true"]
)
def test_the_lead_trains_as_the_run_does_to_the_bit(model: str) -> None:
    rehearsal, _ = rehearsed(job_of(model), [NATIVE, ARITHMETICS["split-sums"]])
    run = Experiment({**TABLES, "model": {"name": model}, "defence": {"name": "none"}}).run()
    weights = {name: tensor for state in rehearsal.states for name, tensor in state.weights.items()}
    assert weights_digest(weights) == run.weights_digest


def test_every_claim_of_every_middle_stage_has_an_account_of_each() -> None:
    job = job_of("gpt2:layers=4,width=16,heads=2")
    _, found = rehearsed(job, [NATIVE, ARITHMETICS["split-sums"], ARITHMETICS["fp64-accumulation"]])
    claims = [(a.step, a.stage, a.direction, a.micro_batch) for a in found]
    passes = [
        (s, i, d, m) for s in range(STEPS) for i in (1, 2) for d in (Direction.FORWARD, Direction.BACKWARD) for m in (0, 1)
    ]
    whole = [(s, i, d, -1) for s in range(STEPS) for i in (1, 2) for d in (Direction.GRADIENT, Direction.UPDATE)]
    assert sorted(claims) == sorted(passes + whole)
    assert all(list(a.results) == ["native", "split-sums", "fp64-accumulation"] for a in found)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_arithmetic_under_two_names_gives_one_account(dropout: float) -> None:
    """Whatever else differed between the accounts than the arithmetic would be seen here."""
    job = job_of("gpt2:layers=4,width=16,heads=2", dropout)
    _, found = rehearsed(job, [NATIVE, Arithmetic("twin")])
    for accounts in found:
        native, twin = accounts.results.values()
        same: Callable[[Any, Any], bool] = lambda a, b: a == b  # noqa: E731
        if isinstance(native, Tensor):
            same = same_bytes
        elif isinstance(native, Candidate):
            same = lambda a, b: digests(a) == digests(b)  # noqa: E731
        assert same(native, twin), accounts


def test_what_was_given_out_is_not_altered_by_later_steps() -> None:
    job = job_of("gpt2:layers=4,width=16,heads=2")
    with pinned("cpu"):
        rehearsal = Rehearsal(job, [NATIVE, ARITHMETICS["split-sums"]])
        first = [a for a in rehearsal.step(0, 1e-2) if a.direction is Direction.UPDATE]
        before = [(state_digest(a.before), *map(digests, a.results.values())) for a in first]
        list(rehearsal.step(1, 1e-2))
    assert [(state_digest(a.before), *map(digests, a.results.values())) for a in first] == before
    assert all(len(set(found)) == 3 for found in before), "sealed, native, split"


def test_others_take_the_lead_s_state_over_after_each_step() -> None:
    """Without that they would drift apart: after many steps accounts would be as far apart as two runs are."""
    job = job_of("gpt2:layers=4,width=16,heads=2")
    with pinned("cpu"):
        rehearsal = Rehearsal(job, [NATIVE, ARITHMETICS["split-sums"]])
        for step in range(5):
            for accounts in rehearsal.step(step, 1e-2):
                if accounts.direction is Direction.FORWARD:
                    native, split = accounts.results.values()
                    assert torch.dist(native, split) < 1e-5 * native.norm()
                if accounts.direction is Direction.UPDATE:
                    assert {candidate.state.updates for candidate in accounts.results.values()} == {step + 1}
                    assert accounts.before.updates == step


def test_there_must_be_something_to_compare() -> None:
    job = job_of("gpt2:layers=4,width=16,heads=2")
    for arithmetics in ([], [NATIVE], [NATIVE, NATIVE]):
        with pytest.raises(ConfigError, match="two or more different"):
            Rehearsal(job, arithmetics)
    short = job_of("gpt2:layers=4,width=16,heads=2", pipeline={"stages": 2, "micro_batches": 2})
    with pytest.raises(ConfigError, match="no untrusted stage"):
        Rehearsal(short, [NATIVE, ARITHMETICS["split-sums"]])
