"""One lie at a time, told as a story: K = 6, the initiator at both ends, w1 to w4 between; w3 checks w2.

stage       0          1    2    3    4    5
primary     initiator  w1   w2   w3   w4   initiator
shadow                 w2   w3   w4   initiator
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from holdfast.claim import Direction
from holdfast.digest import state_digest, weights_digest
from holdfast.event import Alert, ClaimReplaced, Ruling, StagesSkipped, StepRestarted, StepSealed, WorkerLost
from holdfast.execution import cross_entropy
from holdfast.job import Job
from holdfast.optimizer import learning_rate, parameter_groups
from holdfast.partition import whole_model

FORWARD, BACKWARD, GRADIENT, UPDATE = Direction


def alerts(result: Any) -> list[tuple[str, Direction, int, tuple[str, ...]]]:
    """Why, about what, whom it may have been; each once."""
    return list(dict.fromkeys((a.reason, a.key.direction, a.key.stage, a.suspects) for a in result.of(Alert)))


def rulings(result: Any) -> list[tuple[Direction, int, tuple[str, ...]]]:
    return list(dict.fromkeys((r.key.direction, r.stage, r.culprits) for r in result.of(Ruling)))


def check_undone(lab: Any, result: Any) -> None:
    clean = lab.clean(result)
    assert result.attacked == result.detected > 0
    assert (result.missed, result.false_alarms, result.restarted) == (0, 0, 0)
    assert result.digest == clean.digest
    assert [event.gradient_norm for event in result.of(StepSealed)] == [event.gradient_norm for event in clean.of(StepSealed)]


# -- one link ------------------------------------------------------------------------------------------------------------


def test_a_lie_on_the_jump_only(lab: Any) -> None:
    """w2 tells w3 the truth and w4, who will check w3, something else. The board has one digest; w4 gets the tensor from w3."""
    result = lab.run(attack="lie-on-jump,stages=2")
    check_undone(lab, result)
    assert alerts(result) == [("delivery", FORWARD, 2, ("w2", "w4"))]
    assert rulings(result) == [(FORWARD, 2, ("w2",))], "it signed both: one for the board, one for w4"


@pytest.mark.parametrize("attack", ["lie-on-jump", "lie-on-direct"])
def test_a_false_tensor_under_the_right_header_proves_nothing(lab: Any, attack: str) -> None:
    """The receiver may be making it up. It costs a second delivery."""
    result = lab.run(attack=f"{attack},stages=2,header=false")
    check_undone(lab, result)
    assert {reason for reason, *_ in alerts(result)} == {"delivery"}
    assert rulings(result) == []


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_a_lie_on_the_direct_message_only(lab: Any, direction: Direction) -> None:
    result = lab.run(attack=f"lie-on-direct,stages=2,direction={direction}")
    check_undone(lab, result)
    victim = "w3" if direction is FORWARD else "w1"
    assert alerts(result) == [("delivery", direction, 2, ("w2", victim))]
    assert rulings(result) == [(direction, 2, ("w2",))]


def test_a_lie_about_the_parent_only(lab: Any) -> None:
    """The output is right, the input that it is said to come from is not: the chain breaks at w2, and at nobody else."""
    result = lab.run(attack="wrong-parent,stages=2")
    check_undone(lab, result)
    assert alerts(result) == [("parent", FORWARD, 2, ("w2",))]
    assert rulings(result) == [(FORWARD, 2, ("w2",))]


def test_a_delivery_that_never_comes(lab: Any) -> None:
    """w2 posts what it computed and keeps the tensor. After the deadline w3, its shadow, supplies it to its own other seat."""
    result = lab.run(attack="withhold,what=direct,direction=backward,stages=2", steps=1)
    check_undone(lab, result)
    assert {(reason, direction, stage) for reason, direction, stage, _ in alerts(result)} == {("withheld", BACKWARD, 2)}
    assert rulings(result) == []
    assert result.of(WorkerLost) == []
    assert result.virtual_s > result.config.defence.deadline_s


def test_one_thing_and_then_another_to_the_board(lab: Any) -> None:
    """The first header stands; the second proves that w2 says two things, and needs no referee."""
    result = lab.run(attack="equivocation,stages=2")
    check_undone(lab, result)
    assert alerts(result) == [("equivocation", FORWARD, 2, ("w2",))]
    assert rulings(result) == [(FORWARD, 2, ("w2",))]
    assert result.of(ClaimReplaced) == []


# -- verifiers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_a_verifier_frames_an_honest_stage(lab: Any, direction: Direction) -> None:
    """w3 accuses w2. The referee names w3, and w2's own values go on."""
    result = lab.run(attack=f"framing,stages=2,direction={direction}")
    check_undone(lab, result)
    assert alerts(result) == [("output", direction, 2, ("w2", "w3"))]
    assert rulings(result) == [(direction, 2, ("w3",))]
    assert result.of(ClaimReplaced) == []


def test_a_corrupt_shadow(lab: Any) -> None:
    """w3 spoils its copy of stage 2. It is named for whatever it says from then on, and gets the sealed state at the seal."""
    result = lab.run(attack=lab.only("X..", "corrupt-shadow", 2), steps=3)
    check_undone(lab, result)
    assert result.blamed == {"w3"}
    assert {key.step for _, key in result.convictions} == {0}, "the sealed state healed it"


# -- where no tensor is sent ---------------------------------------------------------------------------------------------


def test_a_lie_about_the_norm(lab: Any) -> None:
    """Half the norm would escape clipping: the same gradient, but not the same share of the clip scale."""
    result = lab.run(attack="wrong-norm,stages=2,factor=0.5")
    check_undone(lab, result)
    assert alerts(result) == [("norms", GRADIENT, 2, ("w2", "w3"))]
    assert rulings(result) == [(GRADIENT, 2, ("w2",))]


@pytest.mark.parametrize("mode", ["header", "state"])
def test_a_wrong_gradient(lab: Any, mode: str) -> None:
    result = lab.run(attack=lab.only("X.", f"wrong-gradient,mode={mode}", 2))
    check_undone(lab, result)
    assert alerts(result)[0] == ("output", GRADIENT, 2, ("w2", "w3"))
    assert result.blamed == {"w2"}


@pytest.mark.parametrize("mode", ["header", "state"])
def test_a_corrupt_update(lab: Any, mode: str) -> None:
    """The seal waits for equal digests; w2 is given what was sealed, and is honest again in the next step."""
    result = lab.run(attack=lab.only("X..", f"wrong-update,mode={mode}", 2), steps=3)
    check_undone(lab, result)
    assert alerts(result) == [("output", UPDATE, 2, ("w2", "w3"))]
    assert rulings(result) == [(UPDATE, 2, ("w2",))]


def test_an_update_that_is_corrupted_after_it_was_signed(lab: Any) -> None:
    """Sealed on honest digests, and then spoilt: the next claims of w2 show it, and the state that it opens for the referee."""
    result = lab.run(attack=lab.only("X..", "wrong-update,mode=secret", 2), steps=3)
    check_undone(lab, result)
    assert result.blamed == {"w2"}
    assert {key.step for _, key in result.convictions} == {1}
    assert {event.reason for event in result.of(Ruling) if event.key.step == 0} == {"state"}


# -- several liars -------------------------------------------------------------------------------------------------------


LIARS = [(liars, direction) for liars in [(1, 4), (1, 3), (2, 4)] for direction in ("forward", "backward", "both")]


@pytest.mark.parametrize(
    ("liars", "direction"),
    [pytest.param(*case, marks=[] if i % 4 == 0 else [pytest.mark.slow]) for i, case in enumerate(LIARS)],
)
def test_two_liars_that_are_not_neighbours_in_one_step(lab: Any, liars: tuple[int, int], direction: str) -> None:
    """Stages 1 and K-2 among them: the first and the last that can lie."""
    result = lab.run(attack=[f"sign-flip,stages={stage},direction={direction}" for stage in liars], steps=1)
    check_undone(lab, result)
    assert result.convictions == result.false_accounts(lab.clean(result))
    assert result.blamed == {f"w{stage}" for stage in liars}


@pytest.mark.parametrize("stages", [3, 4])
def test_a_short_pipeline(lab: Any, stages: int) -> None:
    """With K = 3 one worker stands alone between the initiator's stages; it is checked all the same."""
    for stage in range(1, stages - 1):
        result = lab.run(stages=stages, attack=f"sign-flip,direction=both,stages={stage}")
        check_undone(lab, result)
        assert result.blamed == {f"w{stage}"}


# -- skip ----------------------------------------------------------------------------------------------------------------


SKIPS = {  # the stage of the alert: who is bypassed, and what is frozen
    1: ((1, 2), (1, 2)),
    2: ((2, 3), (1, 2, 3)),
    3: ((3, 4), (2, 3, 4)),
    4: ((4,), (3, 4)),  # K-2: its verifier is the initiator, so only the accused goes
}


def skipped(lab: Any, stage: int, direction: Direction, steps: int = 3) -> Any:
    return lab.run(
        attack=lab.only("X" + "." * (steps - 1), f"sign-flip,direction={direction}", stage), on_alert="skip", steps=steps
    )


@pytest.mark.parametrize(
    ("stage", "direction"),
    [
        pytest.param(stage, direction, marks=[] if (stage % 2 == 0) == (direction is BACKWARD) else [pytest.mark.slow])
        for stage in SKIPS
        for direction in (FORWARD, BACKWARD)
    ],
)
def test_skip_bypasses_the_suspects_and_redoes_the_step(lab: Any, stage: int, direction: Direction) -> None:
    """The step in which the alert came is begun again; what stays frozen stays equal, so the steps after it raise no alert."""
    result = skipped(lab, stage, direction)
    bypassed, frozen = SKIPS[stage]
    assert result.of(StagesSkipped) == [StagesSkipped(0, bypassed, frozen)]
    assert [(event.step, event.attempt) for event in result.of(StepSealed)] == [(0, 1), (1, 0), (2, 0)]
    assert {key.step for key in result.counts.alerted} == {0}
    assert (result.missed, result.false_alarms) == (0, 0)
    assert result.of(StepRestarted) == []
    assert result.blamed == set(), "who lied is not looked into: both suspects sit the step out"
    updates = {i: result.states[i].updates for i in range(6)}
    assert updates == {i: 2 if i in frozen else 3 for i in range(6)}


def train_without(job: Job, gone: tuple[int, ...], still: tuple[int, ...]) -> str:
    """A plain loop whose first step leaves the layers of the stages `gone` out and moves nothing of the stages `still`."""
    options, plan = job.config.optimizer, job.plan
    weights = {name: tensor for i in range(plan.stages) for name, tensor in job.initial_state(i).weights.items()}
    model = whole_model(job.source.config, weights, job.lora).train()
    betas = (options.beta1, options.beta2)
    optimizer = torch.optim.AdamW(parameter_groups(model, options), lr=0.0, betas=betas, eps=options.epsilon)
    parameters, layers = dict(model.named_parameters()), model.transformer.h
    left_out = set(itertools.chain.from_iterable(range(*plan.layers[i]) for i in gone))
    for step in range(job.config.training.steps):
        if step == 0:
            model.transformer.h = torch.nn.ModuleList(layer for i, layer in enumerate(layers) if i not in left_out)
        optimizer.zero_grad()
        for tokens in job.batches.batch(step):
            loss = cross_entropy(model(input_ids=tokens[:, :-1], use_cache=False).logits, tokens[:, 1:])
            (loss / job.config.pipeline.micro_batches).backward()
        model.transformer.h = layers
        for name in itertools.chain.from_iterable(plan.trainable_of(i) for i in still) if step == 0 else ():
            parameters[name].grad = None
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, step, job.config.training.steps)
        optimizer.step()
    return weights_digest({name: parameter.detach() for name, parameter in parameters.items()})


@pytest.mark.parametrize("stage", [pytest.param(i, marks=[] if i in (2, 4) else [pytest.mark.slow]) for i in SKIPS])
def test_skip_is_training_without_those_layers_for_a_step(lab: Any, stage: int) -> None:
    """Frozen means no gradient, no decay, no moment, no step count, no share of the norm: as torch does without a gradient."""
    result = skipped(lab, stage, FORWARD)
    assert result.digest == train_without(lab.job(result.config), *SKIPS[stage])
    assert result.digest != lab.clean(result).digest


@pytest.mark.parametrize("stage", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_primary_and_shadow_of_a_frozen_stage_stay_equal(lab: Any, stage: int) -> None:
    """What both say of every later claim is the same, to the last byte of weights and moments."""
    result = skipped(lab, stage, BACKWARD)
    later = {place: said for place, said in result.accounts.items() if place[0] > 0}
    assert all(len(said) == 1 for said in later.values())
    for frozen in SKIPS[stage][1]:
        told = {header.output for _, header in result.posted if header.key.direction is UPDATE and header.key.stage == frozen}
        assert state_digest(result.states[frozen]) in told


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_skip_over_a_campaign(lab: Any, direction: str, seed: int) -> None:
    """Any stage in any step: every lie that was judged is caught, nothing false gets into the weights."""
    result = lab.run(attack=f"sign-flip,direction={direction},rate=0.7,seed={seed}", on_alert="skip", steps=8)
    assert (result.missed, result.false_alarms) == (0, 0)
    assert result.counts.stages_skipped > 0
    assert all(event.bypassed in [skip[0] for skip in SKIPS.values()] for event in result.of(StagesSkipped))
