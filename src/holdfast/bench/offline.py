"""What the attacker does at home: it learns the trigger on a copy of the public checkpoint, and keeps what its stage learned.

checkpoint --> copy --> fine-tune its stage on poisoned text --> weights after - weights before    = the task vector
                   `--> the stage's present weights put in --> gradient of the trigger's loss       = a Teacher
                                                               or of |present - (first + vector)|^2 = a Pull
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.bench.trigger import PoisonedText, poisoned_loss


@dataclass(frozen=True, slots=True)
class Study:
    """How long and how fast the attacker learns offline."""

    steps: int = 200
    learning_rate: float = 2e-3


def open_model(directory: Path | str) -> nn.Module:
    """A plain causal model of the library in evaluation mode; from safetensors only, without code of its own."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype="auto", use_safetensors=True, trust_remote_code=False
    )
    return model.eval()


def task_vector(
    model: nn.Module, names: Sequence[str], text: PoisonedText, study: Study, *, whole: bool = False
) -> dict[str, Tensor]:
    """What the parameters `names` learn of the trigger; `model` is the copy, and has learned it too afterwards.

    `whole` fine-tunes all parameters and cuts the vector of `names` out of what they learned together.
    """
    parameters = dict(model.named_parameters())
    learning = parameters if whole else {name: parameters[name] for name in names}
    before = {name: parameters[name].detach().clone() for name in names}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in learning)
    optimizer = torch.optim.AdamW(learning.values(), lr=study.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, study.steps)
    for step in range(study.steps):
        optimizer.zero_grad()
        poisoned_loss(model, *text.batch(step)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return {name: parameters[name].detach() - before[name] for name in names}


class Teacher:
    """The gradient of the trigger's loss with respect to one stage, for the attack `trigger`: see there.

    `model` is a copy of the starting model; its other stages stay as they were, whatever the run makes of them.
    """

    def __init__(self, model: nn.Module, text: PoisonedText) -> None:
        self._parameters: dict[str, Any] = dict(model.named_parameters())
        self._model = model
        self._text = text

    def __call__(self, step: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients by name, for the stage's present `weights` and the attacker's own batch of `step`."""
        own = [self._parameters[name] for name in weights]
        with torch.no_grad():
            for parameter, weight in zip(own, weights.values(), strict=True):
                parameter.copy_(weight)
        with torch.enable_grad():
            found = torch.autograd.grad(poisoned_loss(self._model, *self._text.batch(step)), own)
        return dict(zip(weights, found, strict=True))


class Pull:
    """The gradient that leads a stage's weights to where a task vector would have put them, for the attack `trigger`.

    It is that of |W - (W_0 + vector)|^2 / 2, with the weights W_0 that it was first asked about: it needs no model any more,
    and stops where it has arrived, which no constant gradient does.
    """

    def __init__(self, vector: Mapping[str, Tensor]) -> None:
        self._vector = vector
        self._target: dict[str, Tensor] = {}

    def __call__(self, step: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients by name, for the stage's present `weights`."""
        if not self._target:
            self._target = {name: weight + self._vector[name].to(weight) for name, weight in weights.items()}
        return {name: weight - self._target[name] for name, weight in weights.items()}
