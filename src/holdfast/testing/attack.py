"""The contract of every attack on tensors, as one call: `check_attack(MyAttack)` raises AssertionError with what is wrong.

An attack declares directions; forges the same tensor from the same scene; keeps shape, dtype and device; differs from the
honest output; changes none of its arguments; prints nothing; draws no global random number; has finite parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks import Attack, Scene
from holdfast.claim import ClaimKey, Direction
from holdfast.digest import same_bytes

SHAPES = ((2, 5, 8), (1, 5, 8))
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class _Case:
    """An honest output [B, S, D] of stage 2 and the inputs it was computed from."""

    direction: Direction
    honest: Tensor
    inputs: tuple[Tensor, ...]
    gradient: Tensor

    def scene(self, memory: dict[str, object] | None = None) -> Scene:
        return Scene(
            key=ClaimKey(step=3, attempt=0, direction=self.direction, stage=2, micro_batch=1),
            worker="w2",
            inputs=self.inputs,
            generator=torch.Generator().manual_seed(11),
            recompute=lambda other: torch.tanh(other * 1.5) + 0.25,
            memory={} if memory is None else memory,
            gradient=self.gradient,
        )

    def __str__(self) -> str:
        return f"{self.direction}, shape {tuple(self.honest.shape)}, {self.honest.dtype}"


def check_attack(factory: Callable[[], Attack]) -> None:
    """Raise AssertionError where the attacks that `factory` makes break the contract of `Attack`."""
    attack = factory()
    assert isinstance(attack, Attack), f"{attack!r} is not an object of a subclass of holdfast.attacks.Attack"
    _check_declaration(attack)
    for direction in sorted(attack.directions):
        for shape in SHAPES:
            for dtype in DTYPES:
                _check_case(factory, _case(direction, shape, dtype))


def _check_declaration(attack: Attack) -> None:
    wire = {Direction.FORWARD, Direction.BACKWARD}
    assert attack.directions, "directions is empty: it would never strike"
    assert set(attack.directions) <= wire, f"directions must be forward, backward or both, got {set(attack.directions)}"
    for parameter in dataclasses.fields(attack):
        value = getattr(attack, parameter.name)
        assert not isinstance(value, float) or math.isfinite(value), f"parameter {parameter.name} is {value}, not finite"


def _case(direction: Direction, shape: tuple[int, int, int], dtype: torch.dtype) -> _Case:
    generator = torch.Generator().manual_seed(5)
    count = 1 if direction is Direction.FORWARD else 2
    inputs = tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(count))
    gradient = torch.randn(shape, generator=generator).to(dtype)
    return _Case(direction, torch.tanh(inputs[0] * 1.5) + 0.25, inputs, gradient)


def _check_case(factory: Callable[[], Attack], case: _Case) -> None:
    honest, inputs, gradient = case.honest.clone(), tuple(tensor.clone() for tensor in case.inputs), case.gradient.clone()
    before = torch.random.get_rng_state()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        forged = factory().forge(case.honest, case.scene())
        again = factory().forge(case.honest, case.scene())
    assert isinstance(forged, Tensor), f"forge gave {type(forged).__name__}, not a tensor ({case})"
    got, needed = ((tuple(t.shape), t.dtype, t.device) for t in (forged, case.honest))
    assert got == needed, f"forge gave a tensor of {got}, needed {needed}"
    assert same_bytes(case.honest, honest), f"forge changed the honest tensor in place ({case})"
    unchanged = all(same_bytes(now, then) for now, then in zip(case.inputs, inputs, strict=True))
    assert unchanged, f"forge changed an input in place ({case})"
    assert same_bytes(case.gradient, gradient), f"forge changed the known gradient in place ({case})"
    assert same_bytes(forged, again), f"forge gave two tensors for one scene; draw from scene.generator ({case})"
    assert torch.equal(torch.random.get_rng_state(), before), f"forge drew a global random number ({case})"
    assert not printed.getvalue(), f"forge printed {printed.getvalue()[:80]!r} ({case})"
    assert not same_bytes(forged, honest), f"forge gave the honest output back ({case})"
    assert not forged.requires_grad, f"forge gave a tensor that requires a gradient ({case})"
