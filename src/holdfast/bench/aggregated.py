"""What aggregation does to honest training: nobody lies, and what the micro-batches of a step say is replaced by one aggregate.

    activation        after one stage every micro-batch goes on with aggregate(a_1 .. a_M)
    input gradient    before one stage every micro-batch goes on with aggregate(g_1 .. g_M)
    weight gradient   every stage updates by M * aggregate(w_1 .. w_M), as a federated server does

The steps are those of a run, to the bit where nothing is replaced. Stages take their inputs for what they are: the backward
pass goes through each stage as if its own output had been used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.bench.aggregators import AGGREGATORS, most_liars
from holdfast.claim import StageState
from holdfast.digest import weights_digest
from holdfast.evaluate import evaluate
from holdfast.execution import StageExecution, StepShape
from holdfast.job import Job
from holdfast.numerics import pinned
from holdfast.optimizer import AdamW, clipping, learning_rate
from holdfast.partition import StageModule, whole_model

NOTHING = "nothing"
ACTIVATION, INPUT_GRADIENT, WEIGHT_GRADIENT = "activation", "input gradient", "weight gradient"
TREATMENTS: tuple[tuple[str, str], ...] = (
    (NOTHING, "-"),
    *((ACTIVATION, name) for name in ("mean", "median", "krum")),
    *((INPUT_GRADIENT, name) for name in ("mean", "median", "krum")),
    *((WEIGHT_GRADIENT, name) for name in ("median", "trimmed-mean", "krum", "bucketing", "centred-clipping")),
)
"""What is replaced, and by which aggregate."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What one training came to.

    `loss` is the mean training loss of the last tenth of the steps, nats a token, as the aggregated pipeline sees it;
    `perplexity` is that of the weights in a plain model on held-out text. `cosine` is that of the weight gradient of the first
    step with the honest one, over the untrusted stages that the replacement reaches.
    """

    seed: int
    replaced: str
    aggregator: str
    stage: int
    steps: int
    loss: float
    perplexity: float
    cosine: float
    digest: str


def train(job: Job, replaced: str, aggregator: str, stage: int) -> Trained:
    """Train the job with one thing replaced; `stage` is where, for activations and input gradients."""
    with pinned(job.config.model.device):
        line = _Line(job, replaced, aggregator, stage)
        reached = range(1, stage if replaced == INPUT_GRADIENT else job.plan.stages - 1)
        honest = _Line(job, NOTHING, "-", stage)
        cosine = functional.cosine_similarity(line.gradient(0, reached), honest.gradient(0, reached), dim=0)
        steps = job.config.training.steps
        losses = [line.step(step) for step in range(steps)]
        weights = line.weights
        score = evaluate(whole_model(job.source.config, weights, job.lora), job.validation)
    last = losses[-max(1, steps // 10) :]
    seed = job.config.training.seed
    loss = sum(last) / len(last)
    digest = weights_digest(weights)
    return Trained(seed, replaced, aggregator, stage, steps, loss, score.perplexity, float(cosine), digest)


class _Line:
    """The stages of a job in a row, all micro-batches of a step through one stage after another."""

    def __init__(self, job: Job, replaced: str, aggregator: str, stage: int) -> None:
        self._job = job
        self._replaced = replaced
        self._aggregate = AGGREGATORS.get(aggregator)
        self._stage = stage
        self._count = job.config.pipeline.micro_batches
        self._stages = [_Gathered(self._execution(index)) for index in range(job.plan.stages)]
        for index, each in enumerate(self._stages):
            each.execution.load(job.initial_state(index))
        self._tie()

    @property
    def weights(self) -> dict[str, Tensor]:
        states: list[StageState] = [each.execution.state(0) for each in self._stages]
        return {name: tensor for state in states for name, tensor in state.weights.items()}

    def gradient(self, number: int, stages: range) -> Tensor:
        """The accumulated weight gradient of some stages in a step, as one vector; nothing is updated."""
        self._passes(number)
        return torch.cat([self._stages[index].total() for index in stages])

    def step(self, number: int) -> float:
        """One optimizer step; gives the mean loss of its micro-batches."""
        loss = self._passes(number)
        self._update(number)
        return loss

    def _passes(self, number: int) -> float:
        """Both passes of all micro-batches, and the gradients that follow."""
        for each in self._stages:
            each.execution.begin(number)
            each.gathered.clear()
        tokens, every = self._job.batches.batch(number), range(self._count)
        first, *middle, last = [each.execution for each in self._stages]
        hidden = [first.forward(m, tokens[m][:, :-1]) for m in every]
        for index, execution in enumerate(middle, 1):
            hidden = self._treated(ACTIVATION, index, [execution.forward(m, hidden[m]) for m in every])
        losses = [last.loss(m, hidden[m], tokens[m][:, 1:]) for m in every]
        gradients, tied = zip(*[last.backward(m, None) for m in every], strict=True)
        flowing = [_there(gradient) for gradient in gradients]
        for index, execution in reversed(list(enumerate(middle, 1))):
            flowing = [_there(execution.backward(m, flowing[m])[0]) for m in every]
            flowing = self._treated(INPUT_GRADIENT, index, flowing)
        for m in every:
            first.backward(m, flowing[m], tied[m])
        if self._replaced == WEIGHT_GRADIENT:
            for each in self._stages:
                each.replace(self._one(each.stack()) * self._count)
        return sum(losses) / len(losses)

    def _treated(self, what: str, stage: int, tensors: list[Tensor]) -> list[Tensor]:
        if (self._replaced, self._stage) != (what, stage):
            return tensors
        one = self._one(torch.stack([tensor.flatten() for tensor in tensors])).view_as(tensors[0])
        return [one for _ in tensors]

    def _one(self, stack: Tensor) -> Tensor:
        assert self._aggregate is not None, "nothing is replaced without an aggregate"
        return self._aggregate(stack, most_liars(len(stack)))

    def _update(self, number: int) -> None:
        job, config, plan = self._job, self._job.config, self._job.plan
        norms = {
            name: norm
            for index, each in enumerate(self._stages)
            for name, norm in zip(plan.trainable_of(index), each.execution.norms(), strict=True)
        }
        ordered = [norms[name] for name in plan.model_order if name in norms]
        scale = clipping(ordered, config.optimizer.clip_norm, job.dtype).scale
        rate = learning_rate(config.optimizer, number, config.training.steps)
        for each in self._stages:
            each.execution.update(scale, rate)
            each.execution.seal()
        self._tie()

    def _tie(self) -> None:
        tied = self._job.plan.tied
        if tied is not None:
            self._stages[-1].execution.set_tied(self._stages[0].execution.module.weights()[tied[1]])

    def _execution(self, stage: int) -> StageExecution:
        job, config = self._job, self._job.config
        module = StageModule(job.source.config, job.plan, stage, dtype=job.dtype, device=config.model.device)
        shape = StepShape(config.pipeline.micro_batches, compared=False)
        return StageExecution(module.train(False), AdamW(config.optimizer), shape)


class _Gathered:
    """An execution, and the weight gradient of each micro-batch before it is added up."""

    def __init__(self, execution: StageExecution) -> None:
        self.execution = execution
        self.gathered: dict[int, list[Tensor]] = {}
        accumulate = execution._accumulate

        def overheard(micro_batch: int, gradients: Sequence[Tensor]) -> None:
            self.gathered[micro_batch] = list(gradients)
            accumulate(micro_batch, [gradient.clone() for gradient in gradients])

        execution._accumulate = overheard  # type: ignore[method-assign]

    def stack(self) -> Tensor:
        """[M, parameters of the stage]."""
        return torch.stack([torch.cat([g.flatten() for g in self.gathered[m]]) for m in sorted(self.gathered)])

    def total(self) -> Tensor:
        """The sum that the update would be made from, [parameters]."""
        return torch.cat([tensor.flatten() for tensor in self.execution._sum])

    def replace(self, flat: Tensor) -> None:
        """Put another sum in the place of that of the micro-batches."""
        total = self.execution._sum
        for kept, part in zip(total, torch.split(flat, [tensor.numel() for tensor in total]), strict=True):
            kept.copy_(part.view_as(kept))


def _there(gradient: Tensor | None) -> Tensor:
    assert gradient is not None, "hidden states have a gradient"
    return gradient
