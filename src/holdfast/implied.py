"""AdamW's formula read backwards: a new first moment implies its gradient, and both imply everything else.

    g    =  (m' - b1 m) / (1 - b1)                     known up to the rounding of m', divided by 1 - b1: 8 % of m in bf16
    v'   =  b2 v + (1 - b2) g^2                        known up to what that leaves open
    w'   =  (1 - rate * decay) w  -  rate / c1 * m' / ( sqrt(v') / sqrt(c2) + eps )          c1 = 1 - b1^t,  c2 = 1 - b2^t

The last line is computed from the *claimed* m' and v' by the operations of `torch.optim.AdamW`, in its order and in the dtype
of the weights, so that on one machine it has the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from holdfast.claim import StageState
from holdfast.config import OptimizerConfig
from holdfast.optimizer import decays
from holdfast.verify.resync import Formula, Implied
from holdfast.verify.tolerance import units

ROUNDINGS = 2.0
"""Ulps by which a kernel's m' may differ from b1 m + (1 - b1) g, where the formula is checked."""


def implied_by(config: OptimizerConfig, rate: float) -> Formula:
    """The formula of one optimizer step at learning rate `rate`."""

    def implied(name: str, before: StageState, claimed: StageState) -> Implied:
        first, old_first = claimed.moments[f"{name}.exp_avg"], before.moments[f"{name}.exp_avg"]
        second, old_second = claimed.moments[f"{name}.exp_avg_sq"], before.moments[f"{name}.exp_avg_sq"]
        gradient, ulp = _gradient(first, old_first.to(first.device), config.beta1)
        blur = ROUNDINGS * ulp
        squared = config.beta2 * old_second.to(first.device).double() + (1 - config.beta2) * gradient.square()
        slack = (1 - config.beta2) * (2 * gradient.abs() * blur + blur.square())
        weight = _weight(config, rate, claimed.updates, before.weights[name].to(first.device), first, second)
        inside = torch.finfo(torch.float32).eps * torch.maximum(first.double().abs(), old_first.to(first.device).double().abs())
        rounding = ulp / 2 + inside / (1 - config.beta1)  # kernels compute in fp32 at least, and round to nearest
        return Implied(gradient, rounding, squared, slack, weight)

    return implied


def _gradient(new: Tensor, old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The gradient in fp64, and how far one ulp of `new` moves it (that of `old`, where it is larger)."""
    ulp = units(torch.maximum(new.abs(), old.abs()), new.dtype)
    return (new.double() - beta * old.double()) / (1 - beta), ulp / (1 - beta)


def _weight(config: OptimizerConfig, rate: float, updates: int, weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    new = weight.detach().clone()
    if decays(weight) and config.weight_decay:
        new.mul_(1 - rate * config.weight_decay)
    corrected = math.sqrt(1 - config.beta2**updates)
    return new.addcdiv_(first, (second.sqrt() / corrected).add_(config.epsilon), value=-rate / (1 - config.beta1**updates))
