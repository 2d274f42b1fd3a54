"""Schedules as pure generators: the order in which the worker of a stage wants to work, shadow work included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from holdfast.schedule.action import Action, Kind, with_shadow
from holdfast.schedule.gpipe import gpipe
from holdfast.schedule.one_f_one_b import held, one_f_one_b
from holdfast.schedule.simulate import Pipeline, Slot, draw, simulate, step_time

__all__ = [
    "SCHEDULES",
    "Action",
    "Kind",
    "Pipeline",
    "ScheduleName",
    "Slot",
    "draw",
    "gpipe",
    "in_flight_limit",
    "one_f_one_b",
    "simulate",
    "step_time",
    "with_shadow",
]

ScheduleName = Literal["gpipe", "1f1b"]

SCHEDULES: dict[ScheduleName, Callable[[int, int, int], Iterator[Action]]] = {"gpipe": gpipe, "1f1b": one_f_one_b}


def in_flight_limit(schedule: ScheduleName, stages: int, stage: int, micro_batches: int, verified: bool) -> int:
    """How many micro-batches `stage` may hold between their forward and backward pass.

    >>> [in_flight_limit("1f1b", 4, i, 8, verified=False) for i in range(4)]
    [4, 3, 2, 1]
    >>> [in_flight_limit("1f1b", 4, i, 8, verified=True) for i in range(4)]
    [8, 6, 4, 2]
    """
    return micro_batches if schedule == "gpipe" else held(stages, stage, micro_batches, verified=verified)
