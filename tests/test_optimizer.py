"""The pure AdamW step against torch.optim.AdamW with clip_grad_norm_, bit for bit; schedules as tables."""

import math

import pytest
import torch

from holdfast.config import OptimizerConfig
from holdfast.digest import same_bytes
from holdfast.optimizer import AdamW, Moments, clipping, decays, learning_rate, parameter_groups

STEPS = 20


def model(dtype):
    """Matrices (which decay) and vectors (which do not), in mixed order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.LayerNorm(8), torch.nn.Linear(8, 16), torch.nn.Linear(16, 4, bias=False), torch.nn.LayerNorm(4)]
        return torch.nn.Sequential(*layers).to(dtype)


def gradients(plain, step):
    """What a backward pass might leave; now and then large enough to be clipped."""
    generator = torch.Generator().manual_seed(step)
    scale = 10.0 ** (step % 4 - 2)
    return {name: (torch.randn(p.shape, generator=generator) * scale).to(p.dtype) for name, p in plain.named_parameters()}


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twenty_steps_give_the_bits_of_torch(dtype, clip_norm):
    config = OptimizerConfig(learning_rate=3e-2, weight_decay=0.1, clip_norm=clip_norm, warmup_steps=3)
    plain = model(dtype)
    reference = torch.optim.AdamW(
        parameter_groups(plain, config), betas=(config.beta1, config.beta2), eps=config.epsilon, lr=1.0
    )
    ours = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    moments, optimizer = Moments.zeros(ours), AdamW(config)
    clipped = 0
    for step in range(STEPS):
        found = gradients(plain, step)
        for name, parameter in plain.named_parameters():
            parameter.grad = found[name].clone()
        for group in reference.param_groups:
            group["lr"] = learning_rate(config, step, STEPS)
        total = torch.nn.utils.clip_grad_norm_(plain.parameters(), clip_norm or math.inf)
        reference.step()
        clip = clipping([torch.linalg.vector_norm(found[name]).item() for name in ours], clip_norm, dtype)
        scaled = {name: gradient * clip.scale for name, gradient in found.items()}
        ours, moments = optimizer.step(ours, scaled, moments, learning_rate(config, step, STEPS))
        clipped += clip.scale < 1
        assert clip.norm == total.item()
        for name, parameter in plain.named_parameters():
            state = reference.state[parameter]
            assert same_bytes(ours[name], parameter)
            assert same_bytes(moments.first[name], state["exp_avg"])
            assert same_bytes(moments.second[name], state["exp_avg_sq"])
    assert moments.updates == STEPS
    assert (clipped > 0) is (clip_norm == 0.5)


def test_a_step_leaves_old_buffers_as_they_are():
    config = OptimizerConfig()
    weights = {name: parameter.detach() for name, parameter in model(torch.float32).named_parameters()}
    found = gradients(model(torch.float32), 0)
    _, moments = AdamW(config).step(weights, found, Moments.zeros(weights), 0.1)
    before = [tensor.clone() for table in (weights, found, moments.first, moments.second) for tensor in table.values()]
    once = AdamW(config).step(weights, found, moments, 0.1)
    after = [tensor for table in (weights, found, moments.first, moments.second) for tensor in table.values()]
    assert all(same_bytes(a, b) for a, b in zip(before, after, strict=True))
    twice = AdamW(config).step(weights, found, moments, 0.1)
    assert all(same_bytes(once[0][name], twice[0][name]) for name in weights)
    assert (moments.updates, once[1].updates) == (1, 2)


def test_only_what_has_a_gradient_is_updated():
    weights = {"a": torch.ones(2, 2), "frozen": torch.ones(2, 2)}
    new, moments = AdamW(OptimizerConfig()).step(weights, {"a": torch.ones(2, 2)}, Moments.zeros(weights), 0.1)
    assert new.keys() == moments.first.keys() == {"a"}


def test_weight_decay_is_for_matrices():
    config = OptimizerConfig(weight_decay=0.5)
    weights = {"matrix": torch.ones(2, 2), "vector": torch.ones(2)}
    assert [decays(tensor) for tensor in weights.values()] == [True, False]
    zero = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    new, _ = AdamW(config).step(weights, zero, Moments.zeros(weights), 0.1)
    assert new["matrix"].unique().tolist() == pytest.approx([0.95])
    assert same_bytes(new["vector"], torch.ones(2))


def test_moments_by_name_and_back():
    weights = {"a.b": torch.ones(2), "c": torch.zeros(1)}
    _, moments = AdamW(OptimizerConfig()).step(weights, weights, Moments.zeros(weights), 0.1)
    named = moments.named()
    assert sorted(named) == ["a.b.exp_avg", "a.b.exp_avg_sq", "c.exp_avg", "c.exp_avg_sq"]
    again = Moments.from_named(named, moments.updates)
    assert again.updates == 1
    assert again.first.keys() == again.second.keys() == weights.keys()
    assert all(again.first[name] is moments.first[name] for name in weights)
    assert all(again.second[name] is moments.second[name] for name in weights)


# -- clipping ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "limit", "scale"), [(5.0, 10.0, 1.0), (5.0, 0.0, 1.0), (0.0, 1.0, 1.0), (math.inf, 1.0, 0.0)])
def test_clip_scales(norm, limit, scale):
    assert clipping([norm], limit, torch.float32).scale == scale


def test_a_poisoned_norm_is_passed_on_as_torch_does_it():
    assert math.isnan(clipping([1.0, math.nan], 1.0, torch.float32).scale)


def test_the_norm_is_made_in_the_gradient_s_own_dtype():
    norms = [1.0, 0.0625]
    assert clipping(norms, 1.0, torch.bfloat16).norm == 1.0
    assert clipping(norms, 1.0, torch.float32).norm > 1.0


# -- schedules -----------------------------------------------------------------------------------------------------------

RATES = [  # schedule, warm-up, final ratio --> the rates of 8 steps, in hundredths of the peak
    ("constant", 0, 0.1, [100] * 8),
    ("constant", 4, 0.1, [25, 50, 75, 100, 100, 100, 100, 100]),
    ("linear", 4, 0.0, [25, 50, 75, 100, 100, 75, 50, 25]),
    ("linear", 0, 0.2, [100, 90, 80, 70, 60, 50, 40, 30]),
    ("cosine", 4, 0.0, [25, 50, 75, 100, 100, 85, 50, 15]),
    ("cosine", 4, 0.5, [25, 50, 75, 100, 100, 93, 75, 57]),
    ("cosine", 8, 0.0, [12, 25, 38, 50, 62, 75, 88, 100]),
    ("linear", 100, 0.0, [1, 2, 3, 4, 5, 6, 7, 8]),
]


@pytest.mark.parametrize(("schedule", "warmup", "final", "rates"), RATES)
def test_rates_step_by_step(schedule, warmup, final, rates):
    config = OptimizerConfig(learning_rate=100.0, schedule=schedule, warmup_steps=warmup, final_ratio=final)
    assert [round(learning_rate(config, step, 8)) for step in range(8)] == rates
