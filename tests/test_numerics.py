"""What a run pins, it gives back; an arithmetic is another way to compute, and leaves no trace when it is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from holdfast.accumulation import PARTS, SplitSums, WideSums
from holdfast.errors import ConfigError
from holdfast.numerics import ARITHMETICS, Arithmetic, numerics_class, pinned, resolve_arithmetic
from holdfast.partition import StageModule, describe, initial_weights, make_plan

EVERY = [*ARITHMETICS, "no-onednn+math-attention+threads-2", "split-sums+fp32-accumulation"]
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with pinned("cpu"):
        yield


def settings() -> tuple[object, ...]:
    """Whatever an arithmetic could leave behind."""
    attention = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    return torch.get_num_threads(), torch.backends.mkldnn.enabled, attention, torch.overrides._len_torch_function_stack()


def test_one_thread_inside_and_the_former_number_after() -> None:
    torch.set_num_threads(2)
    with pinned("cpu"):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_other_devices_compute_deterministically() -> None:
    with pinned("cuda:0"):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with pinned("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()


# -- arithmetics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_an_arithmetic_leaves_no_trace(name: str) -> None:
    before = settings()
    arithmetic = resolve_arithmetic(name)
    with arithmetic.computing():
        inside = settings()
        with arithmetic.computing():
            assert settings()[:3] == inside[:3], "it may be opened inside itself"
        assert settings() == inside
    assert settings() == before
    with pytest.raises(ZeroDivisionError), arithmetic.computing():
        _ = 1 / 0
    assert settings() == before


@pytest.mark.parametrize(
    ("name", "place", "inside"), [("no-onednn", 1, False), ("math-attention", 2, (False, True)), ("threads-2", 0, 2)]
)
def test_what_an_arithmetic_sets(name: str, place: int, inside: object) -> None:
    assert settings()[place] != inside
    with ARITHMETICS[name].computing():
        assert settings()[place] == inside


def test_names() -> None:
    assert resolve_arithmetic(" native ") is ARITHMETICS["native"]
    both = resolve_arithmetic("threads-2+no-onednn")
    assert both == resolve_arithmetic("no-onednn + threads-2") == Arithmetic("no-onednn+threads-2", threads=2)
    with both.computing():
        assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == (2, False)


@pytest.mark.parametrize("name", ["", "fp16", "native+threads-2", "threads-2+threads-2", "threads-2+", "no-onednn,threads-2"])
def test_a_wrong_name_is_told_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError, match="arithmetic"):
        resolve_arithmetic(name)
    with pytest.raises(ConfigError, match="known are native, no-onednn, math-attention, threads-2, split-sums, fp32-acc"):
        resolve_arithmetic("exact")


def middle_stage(name: str, dtype: torch.dtype) -> tuple[StageModule, Tensor, Tensor]:
    source = describe(name)
    plan = make_plan(source.config, 3)
    stage = StageModule(source.config, plan, 1, dtype=dtype)
    stage.load_weights(initial_weights(source, plan, 1, 0, dtype))
    hidden, gradient = (
        torch.randn(2, 16, plan.width, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (1, 2)
    )
    return stage, hidden, gradient


def computed(stage: StageModule, hidden: Tensor, gradient: Tensor, arithmetic: Arithmetic) -> list[Tensor]:
    """Output, input gradient and weight gradients."""
    with arithmetic.computing():
        hidden = hidden.clone().requires_grad_(True)
        output = stage(hidden)
        found = torch.autograd.grad(output, [hidden, *(p for _, p in stage.named_trainable_parameters())], gradient)
    return [output.detach(), *found]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_every_arithmetic_is_deterministic_and_near_the_native_one(family: str, dtype: torch.dtype) -> None:
    stage, hidden, gradient = middle_stage(f"{family}:layers=3,width=32,heads=2", dtype)
    native = computed(stage, hidden, gradient, ARITHMETICS["native"])
    near = 1e-5 if dtype is torch.float32 else 3e-2
    for name in EVERY:
        first, again = (computed(stage, hidden, gradient, resolve_arithmetic(name)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), name
        assert all(tensor.dtype == dtype for tensor in first), name
        far = torch.cat([(a - b).double().flatten() for a, b in zip(first, native, strict=True)]).norm()
        assert far < near * torch.cat([tensor.double().flatten() for tensor in native]).norm(), name


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "fp64-accumulation"), (torch.bfloat16, "fp32-accumulation")])
def test_wider_sums_are_nearer_the_truth(dtype: torch.dtype, name: str) -> None:
    stage, hidden, gradient = middle_stage("gpt2:layers=3,width=64,heads=4", dtype)
    wide, native = (computed(stage, hidden, gradient, ARITHMETICS[each]) for each in (name, "native"))
    weights = {key: tensor.double() for key, tensor in stage.weights().items()}
    exact, *_ = middle_stage("gpt2:layers=3,width=64,heads=4", torch.float64)
    exact.load_weights(weights)
    truth = computed(exact, hidden.double(), gradient.double(), ARITHMETICS["native"])
    off = [sum((a.double() - b).norm() for a, b in zip(found, truth, strict=True)) for found in (wide, native)]
    assert off[0] < off[1], "weight gradients and output together"
    assert not torch.equal(wide[-1], native[-1]) or not torch.equal(wide[0], native[0])


# -- the modes -----------------------------------------------------------------------------------------------------------


def test_wide_sums_widen_what_sums_and_nothing_else() -> None:
    numbers = torch.tensor([[1e8, 1.0, -1e8, 1.0]])
    ones = torch.ones(4, 1)
    with WideSums(torch.float32, torch.float64):
        for product in (
            numbers @ ones,
            torch.matmul(numbers, ones),
            functional.linear(numbers, ones.t()),
            torch.mm(numbers, ones),
        ):
            assert product.dtype is torch.float32
            assert product.item() == 2.0
        assert torch.addmm(torch.ones(1), numbers, mat2=ones).item() == 3.0, "arguments by name too"
        assert (numbers.half() @ ones.half()).dtype is torch.float16, "other dtypes are left alone"
        assert functional.softmax(numbers, dim=-1, dtype=torch.float64).dtype is torch.float64, "as asked for"
        assert numbers.sum().item() != 2.0


def test_split_sums_add_up_in_parts() -> None:
    left = torch.tensor([[1e8, 1.0, 1.0, -1e8]], requires_grad=True)
    right = torch.ones(4, 1, requires_grad=True)
    assert PARTS == 4
    with SplitSums():
        product = functional.linear(left.unsqueeze(0), right.t(), torch.ones(1))
        assert product.shape == (1, 1, 1)
        assert product.item() == 1.0, "((1e8 + 1) + 1) - 1e8, and then the bias"
        assert torch.addmm(torch.ones(1), left, right).item() == 1.0
    of_left, of_right = torch.autograd.grad(product, [left, right])
    assert torch.equal(of_left, torch.ones(1, 4))
    assert torch.equal(of_right, left.detach().t())


def test_split_sums_have_the_right_derivatives() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=draw, requires_grad=True) for shape in ((2, 3, 7), (5, 7), (5,))
    )
    with SplitSums():
        assert torch.autograd.gradcheck(functional.linear, (inputs, weight, bias))
        assert torch.autograd.gradcheck(torch.addmm, (bias, inputs[0], weight.t()))
        assert torch.autograd.gradcheck(functional.linear, (inputs, weight))


# -- classes -------------------------------------------------------------------------------------------------------------


def test_a_class_is_a_value_that_can_be_compared_sorted_and_printed() -> None:
    native = numerics_class(ARITHMETICS["native"], torch.float32)
    assert native == numerics_class(resolve_arithmetic("native"), torch.float32, torch.device("cpu"))
    assert str(native).startswith("native, float32, cpu ")
    assert str(native).endswith(f", torch {torch.__version__}, threads 1")
    others = [
        numerics_class(ARITHMETICS["no-onednn"], torch.float32),
        numerics_class(ARITHMETICS["native"], torch.bfloat16),
        numerics_class(resolve_arithmetic("no-onednn+threads-2"), torch.float32),
    ]
    assert len({native, *others, *map(str, [native, *others])}) == 8
    assert others[2].threads == 2
    assert sorted([native, *others])
