"""Before a model is trained in stages, a tiny one of the same class is run whole and split, and every bit compared.

    whole    tokens -> ------------------------------- -> logits      backward: every weight gradient
    split    tokens -> stage 0 -> stage 1 -> stage K-1 -> logits      and the gradient at every cut

What the library's code does between layers may change with any version; this finds out, and names the first stage that
differs. A check that could not run is not a pass.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.digest import same_bytes
from holdfast.errors import SelfTestFailed
from holdfast.partition.families import TESTED, family_of
from holdfast.partition.module import StageModule
from holdfast.partition.plan import Plan, make_plan
from holdfast.partition.shrink import shrink
from holdfast.partition.skeleton import causal_family, from_config, prepare_config

_TOKENS = (2, 12)


@dataclass(frozen=True, slots=True)
class SelfTestReport:
    """What was compared: a model of `layers` layers in `stages` stages, `tensors` outputs and gradients, all bit-equal."""

    model_type: str
    stages: int
    layers: int
    dtype: str
    device: str
    tensors: int
    seconds: float
    proven: bool

    def __str__(self) -> str:
        note = "" if self.proven else "; this type is not in the project's own tests"
        return (
            f"{self.model_type}: {self.tensors} tensors bit-equal, {self.layers} layers in {self.stages} stages "
            f"({self.dtype}, {self.device}, {self.seconds:.1f} s){note}"
        )


@dataclass(frozen=True)
class _Trace:
    """What one run left: outputs and their gradients at each cut (the last output is the logits), and weight gradients."""

    outputs: list[Tensor]
    cut_gradients: list[Tensor | None]
    weight_gradients: dict[str, Tensor | None]


def self_test(config: Any, stages: int = 3, dtype: torch.dtype = torch.float32, device: str = "cpu") -> SelfTestReport:
    """Compare split and whole on a tiny model of the class of `config` (any causal model's config, or a ModelSource).

    On a GPU it must be called where the run is pinned (holdfast.numerics): two passes of a kernel that adds atomically differ.

    Raises SelfTestFailed naming the first differing stage, PartitionError where the model cannot be cut at all.
    """
    started = time.perf_counter()
    config = getattr(config, "config", config)
    family_of(config)
    attention = config._attn_implementation if config._attn_implementation in ("sdpa", "eager") else "sdpa"
    try:
        small = shrink(prepare_config(config, attention), stages)
        layers, tensors = _check_small(small, stages, dtype, device)
    except (RuntimeError, AttributeError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        raise SelfTestFailed(
            f"the self-test of {config.model_type!r} models could not run ({type(error).__name__}: {error}), and a check that "
            f"did not run is not a pass; proven types are {', '.join(TESTED)}"
        ) from error
    return SelfTestReport(
        model_type=config.model_type,
        stages=stages,
        layers=layers,
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        tensors=tensors,
        seconds=time.perf_counter() - started,
        proven=config.model_type in TESTED,
    )


def _check_small(config: Any, stages: int, dtype: torch.dtype, device: str) -> tuple[int, int]:
    plan = make_plan(config, stages)
    tokens, target, whole = (drawn.to(device) for drawn in _draw(config, dtype))
    expected = _run_whole(whole, config, plan, tokens, target)
    found = _run_split(whole, config, plan, tokens, target, dtype)
    return config.num_hidden_layers, _compare(config.model_type, plan, expected, found)


def _draw(config: Any, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Tokens, a gradient for the logits, and a whole model built the library's ordinary way, every parameter random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = from_config(config, dtype)
        with torch.no_grad():
            for parameter in whole.parameters():
                parameter.add_(torch.randn(parameter.shape).to(dtype), alpha=0.05)
        tokens = torch.randint(0, max(config.vocab_size - 1, 1), _TOKENS)
        target = torch.randn(*_TOKENS, config.vocab_size).to(dtype)
    return tokens, target, whole


def _run_whole(whole: Any, config: Any, plan: Plan, tokens: Tensor, target: Tensor) -> _Trace:
    family = causal_family(config, whole)
    layers = whole.get_submodule(family.root).get_submodule(family.layers)
    outputs: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        hidden.retain_grad()
        outputs.append(hidden)

    hooks = [layers[hi - 1].register_forward_hook(keep) for _, hi in plan.layers[:-1]]
    logits = whole(input_ids=tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    logits.backward(target)
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    return _Trace([*outputs, logits], [hidden.grad for hidden in outputs], gradients)


def _run_split(whole: Any, config: Any, plan: Plan, tokens: Tensor, target: Tensor, dtype: torch.dtype) -> _Trace:
    weights = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    modules = [StageModule(config, plan, stage, dtype=dtype, device=target.device) for stage in range(plan.stages)]
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for module, names in zip(modules, plan.stage_parameters, strict=True):
        module.load_weights({name: weights[name] for name in names})
        if module.tied_parameter() is not None and plan.tied is not None:
            module.load_tied(weights[plan.tied[1]])
        inputs.append(outputs[-1].detach().requires_grad_() if outputs else tokens)
        outputs.append(module(inputs[-1]))
    gradient: Tensor | None = target
    for entered, left in zip(reversed(inputs), reversed(outputs), strict=True):
        torch.autograd.backward(left, gradient)
        gradient = entered.grad
    gradients = {name: parameter.grad for module in modules for name, parameter in module.named_owned_parameters()}
    head = modules[-1].tied_parameter()
    if head is not None and plan.tied is not None:
        assert head.grad is not None
        embedding = gradients[plan.tied[1]]
        gradients[plan.tied[1]] = head.grad if embedding is None else head.grad + embedding
    return _Trace(outputs, [entered.grad for entered in inputs[1:]], gradients)


def _compare(model_type: str, plan: Plan, expected: _Trace, found: _Trace) -> int:
    """The number of tensors compared; raises SelfTestFailed at the first difference in the order of computation."""
    for stage, (whole, split) in enumerate(zip(expected.outputs, found.outputs, strict=True)):
        _demand(model_type, stage, "output", whole, split)
    for stage in reversed(range(plan.stages)):
        for name in plan.stage_parameters[stage]:
            _demand(model_type, stage, f"gradient of {name}", expected.weight_gradients[name], found.weight_gradients[name])
        if stage > 0:
            gradients = expected.cut_gradients[stage - 1], found.cut_gradients[stage - 1]
            _demand(model_type, stage, "input gradient", *gradients)
    return len(found.outputs) + len(found.cut_gradients) + len(found.weight_gradients)


def _demand(model_type: str, stage: int, what: str, whole: Tensor | None, split: Tensor | None) -> None:
    if not (whole is split if whole is None or split is None else same_bytes(whole, split)):
        raise SelfTestFailed(
            f"a {model_type} model in stages is not the whole model: first difference at stage {stage}, {what}. "
            f"This model cannot be trained in stages with this version of the library; proven types are {', '.join(TESTED)}"
        )
