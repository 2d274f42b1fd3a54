"""With nobody lying, a pipeline is the plain model: same losses, same gradients, same weights, to the bit.

The reference is what anybody would write: the library's own model in one piece, `(loss / M).backward()` for each micro-batch,
`clip_grad_norm_`, `torch.optim.AdamW`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from holdfast.claim import Role
from holdfast.digest import tensors_digest, weights_digest
from holdfast.event import StepSealed
from holdfast.execution import Gradient, cross_entropy
from holdfast.job import Job
from holdfast.message import Envelope
from holdfast.optimizer import learning_rate, parameter_groups
from holdfast.partition import whole_model
from holdfast.stage import Stage

SHAPE = "layers=6,width=16,heads=2"
MODELS = {
    "gpt2": f"gpt2:{SHAPE},tied=true",
    "gpt2-untied": f"gpt2:{SHAPE},tied=false",
    "opt": f"opt:{SHAPE}",
    "opt-post-norm": f"opt:{SHAPE},post_norm=true,projection=8",
    "bloom": f"bloom:{SHAPE}",
    "llama": f"llama:{SHAPE},kv_heads=1",
    "qwen3": f"qwen3:{SHAPE},tied=false",
    "qwen3-tied": f"qwen3:{SHAPE},tied=true",
}
CLIP = 0.01
GradientsOfStep = dict[int, Gradient]


@dataclass
class History:
    """One training run, step by step: mean loss, global norm, gradient of each stage; and the weights at its end."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: list[GradientsOfStep] = field(default_factory=list)
    digest: str = ""


def plain_loop(job: Job) -> History:
    """The model in one piece."""
    config, history = job.config, History()
    weights = {n: t for i in range(job.plan.stages) for n, t in job.initial_state(i).weights.items()}
    model = whole_model(job.source.config, weights, job.lora).train()
    options = config.optimizer
    betas = (options.beta1, options.beta2)
    optimizer = torch.optim.AdamW(parameter_groups(model, options), lr=0.0, betas=betas, eps=options.epsilon)
    micro_batches = config.pipeline.micro_batches
    for step in range(config.training.steps):
        optimizer.zero_grad()
        losses = []
        for tokens in job.batches.batch(step):
            loss = cross_entropy(model(input_ids=tokens[:, :-1], use_cache=False).logits, tokens[:, 1:])
            (loss / micro_batches).backward()
            losses.append(loss.item())
        history.losses.append(sum(losses) / len(losses))
        history.gradients.append(_gradients(job, dict(model.named_parameters())))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm or float("inf"))
        history.norms.append(norm.item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, step, config.training.steps)
        optimizer.step()
    history.digest = weights_digest({name: p.detach() for name, p in model.named_parameters()})
    return history


def _gradients(job: Job, parameters: dict[str, torch.nn.Parameter]) -> GradientsOfStep:
    found = {}
    for stage in range(job.plan.stages):
        named = {name: parameters[name].grad for name in job.plan.trainable_of(stage)}
        norms = tuple(torch.linalg.vector_norm(gradient).item() for gradient in named.values())
        found[stage] = Gradient(tensors_digest(named), norms)
    return found


def pipeline(lab: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> tuple[History, dict[Role, set[int]]]:
    """The same as a pipeline; every seat's gradient is recorded as it is claimed, defences on or off."""
    seen: dict[tuple[int, int, Role], Gradient] = {}
    claim_gradient = Stage.claim_gradient

    def recorded(seat: Stage) -> list[Envelope]:
        seen[(*seat.moment[:1], seat.index, seat.role)] = seat.execution.gradient()
        return claim_gradient(seat)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "claim_gradient", recorded)
        result = lab.run(**settings)
    sealed = result.of(StepSealed)
    history = History(result.losses, [event.gradient_norm for event in sealed], [{} for _ in sealed], result.digest)
    seats: dict[Role, set[int]] = {role: set() for role in Role}
    for (step, stage, role), gradient in seen.items():
        assert history.gradients[step].setdefault(stage, gradient) == gradient, f"primary and shadow of stage {stage} differ"
        seats[role].add(stage)
    return history, seats


def check(lab: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """The pipeline of `settings` is the plain loop, and it really clips."""
    job = lab.job(lab.config(**settings))
    plain = plain_loop(job)
    piped, seats = pipeline(lab, monkeypatch, settings)
    stages, shadowed = job.plan.stages, settings.get("defence") == "duplicate"
    assert seats == {
        Role.PRIMARY: set(range(stages)),
        Role.SHADOW: set(range(1, stages - 1)) if shadowed else set(),
        Role.COMPARER: set(),
    }
    assert piped.losses == plain.losses
    assert piped.norms == plain.norms
    for step, (ours, theirs) in enumerate(zip(piped.gradients, plain.gradients, strict=True)):
        assert ours == theirs, f"step {step}"
    assert piped.digest == plain.digest
    clip = job.config.optimizer.clip_norm
    assert not clip or all(norm > 1.1 * clip for norm in plain.norms), "nothing was clipped; the test shows less than it says"


def configuration(model: str, stages: int, schedule: str, defence: str, steps: int = 20) -> dict[str, Any]:
    optimizer = {"clip_norm": CLIP, "learning_rate": 1e-2, "weight_decay": 0.1}
    return {
        "model": {"name": MODELS[model]},
        "stages": stages,
        "schedule": schedule,
        "defence": defence,
        "steps": steps,
        "optimizer": optimizer,
    }


MATRIX = [
    (model, stages, schedule, defence)
    for model, stages, schedule, defence in itertools.product(MODELS, (2, 3, 6), ("gpipe", "1f1b"), ("none", "duplicate"))
    if stages > 2 or defence == "none"
]
QUICK = [
    ("gpt2", 6, "1f1b", "duplicate"),
    ("opt-post-norm", 6, "gpipe", "duplicate"),
    ("bloom", 3, "1f1b", "none"),
    ("llama", 6, "1f1b", "duplicate"),
    ("qwen3-tied", 3, "gpipe", "duplicate"),
    ("qwen3", 2, "1f1b", "none"),
]


@pytest.mark.parametrize(("model", "stages", "schedule", "defence"), QUICK)
def test_a_pipeline_is_the_plain_model(
    lab: Any, monkeypatch: pytest.MonkeyPatch, model: str, stages: int, schedule: str, defence: str
) -> None:
    check(lab, monkeypatch, **configuration(model, stages, schedule, defence, steps=3))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "stages", "schedule", "defence"), MATRIX)
def test_a_pipeline_is_the_plain_model_over_twenty_steps(
    lab: Any, monkeypatch: pytest.MonkeyPatch, model: str, stages: int, schedule: str, defence: str
) -> None:
    check(lab, monkeypatch, **configuration(model, stages, schedule, defence))


@pytest.mark.parametrize("micro_batches", [1, 5])
def test_gradients_accumulate_as_in_the_plain_loop(lab: Any, monkeypatch: pytest.MonkeyPatch, micro_batches: int) -> None:
    settings = configuration("gpt2", 3, "1f1b", "duplicate", steps=3)
    check(lab, monkeypatch, **settings, micro_batches=micro_batches)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 5, 8])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("model", ["gpt2", "opt-post-norm", "llama"])
def test_gradients_accumulate_as_in_the_plain_loop_over_twenty_steps(
    lab: Any, monkeypatch: pytest.MonkeyPatch, model: str, schedule: str, micro_batches: int
) -> None:
    check(lab, monkeypatch, **configuration(model, 6, schedule, "duplicate"), micro_batches=micro_batches)


@pytest.mark.parametrize(
    "model", ["gpt2", *(pytest.param(model, marks=pytest.mark.slow) for model in MODELS if model != "gpt2")]
)
def test_in_bfloat16(lab: Any, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    settings = configuration(model, 6, "1f1b", "duplicate", steps=5)
    settings["model"] |= {"dtype": "bfloat16"}
    check(lab, monkeypatch, **settings)


@pytest.mark.parametrize(
    "model", ["llama", *(pytest.param(model, marks=pytest.mark.slow) for model in MODELS if model != "llama")]
)
def test_a_cut_that_is_far_from_even(lab: Any, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    settings = configuration(model, 6, "1f1b", "duplicate", steps=3)
    settings["model"] = {"name": MODELS[model].replace("layers=6", "layers=11")}
    settings["cluster"] = {"speeds": (1.0, 4.0, 1.0, 1.0, 1.0, 1.0)}
    sizes = [after - first for first, after in lab.job(lab.config(**settings)).plan.layers]
    assert max(sizes) >= 2 * min(size for size in sizes if size), f"the cut is even: {sizes}"
    check(lab, monkeypatch, **settings)


def test_without_clipping(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configuration("gpt2", 3, "1f1b", "duplicate", steps=3)
    settings["optimizer"] = {"clip_norm": 0.0}
    check(lab, monkeypatch, **settings)


@pytest.mark.parametrize("defence", ["none", "duplicate", "duplicate-only"])
def test_the_wire_encoding_changes_no_bit(lab: Any, defence: str) -> None:
    through, past = (lab.run(defence=defence, cluster={"wire_check": check}) for check in (True, False))
    assert through.digest == past.digest
    assert through.accounts == past.accounts
    assert through.losses == past.losses


def test_dropout_is_the_same_for_all_who_recompute(lab: Any) -> None:
    """No alert between primary and shadow, and another attempt of a step draws the same numbers."""
    dropout = {"model": {"name": MODELS["gpt2"], "dropout": 0.2}}
    clean = lab.run(**dropout)
    assert clean.counts.alerted == {}
    assert clean.digest == lab.run(**dropout, schedule="gpipe").digest
    assert clean.digest != lab.run().digest
    retried = lab.run(**dropout, attack="sign-flip,stages=2", on_alert="restart")
    assert retried.restarted == 2
    assert retried.digest == clean.digest
