"""One stage computing one step: the bits of the plain model, and nothing before its seal."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import nn

from holdfast.config import OptimizerConfig
from holdfast.digest import same_bytes, state_digest, tensors_digest
from holdfast.execution import StageExecution, StepShape, cross_entropy
from holdfast.optimizer import AdamW
from holdfast.partition import StageModule, make_plan
from holdfast.partition.scratch import config_from_spec
from holdfast.partition.skeleton import from_config, prepare_config

# -- against the library's own model -------------------------------------------------------------------------------------

MICRO_BATCHES, STAGES = 3, 3
WORDS = torch.randint(0, 32, (MICRO_BATCHES, 2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["gpt2:layers=3,width=16,heads=2", "llama:layers=3,width=16,heads=2,tied=true"])
def library(request):
    """A whole model after one step of `(loss / M).backward()` in turn, and the stages of the same model."""
    torch.set_num_threads(1)
    config = prepare_config(config_from_spec(request.param, 32, 16))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = from_config(config, torch.float32)
    for words in WORDS:
        logits = whole(input_ids=words[:, :-1], use_cache=False).logits
        (cross_entropy(logits, words[:, 1:]) / MICRO_BATCHES).backward()
    return config, whole


def stages(config, whole):
    plan = make_plan(config, STAGES)
    weights = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    for stage, names in enumerate(plan.stage_parameters):
        module = StageModule(config, plan, stage)
        module.load_weights({name: weights[name] for name in names})
        yield StageExecution(module, AdamW(OptimizerConfig()), StepShape(MICRO_BATCHES))


@pytest.mark.parametrize("order", list(permutations(range(MICRO_BATCHES))))
def test_gradients_are_the_plain_model_s_whatever_order_the_backward_passes_finish_in(library, order):
    config, whole = library
    first, middle, last = stages(config, whole)
    last.set_tied(first.module.weights()[first.tied_name])
    for each in (first, middle, last):
        each.begin(0)
    outputs = [first.forward(m, words[:, :-1]) for m, words in enumerate(WORDS)]
    hidden = [middle.forward(m, outputs[m]) for m in range(MICRO_BATCHES)]
    for m, words in enumerate(WORDS):
        last.loss(m, hidden[m], words[:, 1:])
    for m in order:
        gradient, tied = last.backward(m, None)
        gradient, none = middle.backward(m, gradient)
        assert none is None
        assert first.backward(m, gradient, tied) == (None, None)
    by_name = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for each in (first, middle, last):
        names = each.module.plan.trainable_of(each.module.stage)
        assert each.complete
        assert each.gradient().digest == tensors_digest({name: by_name[name] for name in names})
        assert each.gradient().norms == each.norms() == tuple(torch.linalg.vector_norm(by_name[n]).item() for n in names)


# -- the order of things -------------------------------------------------------------------------------------------------


def forward(toy, execution, m=0, seed=50):
    return execution.forward(m, toy.draw(toy.B, toy.S, toy.D, seed=seed + m))


def computed(toy, execution, step=0):
    """A stage with a complete gradient."""
    execution.begin(step)
    for m in range(toy.M):
        forward(toy, execution, m)
        execution.backward(m, toy.draw(toy.B, toy.S, toy.D, seed=60 + m))
    return execution


def test_a_gradient_is_complete_when_every_micro_batch_was_added(toy):
    execution = toy.execution(1, loaded=True)
    execution.begin(0)
    for m in (0, 1):
        forward(toy, execution, m)
    execution.backward(1, toy.draw(toy.B, toy.S, toy.D, seed=61))
    assert not execution.complete  # it waits for micro-batch 0
    execution.backward(0, toy.draw(toy.B, toy.S, toy.D, seed=60))
    assert execution.complete
    assert execution.gradient() == computed(toy, toy.execution(1, loaded=True)).gradient()


def test_a_new_step_or_attempt_drops_graphs_gradients_and_candidate(toy):
    execution = computed(toy, toy.execution(1, loaded=True))
    wanted, sealed = execution.gradient(), state_digest(execution.state(0))
    execution.update(1.0, 0.1)
    forward(toy, execution, 0)
    execution.begin(0)
    assert not execution.complete
    assert state_digest(execution.state(0, candidate=True)) == sealed
    with pytest.raises(KeyError):
        execution.backward(0, toy.draw(toy.B, toy.S, toy.D, seed=60))
    assert computed(toy, execution).gradient() == wanted
    for step in (0, 1):
        execution.begin(step)
        forward(toy, execution, 1)
        execution.backward(1, toy.draw(toy.B, toy.S, toy.D, seed=99))  # it waits for micro-batch 0, in vain
    assert computed(toy, execution).gradient() == wanted


def test_an_update_waits_beside_the_weights_in_use_until_it_is_sealed(toy):
    execution = computed(toy, toy.execution(1, loaded=True))
    old = execution.state(0)
    kept = old.weights["w1"].clone()
    before = state_digest(old)
    execution.update(0.5, 0.1)
    assert state_digest(execution.state(0)) == before
    candidate = execution.state(1, candidate=True)
    expected, moments = AdamW(OptimizerConfig()).step(
        {"w1": kept}, {"w1": computed(toy, toy.execution(1, loaded=True))._sum[0] * 0.5}, toy.execution(1)._moments, 0.1
    )
    assert same_bytes(candidate.weights["w1"], expected["w1"])
    assert (candidate.stage, candidate.version, candidate.updates) == (1, 1, moments.updates) == (1, 1, 1)
    output = forward(toy, execution, 0)
    execution.seal()
    assert state_digest(execution.state(1)) == state_digest(candidate) != before
    assert not same_bytes(forward(toy, execution, 0), output)
    assert same_bytes(old.weights["w1"], kept)  # who was given the old state still has it


def test_a_seal_without_an_update_changes_nothing(toy):
    execution = computed(toy, toy.execution(1, loaded=True))
    before = state_digest(execution.state(0))
    execution.seal()
    assert state_digest(execution.state(1)) == before
    execution.update(1.0, 0.1)
    execution.seal()
    once = state_digest(execution.state(1))
    execution.seal()
    assert state_digest(execution.state(1)) == once != before


def test_a_loaded_state_goes_on_like_the_one_it_was_taken_from(toy):
    one = computed(toy, toy.execution(1, loaded=True))
    one.update(1.0, 0.1)
    one.seal()
    other = toy.execution(1)
    other.load(one.state(1))
    for each in (one, other):
        computed(toy, each, 1).update(1.0, 0.1)
    assert state_digest(one.state(2, candidate=True)) == state_digest(other.state(2, candidate=True))
    assert one.state(2, candidate=True).updates == 2


def test_a_state_without_moments_is_a_fresh_optimizer(toy):
    execution = toy.execution(1)
    execution.load(replace(toy.state(1), moments={}))
    assert state_digest(execution.state(0)) == toy.sealed(1)


def test_loading_drops_a_candidate(toy):
    execution = computed(toy, toy.execution(1, loaded=True))
    execution.update(1.0, 0.1)
    execution.load(toy.state(1))
    execution.seal()
    assert state_digest(execution.state(0)) == toy.sealed(1)


def test_tensors_given_and_returned_are_never_modified(toy):
    execution = toy.execution(2, loaded=True)
    execution.begin(0)
    given = [toy.draw(toy.B, toy.S, toy.D, seed=70 + m) for m in range(4)]
    kept = [tensor.clone() for tensor in given]
    outputs = [execution.forward(m, given[m]) for m in (0, 1)]
    returned = [execution.backward(m, given[2 + m])[0] for m in (0, 1)]
    copies = [tensor.clone() for tensor in outputs + returned]
    execution.update(0.1, 0.1)
    execution.seal()
    computed(toy, execution, 1)
    assert all(same_bytes(a, b) for a, b in zip(given + outputs + returned, kept + copies, strict=True))
    assert not any(tensor.requires_grad for tensor in given + outputs + returned)
    assert all(tensor.is_contiguous() for tensor in outputs + returned)


def test_only_a_tied_head_can_be_set(toy):
    with pytest.raises(AssertionError, match="no tied head"):
        toy.execution(1).set_tied(toy.state(0).weights["w0"])


# -- dropout -------------------------------------------------------------------------------------------------------------


def dropped(toy, execution, step, m):
    execution.begin(step)
    return forward(toy, execution, m, seed=50 - m)  # the same input for every micro-batch


def with_dropout(toy, stage=1, seed=7):
    execution = toy.execution(stage, dropout_seed=seed)
    execution.load(toy.state(1) if stage == 1 else toy.StageState(stage, 0, 0, {f"w{stage}": toy.state(1).weights["w1"]}, {}))
    execution.module.train()
    return execution


def test_dropout_is_replayed_by_whoever_computes_the_claim_again(toy):
    one, other = with_dropout(toy), with_dropout(toy)
    first = dropped(toy, one, 3, 1)
    torch.rand(3)  # whatever happens outside
    assert same_bytes(dropped(toy, one, 3, 1), first)  # another attempt of the step
    assert same_bytes(dropped(toy, other, 3, 1), first)  # another holder
    assert (first == 0).any()


@pytest.mark.parametrize("change", ["step", "micro-batch", "stage", "seed"])
def test_dropout_differs_by_step_micro_batch_stage_and_run(toy, change):
    other = with_dropout(toy, stage=2 if change == "stage" else 1, seed=8 if change == "seed" else 7)
    place = {"step": (4, 1), "micro-batch": (3, 0)}.get(change, (3, 1))
    assert not same_bytes(dropped(toy, with_dropout(toy), 3, 1), dropped(toy, other, *place))


def test_dropout_leaves_no_trace_outside(toy):
    before = torch.random.get_rng_state()
    dropped(toy, with_dropout(toy), 0, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_loss_of_the_last_stage_drops_by_the_same_rule(toy):
    losses = set()
    for step in (0, 0, 1):
        execution = toy.execution(3, dropout_seed=7)
        execution.load(toy.state(3))
        execution.set_tied(toy.state(0).weights["w0"])
        execution.module.train()
        execution.begin(step)
        losses.add(execution.loss(0, toy.draw(toy.B, toy.S, toy.D, seed=1), toy.tokens(0)[0][:, 1:]))
    assert len(losses) == 2


def test_cross_entropy_is_the_mean_over_tokens_in_fp32():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2], [3, 4, 0]])
    wanted = -nn.functional.log_softmax(logits, -1).gather(-1, labels[..., None]).mean()
    assert cross_entropy(logits, labels).item() == pytest.approx(wanted.item(), rel=1e-6)
    assert cross_entropy(logits.bfloat16(), labels).dtype is torch.float32
