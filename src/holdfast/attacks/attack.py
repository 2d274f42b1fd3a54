"""An attack forges the tensor of one claim, given what a dishonest worker would know; a campaign decides when.

    honest a_i or g_i  [B, S, D]  ──>  forge(honest, scene)  ──>  what the claim will say  [B, S, D]

An author writes one small class:

    @dataclass(kw_only=True)
    class Shrink(Attack):
        \"\"\"Halve what the stage computed.\"\"\"

        factor: float = 0.5

        def forge(self, honest: Tensor, scene: Scene) -> Tensor:
            return honest * self.factor

and passes an object of it, its name (entry point of the group `holdfast.attacks`) or `file.py:Shrink,factor=0.25`.
`holdfast.testing.check_attack(Shrink)` tells whether it is right.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from holdfast.claim import ClaimKey, Direction
from holdfast.errors import ConfigError

ON_THE_WIRE: Mapping[str, frozenset[Direction]] = {
    "forward": frozenset({Direction.FORWARD}),
    "backward": frozenset({Direction.BACKWARD}),
    "both": frozenset({Direction.FORWARD, Direction.BACKWARD}),
}
FORWARD_ONLY: Mapping[str, frozenset[Direction]] = {"forward": frozenset({Direction.FORWARD})}


def _no_recomputation(other: Tensor) -> Tensor:
    raise LookupError("this worker cannot run its stage on another input here")


@dataclass(frozen=True)
class Scene:
    """What the liar knows when it forges the claim `key`.

    `inputs` are what its stage worked from: `(a_{i-1},)` forward, `(g_{i+1}, a_{i-1})` backward; empty where they
    cannot be had. `recompute(other)` runs the own stage honestly with `other` in place of `inputs[0]`.
    `generator` is seeded by campaign and claim, so the order of delivery changes nothing. `memory` is private to this worker
    and stage and lasts the whole run.

    `gradient` [B, S, D] is the best that it knows of the loss around its own output: the last gradient at that boundary that
    it was sent for the same micro-batch, in an earlier step (other samples) or, after a restart, an earlier attempt (the very
    same ones). None before the first one.
    """

    key: ClaimKey
    worker: str
    inputs: tuple[Tensor, ...]
    generator: torch.Generator
    recompute: Callable[[Tensor], Tensor] = _no_recomputation
    memory: dict[str, Any] = field(default_factory=dict)
    gradient: Tensor | None = None

    def earlier_strikes(self) -> int:
        """How many attempts of steps this worker was struck in before this one, at this stage."""
        struck: dict[tuple[int, int], int] = self.memory.setdefault("struck", {})
        return struck.setdefault((self.key.step, self.key.attempt), len(struck))

    def normal_like(self, tensor: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and device of `tensor`; the same on every device."""
        return torch.randn(tensor.shape, generator=self.generator).to(tensor)

    def uniform_like(self, tensor: Tensor) -> Tensor:
        """Numbers uniform in [0, 1) in the shape, dtype and device of `tensor`; the same on every device."""
        return torch.rand(tensor.shape, generator=self.generator).to(tensor)


@dataclass(kw_only=True)
class Misconduct:
    """Anything that a campaign can time: a class whose fields are its parameters, checked against their defaults."""

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = ON_THE_WIRE
    direction: str = "forward"

    def __post_init__(self) -> None:
        for parameter in dataclasses.fields(self):
            _check_kind(self, parameter.name, getattr(self, parameter.name), parameter.default)
        if self.direction not in self.choices:
            self.refuse(f"direction must be one of {', '.join(self.choices)}, got {self.direction!r}")

    @property
    def directions(self) -> frozenset[Direction]:
        """The kinds of claims that it lies about."""
        return self.choices[self.direction]

    def refuse(self, why: str) -> NoReturn:
        """Raise the ConfigError for a parameter that makes no sense."""
        raise ConfigError(f"attack {type(self).__name__}: {why}")


class Attack(Misconduct, ABC):
    """A forged tensor: called once for each claim that the campaign strikes, by the dishonest worker that makes it.

    `forge` returns a tensor of the shape, dtype and device of `honest`, and leaves its arguments as they were. It may raise
    nothing, print nothing, and draws random numbers from `scene.generator` only. What it does not decide: when it is called.
    """

    @abstractmethod
    def forge(self, honest: Tensor, scene: Scene) -> Tensor: ...

    def pretend(self, origin: Tensor, scene: Scene) -> Tensor:
        """What to show as the own input, where a verifier has no other source for it (`duplicate-only`): by default the truth.

        Called for each struck forward claim that shows its `origin`; the same rules as for `forge`.
        """
        return origin


def _check_kind(owner: Misconduct, name: str, value: object, default: object) -> None:
    kinds: dict[type, tuple[tuple[type, ...], str]] = {
        bool: ((bool,), "true or false"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "a word"),
    }
    accepted, wanted = kinds.get(type(default), ((object,), ""))
    wrong = not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted and object not in accepted)
    if wrong or (isinstance(value, float) and math.isnan(value)):
        owner.refuse(f"{name} must be {wanted}, got {value!r}")
