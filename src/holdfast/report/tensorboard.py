"""The curves of a run for TensorBoard: loss, gradient norm, learning rate, validation, and alerts so far, by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.errors import MissingExtra
from holdfast.event import VIRTUAL, Alert, Evaluated, Event, Ruling, RunFinished, StepSealed


def require_tensorboard() -> Any:
    """The library's writer; raises MissingExtra where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboard", extra="tensorboard", purpose="--report-to tensorboard") from None
    return SummaryWriter


class TensorBoard:
    """Observer that writes scalars under `directory`; `clock` is what the time of events is called.

    Raises MissingExtra where tensorboard is not installed.
    """

    def __init__(self, directory: Path, clock: str = VIRTUAL) -> None:
        self._time = f"time/{clock}_seconds"
        self._writer: Any = require_tensorboard()(str(directory))
        self._alerts = 0
        self._rulings = 0

    def __call__(self, event: Event, seconds: float) -> None:
        match event:
            case StepSealed():
                self._scalars(
                    event.step,
                    {
                        "train/loss": event.loss,
                        "train/gradient_norm": event.gradient_norm,
                        "train/learning_rate": event.learning_rate,
                        "defence/alerts": self._alerts,
                        "defence/rulings": self._rulings,
                        self._time: seconds,
                    },
                )
            case Evaluated():
                scores = {"validation/perplexity": event.perplexity, "validation/bits_per_byte": event.bits_per_byte}
                self._scalars(event.step, scores)
            case Alert():
                self._alerts += 1
            case Ruling():
                self._rulings += 1
            case RunFinished():
                self._writer.flush()
            case _:
                pass

    def close(self) -> None:
        self._writer.close()

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
