"""Forgeries of a chosen size: an honest result, moved by `size` times its own length in a direction that a liar might take.

    spread        every row, in one random direction over the whole tensor
    row           one row, in a random direction                      a row is one token of one sequence, or a row of a matrix
    other-row     one row, towards another row
    weights       the update alone: moments honest, new weights moved

An update is forged as a liar would do it: the gradient is moved, and moments and weights follow from it by AdamW's own formula.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from holdfast.claim import StageState
from holdfast.config import OptimizerConfig
from holdfast.optimizer import AdamW, Moments
from holdfast.rehearsal import Accounts, Result
from holdfast.verify.resync import Candidate

KINDS = ("spread", "row", "other-row")
OF_WEIGHTS = "weights"


class Forger:
    """Draws from `seed`; the same calls give the same forgeries."""

    def __init__(self, optimizer: OptimizerConfig, seed: int) -> None:
        self._optimizer = optimizer
        self._generator = torch.Generator().manual_seed(seed)

    def forge(self, accounts: Accounts, honest: Result, kind: str, size: float) -> Result:
        """The account `honest`, forged. Rounded to its dtype, a small forgery may be no forgery at all."""
        if isinstance(honest, Tensor):
            return self.moved(honest, kind, size)
        assert isinstance(honest, Candidate), "norms are not forged here"
        return self._update(accounts, honest, kind, size)

    def moved(self, honest: Tensor, kind: str, size: float) -> Tensor:
        """A tensor, of which all or one row is moved by `size` times the length of what is moved."""
        rows = honest.detach().double().reshape(-1, honest.shape[-1]).clone()
        if kind == "spread":
            noise = torch.randn(rows.shape, dtype=torch.float64, generator=self._generator)
            rows += size * torch.linalg.vector_norm(rows) * noise / torch.linalg.vector_norm(noise)
        else:
            row, other = (self._draw(len(rows)) for _ in range(2))
            noise = torch.randn(rows.shape[1], dtype=torch.float64, generator=self._generator)
            towards = rows[other] if kind == "other-row" else noise
            length = torch.linalg.vector_norm(towards).clamp(min=torch.finfo(torch.float64).tiny)
            rows[row] = rows[row] + size * torch.linalg.vector_norm(rows[row]) * towards / length
        return rows.reshape(honest.shape).to(honest.dtype)

    def _update(self, accounts: Accounts, honest: Candidate, kind: str, size: float) -> Candidate:
        before = accounts.before
        assert before is not None
        gradient = dict(honest.gradient)
        if kind == OF_WEIGHTS:
            weights = {name: honest.state.weights[name] for name in gradient}
            return Candidate(_with(honest.state, self._together(weights, size), honest.state.moments), gradient)
        if kind == "spread":
            gradient = self._together(gradient, size)
        else:
            matrices = [name for name in gradient if gradient[name].ndim > 1]
            struck = matrices[self._draw(len(matrices))]
            gradient[struck] = self.moved(gradient[struck], kind, size)
        moments = Moments.from_named(before.moments, before.updates)
        new, after = AdamW(self._optimizer).step(before.weights, gradient, moments, accounts.rate)
        return Candidate(_with(honest.state, new, after.named()), gradient)

    def _together(self, tensors: Mapping[str, Tensor], size: float) -> dict[str, Tensor]:
        """Named tensors moved as if they were one."""
        flat = torch.cat([tensor.double().flatten() for tensor in tensors.values()])
        parts = torch.split(self.moved(flat.unsqueeze(0), "spread", size)[0], [tensor.numel() for tensor in tensors.values()])
        pairs = zip(tensors.items(), parts, strict=True)
        return {name: part.reshape(tensor.shape).to(tensor.dtype) for (name, tensor), part in pairs}

    def _draw(self, count: int) -> int:
        return int(torch.randint(count, (1,), generator=self._generator))


def _with(state: StageState, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> StageState:
    return StageState(state.stage, state.version, state.updates, {**state.weights, **weights}, moments)
