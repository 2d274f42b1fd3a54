"""A toy model of K = 4 stages without attention: real executions, honest numbers for every claim, and the words around them.

tokens [B, S] --> embedding of stage 0 --> tanh(x W_1) --> tanh(x W_2) --> (x W_3) E^T: tied to the embedding
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.config import OptimizerConfig
from holdfast.digest import state_digest, tensor_digest
from holdfast.execution import StageExecution, StepShape
from holdfast.inbox import Boundary
from holdfast.optimizer import AdamW
from holdfast.route import plain_route
from holdfast.schedule import SCHEDULES
from holdfast.stage import Terms

B, S, D, V, K, M = 2, 3, 4, 5, 4, 2
FORWARD, BACKWARD, GRADIENT, UPDATE = Direction
ROUTE = plain_route(["w0", "w1", "w2", "w0"], ["w0"], shadowed=True)
BOUNDARY = Boundary((B, S, D), torch.float32)
SHAPES = {0: (V, D), 1: (D, D), 2: (D, D), 3: (D, D)}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(step: int) -> Tensor:
    return torch.randint(0, V, (M, B, S + 1), generator=torch.Generator().manual_seed(1000 + step))


class Toy(nn.Module):
    """What a StageExecution needs of a stage's module; `calls` counts forward passes."""

    def __init__(self, stage: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stage, self.first, self.last = stage, stage == 0, stage == K - 1
        self.plan = SimpleNamespace(tied=("head", "w0"), trainable={f"w{i}" for i in range(K)})
        self.weight = nn.Parameter(torch.full(SHAPES[stage], torch.nan))
        self.head = nn.Parameter(torch.full((V, D), torch.nan)) if self.last else None
        self.dropout = nn.Dropout(dropout)
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.first:
            return self.dropout(self.weight[inputs])
        hidden = self.dropout(inputs @ self.weight)
        return hidden.tanh() if self.head is None else hidden @ self.head.T

    def named_trainable_parameters(self):
        return iter([(f"w{self.stage}", self.weight)])

    def tied_parameter(self):
        return self.head

    def weights(self):
        return {f"w{self.stage}": self.weight.detach()}

    @torch.no_grad()
    def load_weights(self, weights):
        self.weight.copy_(weights[f"w{self.stage}"])


def state(stage: int, version: int = 0) -> StageState:
    """The sealed state of a stage at the start."""
    moments = {f"w{stage}.{name}": torch.zeros(SHAPES[stage]) for name in ("exp_avg", "exp_avg_sq")}
    return StageState(stage, version, 0, {f"w{stage}": draw(*SHAPES[stage], seed=stage)}, moments)


def execution(stage: int, *, dropout_seed: int | None = None, loaded: bool = False) -> StageExecution:
    """Without `loaded` its weights are NaN, as a new worker's are."""
    shape = StepShape(M, dropout_seed)
    found = StageExecution(Toy(stage, 0.0 if dropout_seed is None else 0.5), AdamW(OptimizerConfig()), shape)  # type: ignore[arg-type]
    if loaded:
        found.load(state(stage))
        if stage == K - 1:
            found.set_tied(state(0).weights["w0"])
    return found


def sealed(stage: int) -> bytes:
    """The digest of the state at the start."""
    return state_digest(state(stage))


def terms(schedule: str = "1f1b", *, checked: bool = True, limit: int = M) -> Terms:
    order = SCHEDULES[schedule]  # type: ignore[index]
    return Terms("run", checked, lambda i: order(K, min(i, K - 1), M), lambda i: limit, schedule == "gpipe")


class Honest:
    """Every tensor of step `step`, as honest stages compute it: `tensors[key]`, and gradients and updates as claims."""

    def __init__(self, step: int = 0, attempt: int = 0) -> None:
        self.moment = (step, attempt)
        self.executions = [execution(stage, loaded=True) for stage in range(K)]
        self.tensors: dict[ClaimKey, Tensor] = {}
        self.losses = []
        self.tied: list[Tensor] = []
        for each in self.executions:
            each.begin(step)
        for m in range(M):
            self._pass(m, tokens(step)[m])

    def key(self, text: str) -> ClaimKey:
        """`a10` is the forward claim of stage 1, micro-batch 0; g is backward, G gradient, U update."""
        letters = dict(zip("agGU", Direction, strict=True))
        return ClaimKey(*self.moment, letters[text[0]], int(text[1]), int(text[2:] or -1))

    def _pass(self, m: int, words: Tensor) -> None:
        hidden = words[:, :-1]
        for stage in range(K - 1):
            hidden = self.tensors[self.key(f"a{stage}{m}")] = self.executions[stage].forward(m, hidden)
        self.losses.append(self.executions[-1].loss(m, hidden, words[:, 1:]))
        gradient, tied = self.executions[-1].backward(m, None)
        self.tied.append(tied)
        self.tensors[self.key(f"g{K - 1}{m}")] = gradient
        for stage in range(K - 2, 0, -1):
            gradient = self.tensors[self.key(f"g{stage}{m}")] = self.executions[stage].backward(m, gradient)[0]
        self.executions[0].backward(m, gradient, tied)

    def digest(self, text: str) -> bytes:
        return tensor_digest(self.tensors[self.key(text)])

    def claim(self, text: str, worker: str, role: Role = Role.PRIMARY, origin: Tensor | None = None) -> Claim:
        key = self.key(text)
        header = Header("run", key, 0, ROUTE.epoch, worker, role, (), tensor_digest(self.tensors[key]))
        return Claim(header, self.tensors[key], origin)

    def update(self, stage: int, scale: float = 0.5, rate: float = 0.1) -> bytes:
        """The digest of the state after the step."""
        self.executions[stage].update(scale, rate)
        return state_digest(self.executions[stage].state(1, candidate=True))


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """This module: tests are collected without being importable from one another."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def honest() -> Honest:
    return Honest()
