"""AdamW as a pure step from old buffers to new ones, with the same bits as `torch.optim.AdamW` on the plain model.

The clip scale is computed the way `torch.nn.utils.clip_grad_norm_` does it: the norm of each parameter, stacked in model
order, in the gradient's own dtype. Norms per stage combined afterwards would give other bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from holdfast.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then cosine, linear or constant.

    >>> config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, final_ratio=0.0)
    >>> [round(learning_rate(config, step, 4), 3) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    remaining = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_ratio + (1 - config.final_ratio) * remaining)


def decays(parameter: Tensor) -> bool:
    """Weight decay is for matrices; biases and norms keep their size, as is usual."""
    return parameter.ndim >= 2


@dataclass(frozen=True, slots=True)
class Clipping:
    """The global gradient norm and the factor that every gradient is multiplied by."""

    norm: float
    scale: float


def clipping(norms: Sequence[float], max_norm: float, dtype: torch.dtype) -> Clipping:
    """From the norm of every parameter in model order, exact floats of `dtype`; `max_norm` 0 means no clipping.

    >>> clipping([3.0, 4.0], 1.0, torch.float32).norm
    5.0
    """
    total = torch.linalg.vector_norm(torch.stack([torch.tensor(norm, dtype=dtype) for norm in norms]))
    if not max_norm:
        return Clipping(total.item(), 1.0)
    return Clipping(total.item(), torch.clamp(max_norm / (total + 1e-6), max=1.0).item())


@dataclass(frozen=True, slots=True)
class Moments:
    """First and second moment of each trainable parameter, by name, and the number of steps taken."""

    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    updates: int

    @classmethod
    def zeros(cls, parameters: Mapping[str, Tensor]) -> Moments:
        return cls(
            {name: torch.zeros_like(parameter) for name, parameter in parameters.items()},
            {name: torch.zeros_like(parameter) for name, parameter in parameters.items()},
            0,
        )

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor], updates: int) -> Moments:
        """The inverse of `named`; empty `tensors` with 0 updates is a fresh optimizer, see `zeros`."""
        ends = (".exp_avg", ".exp_avg_sq")
        first, second = ({n.removesuffix(end): t for n, t in tensors.items() if n.endswith(end)} for end in ends)
        return cls(first, second, updates)

    def named(self) -> dict[str, Tensor]:
        first = {f"{name}.exp_avg": tensor for name, tensor in self.first.items()}
        return first | {f"{name}.exp_avg_sq": tensor for name, tensor in self.second.items()}


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019), with the bias corrections of Adam (Kingma and Ba 2015)."""

    def __init__(self, config: OptimizerConfig) -> None:
        self._config = config

    def step(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Moments, rate: float
    ) -> tuple[dict[str, Tensor], Moments]:
        """New weights and moments; the old ones are left as they are, until the step is sealed."""
        names = list(gradients)
        new = {name: weights[name].detach().clone() for name in names}
        first = {name: moments.first[name].clone() for name in names}
        second = {name: moments.second[name].clone() for name in names}
        for decay in (True, False):
            group = [name for name in names if decays(weights[name]) is decay]
            if group:
                adamw(
                    [new[name] for name in group],
                    [gradients[name] for name in group],
                    [first[name] for name in group],
                    [second[name] for name in group],
                    [],
                    [torch.tensor(float(moments.updates)) for _ in group],
                    foreach=False,
                    amsgrad=False,
                    maximize=False,
                    lr=rate,
                    weight_decay=self._config.weight_decay if decay else 0.0,
                    beta1=self._config.beta1,
                    beta2=self._config.beta2,
                    eps=self._config.epsilon,
                )
        return new, Moments(first, second, moments.updates + 1)


def parameter_groups(model: torch.nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The same grouping for `torch.optim.AdamW` on a plain model: the reference that the pipeline must equal."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if decays(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]
