"""Train language models in a pipeline of machines that may fail, spy or lie, with the same weights as if they had not."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.attacks import Attack
    from holdfast.config import RunConfig
    from holdfast.experiment import Experiment
    from holdfast.faults import Faults
    from holdfast.result import RunResult
    from holdfast.trainer import Trainer

__version__ = "0.1.0"

__all__ = ["Attack", "Experiment", "Faults", "RunConfig", "RunResult", "Trainer", "__version__"]

_HOMES = {
    "Attack": "holdfast.attacks",
    "Experiment": "holdfast.experiment",
    "Faults": "holdfast.faults",
    "RunConfig": "holdfast.config",
    "RunResult": "holdfast.result",
    "Trainer": "holdfast.trainer",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import holdfast` alone loads neither torch nor pydantic."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
