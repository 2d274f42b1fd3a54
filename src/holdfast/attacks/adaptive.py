"""The attacks on tensors that learn: a step along what is known of the loss, and a step that grows until somebody minds.

    name    says instead of x                             after
    drift   forward   x + epsilon * |x| * d/|d|           Fang et al. 2020: the most harm inside a bound; Xie et al. 2019
            backward  x - epsilon * x                     (inner product manipulation)
    creep   x + e_k * |x| * n/|n|, e_k = start*growth^k   Rubinstein et al. 2009: the boiling frog, until a limit

Both stay inside a tolerance on purpose: where honest workers compute the same bits, recomputation catches them at any size;
across unlike hardware the calibrated bound has to be smaller than what harms (docs/design/bits.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Attack, Scene
from holdfast.attacks.tensors import scene_for_doctest as scene_for_doctest
from holdfast.claim import Direction


@dataclass(kw_only=True)
class Drift(Attack):
    """Take a step of relative length epsilon in the direction that raises the loss, as far as the worker knows it.

    Forward, d is the gradient of the loss at the own output, and no honest worker has it yet when it must speak: it arrives
    with the backward pass. The best estimate is `scene.gradient`: that of the same micro-batch a step ago (of other samples),
    or, where the step has started again, an attempt ago (of the same samples: then it is exact). Of another step only what the
    samples have in common helps, so its mean over rows and tokens is taken: at epsilon = 1 it cost a small model 0.28 nats a
    token, a random direction 0.06. Before the first gradient d is random.

    Backward, the tensor is the gradient itself, and what descends least inside the bound is less of it. AdamW forgives a
    gradient that is always smaller, plain descent does not.

    >>> x = torch.full((1, 1, 4), 3.0)
    >>> (Drift(epsilon=0.5).forge(x, scene_for_doctest()) - x).norm() / x.norm()
    tensor(0.5000)
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epsilon < math.inf:
            self.refuse(f"epsilon must be greater than 0 and finite, got {self.epsilon}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        if scene.key.direction is Direction.BACKWARD:
            return stepped(honest, -honest, self.epsilon)
        known = scene.gradient
        if known is None or known.shape != honest.shape:
            return stepped(honest, scene.normal_like(honest), self.epsilon)
        exact = scene.key.attempt > 0
        return stepped(honest, known if exact else known.float().mean((0, 1)).expand_as(honest), self.epsilon)


@dataclass(kw_only=True)
class Creep(Attack):
    """Feel for the threshold: a random step of relative length `start`, and `growth` times that at each further strike.

    It grows until `limit`, and never shrinks: whoever learns its bound from what has passed learns a wider one each time.
    Where checks have a fixed bound, the first length above it is caught.

    >>> attack, scene, x = Creep(start=0.25, growth=2.0), scene_for_doctest(), torch.full((4,), 3.0)
    >>> round(float((attack.forge(x, scene) - x).norm() / x.norm()), 3)
    0.25
    """

    start: float = 1e-3
    growth: float = 1.5
    limit: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.start <= self.limit < math.inf:
            self.refuse(f"start must be greater than 0 and at most the limit of {self.limit}, got {self.start}")
        if not 1 < self.growth < math.inf:
            self.refuse(f"growth must be greater than 1 and finite, got {self.growth}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        return stepped(honest, scene.normal_like(honest), self.length(scene.earlier_strikes()))

    def length(self, strikes: int) -> float:
        """The relative length after so many earlier strikes.

        >>> [Creep(start=0.1, growth=2.0, limit=0.5).length(k) for k in range(5)]
        [0.1, 0.2, 0.4, 0.5, 0.5]
        """
        steps_to_the_limit = math.log(self.limit / self.start, self.growth)
        return self.limit if strikes >= steps_to_the_limit else self.start * self.growth**strikes


def stepped(tensor: Tensor, direction: Tensor, epsilon: float) -> Tensor:
    """The tensor after a step of `epsilon` times its own length; in its dtype, which may round a short one."""
    there = direction.float()
    length = epsilon * float(torch.linalg.vector_norm(tensor.float())) / (float(torch.linalg.vector_norm(there)) or 1.0)
    return (tensor.float() + there * length).to(tensor.dtype)
