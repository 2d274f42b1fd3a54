"""The backdoors that are tried: which attack, taught by what, how strong, in which steps. Found by trying; docs/backdoors.md.

task-vector, own stage        once, near the end: honest work undoes it fast, and there is no need to be early
task-vector, cut from whole   the same with a vector of a fine-tuned whole model: the naive reading of task arithmetic
trigger, loss                 mode=state: all along, so strong that clipping stops everybody else
                              mode=secret: in the last steps, growing
trigger, pull                 mode=secret: in the last steps, growing
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from holdfast.attacks import Misconduct
from holdfast.attacks.targeted import TaskVector, TriggerGradient
from holdfast.bench.offline import Pull, Study, Teacher, open_model, task_vector
from holdfast.bench.trigger import PoisonedText
from holdfast.numerics import pinned

VECTOR_STEPS = 5
"""The vector is added so many steps before the end."""
PULL_STEPS = 18
LOSS_STEPS = 16


@dataclass(frozen=True)
class Strike:
    """One attack on a run of `steps` steps. `make` builds it anew, since some remember what they have seen.

    `last` are the steps before the end in which it strikes (None: all); `defended` and `continued` say in what other runs
    besides the undefended one.
    """

    attack: str
    variant: str
    mode: str
    strength: float
    make: Callable[[], Misconduct]
    last: int | None = None
    defended: bool = True
    continued: bool = False

    @property
    def label(self) -> str:
        return f"{self.attack}-{self.variant}-{self.mode}".replace(" ", "-")

    def table(self, stage: int, steps: int) -> dict[str, Any]:
        """As one entry of an experiment's `attack`."""
        first = 0 if self.last is None else max(0, steps - self.last)
        return {"spec": self.make(), "stages": (stage,), "first_step": first}


def strikes(start: str, names: Sequence[str], text: PoisonedText, study: Study) -> Iterator[Strike]:
    """Every attack on the stage that holds the parameters `names`, by who knows the model in the directory `start`."""
    own = learned(start, names, text, study)
    for mode in ("state", "secret"):
        yield Strike("task-vector", "own stage", mode, 1.0, _adds(own, mode), VECTOR_STEPS, continued=mode == "state")
    cut = learned(start, names, text, study, whole=True)
    yield Strike("task-vector", "cut from whole", "state", 1.0, _adds(cut, "state"), VECTOR_STEPS, defended=False)

    def loud() -> Misconduct:
        return TriggerGradient(mode="state", strength=1e8, gradient=Teacher(open_model(start), text))

    def quiet() -> Misconduct:
        return TriggerGradient(mode="secret", strength=50.0, growth=1.15, gradient=Teacher(open_model(start), text))

    def pulling() -> Misconduct:
        return TriggerGradient(mode="secret", strength=5.0, growth=1.12, gradient=Pull(own))

    yield Strike("trigger", "loss", "state", 1e8, loud, continued=True)
    yield Strike("trigger", "loss", "secret", 50.0, quiet, LOSS_STEPS)
    yield Strike("trigger", "pull", "secret", 5.0, pulling, PULL_STEPS, continued=True)


def learned(start: str, names: Sequence[str], text: PoisonedText, study: Study, *, whole: bool = False) -> dict[str, Tensor]:
    """The task vector, computed as every run here is: with one thread."""
    with pinned("cpu"):
        return task_vector(open_model(start), names, text, study, whole=whole)


def _adds(vector: Mapping[str, Tensor], mode: str) -> Callable[[], Misconduct]:
    return lambda: TaskVector(vector=vector, mode=mode)
