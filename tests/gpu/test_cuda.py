"""On a GPU, as on a CPU: the pipeline is the plain model to the bit, and under attack its weights are those of the clean run.

HOLDFAST_GPU names the device (cuda). Without one every test is skipped.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast import Experiment
from holdfast.cli.checkup import examine
from holdfast.config import resolve
from holdfast.digest import weights_digest
from holdfast.event import Event, StepSealed
from holdfast.execution import cross_entropy
from holdfast.job import prepare
from holdfast.numerics import pinned
from holdfast.optimizer import learning_rate, parameter_groups
from holdfast.partition import whole_model
from holdfast.result import RunResult
from holdfast.settings import merge, split_attack

DEVICE = os.environ.get("HOLDFAST_GPU", "cuda")
DTYPES = ["float32", "bfloat16"]
SHAPE = "layers=6,width=64,heads=4"
SMALL: dict[str, Any] = {
    "model": {"name": f"gpt2:{SHAPE}", "device": DEVICE},
    "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 64, "validation_tokens": 512},
    "pipeline": {"stages": 6, "micro_batches": 4, "micro_batch_size": 2},
    "training": {"steps": 5},
}
ATTACKS = ("sign-flip,rate=0.5", "gaussian,rate=0.5")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
]


def run(**changes: Any) -> RunResult:
    if "attack" in changes:
        changes["attack"] = [split_attack(spec) for spec in changes["attack"]]
    return Experiment(merge(SMALL, changes)).run()


@cache
def clean(dtype: str = "float32") -> RunResult:
    return run(model={"dtype": dtype})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "llama"])
def test_the_pipeline_is_the_plain_model(family: str, dtype: str) -> None:
    config = resolve(merge(SMALL, {"model": {"name": f"{family}:{SHAPE}", "dtype": dtype}, "defence": {"name": "none"}}))
    assert Experiment(config).run().weights_digest == plain(config)


def plain(config: Any) -> str:
    """What anybody would write, on the GPU; the digest of its weights."""
    with pinned(DEVICE):
        job, options = prepare(config), config.optimizer
        weights = {n: t for i in range(job.plan.stages) for n, t in job.initial_state(i).weights.items()}
        model = whole_model(job.source.config, weights).to(DEVICE).train()
        optimizer = torch.optim.AdamW(
            parameter_groups(model, options), lr=0.0, betas=(options.beta1, options.beta2), eps=options.epsilon, foreach=False
        )
        for step in range(config.training.steps):
            optimizer.zero_grad()
            for tokens in job.batches.batch(step).to(DEVICE):
                loss = cross_entropy(model(input_ids=tokens[:, :-1], use_cache=False).logits, tokens[:, 1:])
                (loss / config.pipeline.micro_batches).backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
            total = torch.linalg.vector_norm(norms.cpu())  # where the coordinator adds them up; a GPU has another order
            torch.nn.utils.clip_grads_with_norm_(
                model.parameters(), options.clip_norm or float("inf"), total.to(DEVICE), foreach=False
            )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(options, step, config.training.steps)
            optimizer.step()
        return weights_digest({name: parameter.detach() for name, parameter in model.named_parameters()})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_under_attack_the_weights_are_those_of_the_clean_run(schedule: str, dtype: str) -> None:
    attacked = run(model={"dtype": dtype}, pipeline={"schedule": schedule}, attack=ATTACKS, cluster={"wire_check": True})
    assert attacked.weights_digest == clean(dtype).weights_digest
    assert attacked.detected == attacked.attacked_claims > 0
    assert attacked.missed == attacked.false_alarms == 0


@pytest.mark.parametrize("remedy", ["skip", "restart", "relay"])
def test_every_remedy_works(remedy: str) -> None:
    attacked = run(attack=ATTACKS, defence={"on_alert": remedy})
    assert attacked.missed == attacked.false_alarms == 0
    assert attacked.detected > 0
    if remedy != "skip":
        assert attacked.weights_digest == clean().weights_digest


def test_spot_checks_find_two_who_agree() -> None:
    attacked = run(
        attack=("collusion,stages=2,first_step=1",),
        defence={"check_claims": 0.5},
    )
    assert attacked.rollbacks > 0
    assert attacked.weights_digest == clean().weights_digest


def test_spot_checks_without_shadows_find_a_lie() -> None:
    attacked = run(attack=("sign-flip,stages=2,first_step=1",), defence={"name": "spot-check", "check_steps": 0.5})
    assert attacked.rollbacks > 0
    assert attacked.weights_digest == clean().weights_digest


def test_dropout_is_replayed() -> None:
    honest = run(model={"dropout": 0.1})
    attacked = run(model={"dropout": 0.1}, attack=ATTACKS)
    assert honest.weights_digest == attacked.weights_digest != clean().weights_digest
    assert attacked.missed == attacked.false_alarms == 0


def test_processes_give_the_same_weights() -> None:
    found = run(pipeline={"engine": "processes"}, attack=ATTACKS)
    assert found.weights_digest == clean().weights_digest
    assert found.missed == found.false_alarms == 0


def test_a_lost_worker_is_taken_over() -> None:
    found = run(faults=("crash stage=2 step=2 at=backward micro_batch=1",))
    assert found.weights_digest == clean().weights_digest


def test_a_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def stop(event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed) and event.step == 2:
            first.stop()

    first = Experiment(merge(SMALL, {"output": {"dir": str(out)}}), observers=(stop,))
    assert first.run().steps < SMALL["training"]["steps"]
    assert Experiment(resume=out).run().weights_digest == clean().weights_digest


@pytest.mark.parametrize("dtype", DTYPES)
def test_unlike_arithmetic_of_one_gpu_raises_no_false_alarm(dtype: str) -> None:
    other = "math-attention+split-sums"
    honest = run(model={"dtype": dtype}, cluster={"numerics": ["native", "native", other, "native", "native", "native"]})
    assert honest.false_alarms == 0
    assert not honest.blamed_workers
    attacked = run(
        model={"dtype": dtype},
        cluster={"numerics": ["native", "native", other, "native", "native", "native"]},
        attack=ATTACKS,
    )
    assert attacked.missed == attacked.false_alarms == 0
    assert attacked.detected > 0


def test_the_doctor_finds_this_gpu_fit() -> None:
    names = {"device", "same product twice", "same stage twice", "split equals whole"}
    found = {check.name: check for check in examine(f"gpt2:{SHAPE}", DEVICE) if check.name in names}
    assert found.keys() == names
    assert all(check.passed for check in found.values()), found
