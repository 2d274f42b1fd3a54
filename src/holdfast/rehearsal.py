"""A rehearsal: real steps of a job in this process, its middle stages computed in several arithmetics from the same inputs.

    tokens --> stage 0 --> stage 1 --> ... --> stage K-1 --> loss           the lead: one arithmetic, the whole pipeline
                             |  |  |
                             the others: the same stage, the same a_{i-1}, g_{i+1} and v_t, another arithmetic each

After every step the others take the lead's new state over, as a shadow of another class does. Everybody here is honest, so
how far the accounts of one claim are apart is nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from holdfast import seeds
from holdfast.claim import WHOLE_STEP, Direction, StageState
from holdfast.errors import ConfigError
from holdfast.execution import StageExecution, StepShape
from holdfast.job import Job
from holdfast.numerics import Arithmetic
from holdfast.optimizer import AdamW, clipping
from holdfast.partition import StageModule
from holdfast.verify.resync import Candidate

Result = Tensor | tuple[float, ...] | Candidate
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Accounts:
    """What each arithmetic, by name, makes of one claim.

    A tensor [B, S, D], packed as it travels, where the direction is FORWARD or BACKWARD, the norms of the parameters for
    GRADIENT, a Candidate for UPDATE; then `before` is the sealed state that it was made from, and `rate` the learning rate.
    """

    step: int
    stage: int
    direction: Direction
    results: Mapping[str, Result]
    micro_batch: int = WHOLE_STEP
    before: StageState | None = None
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class _Seat:
    """Who computes a stage, and how."""

    arithmetic: Arithmetic
    execution: StageExecution

    def do(self, work: Callable[[StageExecution], T]) -> T:
        with self.arithmetic.computing():
            return work(self.execution)


class Rehearsal:
    """`arithmetics` are two or more of different names; the first leads. Raises ConfigError where nothing can be compared."""

    def __init__(self, job: Job, arithmetics: Sequence[Arithmetic]) -> None:
        names = [arithmetic.name for arithmetic in arithmetics]
        if len(set(names)) != len(names) or len(names) < 2:
            raise ConfigError(f"two or more different arithmetics are compared; got {', '.join(names) or 'none'}")
        if job.plan.stages < 3:
            raise ConfigError("with 2 stages there is no untrusted stage and nothing to compare; use --stages 3 or more")
        self._job = job
        self._version = 0
        self._lead = [_Seat(arithmetics[0], self._execution(self._module(stage))) for stage in range(job.plan.stages)]
        for stage, seat in enumerate(self._lead):
            seat.execution.load(job.initial_state(stage))
        # The others work on the lead's own module: between two seals everybody's weights are the same.
        self._others = {
            stage: [_Seat(other, self._execution(self._lead[stage].execution.module)) for other in arithmetics[1:]]
            for stage in range(1, job.plan.stages - 1)
        }
        self._resynchronise()

    @property
    def states(self) -> list[StageState]:
        """The sealed state of every stage."""
        return [seat.execution.state(self._version) for seat in self._lead]

    def step(self, batch: int, rate: float) -> Iterator[Accounts]:
        """One optimizer step on the job's batch of that number; accounts come as they are computed. It seals when exhausted."""
        for seat in self._everybody():
            seat.execution.begin(self._version)
        for m, tokens in enumerate(self._job.batches.batch(batch)):
            yield from self._passes(m, tokens)
        norms = [seat.do(lambda execution: execution.norms()) for seat in self._lead]
        for stage in self._others:
            yield self._accounts(stage, Direction.GRADIENT, lambda execution: execution.norms())
        config = self._job.config.optimizer
        scale = clipping([norm for of_stage in norms for norm in of_stage], config.clip_norm, self._job.dtype).scale
        before = self.states
        for seat in self._everybody():
            seat.do(lambda execution: execution.update(scale, rate))
        for stage, seats in self._others.items():
            results = {seat.arithmetic.name: self._candidate(seat, scale) for seat in (self._lead[stage], *seats)}
            yield Accounts(self._version, stage, Direction.UPDATE, results, before=before[stage], rate=rate)
        for seat in self._lead:
            seat.execution.seal()
        self._version += 1
        self._resynchronise()

    def _passes(self, m: int, tokens: Tensor) -> Iterator[Accounts]:
        """Both passes of one micro-batch [B, S+1]; every stage starts from what the lead made."""
        first, last = self._lead[0], self._lead[-1]
        hidden = first.do(lambda execution: execution.forward(m, tokens[:, :-1]))
        for stage in self._others:
            inputs = hidden
            accounts = self._accounts(stage, Direction.FORWARD, _forward(m, inputs), m)
            hidden = self._of_lead(accounts)
            yield accounts
        final = hidden
        last.do(lambda execution: execution.loss(m, final, tokens[:, 1:]))
        gradient, tied = last.do(lambda execution: execution.backward(m, None))
        assert gradient is not None, "hidden states have a gradient"
        for stage in reversed(self._others):
            accounts = self._accounts(stage, Direction.BACKWARD, _backward(m, gradient), m)
            gradient = self._of_lead(accounts)
            yield accounts
        arrived = gradient
        first.do(lambda execution: execution.backward(m, arrived, tied))

    def _accounts(
        self, stage: int, direction: Direction, work: Callable[[StageExecution], Result], m: int = WHOLE_STEP
    ) -> Accounts:
        seats = [self._lead[stage], *self._others[stage]]
        return Accounts(self._version, stage, direction, {seat.arithmetic.name: seat.do(work) for seat in seats}, m)

    def _candidate(self, seat: _Seat, scale: float) -> Candidate:
        return Candidate(seat.execution.state(self._version + 1, candidate=True), seat.execution.clipped(scale))

    def _of_lead(self, accounts: Accounts) -> Tensor:
        found = accounts.results[self._lead[0].arithmetic.name]
        assert isinstance(found, Tensor)
        return found

    def _everybody(self) -> Iterator[_Seat]:
        yield from self._lead
        for seats in self._others.values():
            yield from seats

    def _resynchronise(self) -> None:
        first, last = self._lead[0].execution, self._lead[-1].execution
        tied = self._job.plan.tied
        if tied is not None:
            last.set_tied(first.module.weights()[tied[1]])
        for stage, seats in self._others.items():
            state = self._lead[stage].execution.state(self._version)
            for seat in seats:
                seat.execution.load(state)

    def _module(self, stage: int) -> StageModule:
        model = self._job.config.model
        module = StageModule(self._job.source.config, self._job.plan, stage, dtype=self._job.dtype, device=model.device)
        return module.train(model.dropout > 0)

    def _execution(self, module: StageModule) -> StageExecution:
        config = self._job.config
        seed = seeds.derive(config.training.seed, "dropout") if config.model.dropout else None
        shape = StepShape(config.pipeline.micro_batches, seed)
        return StageExecution(module, AdamW(config.optimizer), shape, packing=self._job.packing)


def _forward(m: int, inputs: Tensor) -> Callable[[StageExecution], Tensor]:
    return lambda execution: execution.forward(m, inputs)


def _backward(m: int, gradient: Tensor) -> Callable[[StageExecution], Tensor]:
    def work(execution: StageExecution) -> Tensor:
        of_inputs, _none = execution.backward(m, gradient)
        assert of_inputs is not None, "a middle stage reads hidden states"
        return of_inputs

    return work
