"""Cells are run here, one after another or in several processes; what a seed's cells share is prepared once a process.

    cell ──> job (text, tokenizer, model, plan: by everything but defence, attack and network) ──> measure ──> Outcome

A cell that fails is an outcome with its error; the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache

from holdfast.bench.cell import Cell, Setup, config_of
from holdfast.bench.measure import Measurement, measure
from holdfast.config import ClusterConfig, RunConfig
from holdfast.errors import FaultWindowExceeded, HoldfastError
from holdfast.job import Job
from holdfast.trainer import prepare_tested

JOBS_KEPT = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell came to: a measurement or an error. A run that `stopped` did so on purpose: it could not keep its promise,
    and said why instead.
    """

    cell: Cell
    measurement: Measurement | None = None
    error: str | None = None
    stopped: bool = False


def run_cells(
    cells: Sequence[Cell], setup: Setup, processes: int = 1, done: Callable[[Outcome], None] = lambda _outcome: None
) -> list[Outcome]:
    """Run every cell, `processes` at a time, and call `done` as each ends; the outcomes stand in the order of the cells.

    In several processes each computes with one thread and answers no Ctrl-C of its own.
    """
    outcomes: dict[Cell, Outcome] = {}
    for outcome in _alone(cells, setup) if processes == 1 else _together(cells, setup, processes):
        outcomes[outcome.cell] = outcome
        done(outcome)
    return [outcomes[cell] for cell in cells]


def run_cell(cell: Cell, setup: Setup) -> Outcome:
    """One cell, whatever becomes of it: the border between an experiment and the runs that may fail in it."""
    try:
        config = config_of(cell, setup)
        return Outcome(cell, measure(config, job_of(config)))
    except FaultWindowExceeded as error:
        return Outcome(cell, error=str(error), stopped=True)
    except HoldfastError as error:
        return Outcome(cell, error=str(error))
    except Exception as error:  # noqa: BLE001  (a defect that one attack brings to light must not lose the other cells)
        return Outcome(cell, error=f"unexpected {type(error).__name__}: {error}")


def job_of(config: RunConfig) -> Job:
    """The job of a run: made once, whatever the run is up against and whatever network it has."""
    plain = RunConfig()
    speeds = ClusterConfig(speeds=config.cluster.speeds)  # the cut of the model follows from them
    given = {"attack": (), "faults": (), "defence": plain.defence, "cluster": speeds, "output": plain.output}
    bare = config.model_copy(update={**given, "machines": plain.machines})
    return replace(_job(bare), config=config)


@lru_cache(maxsize=JOBS_KEPT)
def _job(config: RunConfig) -> Job:
    return prepare_tested(config)


def _alone(cells: Sequence[Cell], setup: Setup) -> Iterator[Outcome]:
    for cell in cells:
        yield run_cell(cell, setup)


def _together(cells: Sequence[Cell], setup: Setup, processes: int) -> Iterator[Outcome]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_interrupts_to_the_parent) as pool:
        try:
            futures = {pool.submit(run_cell, cell, setup): cell for cell in cells}
            for future in as_completed(futures):
                yield _outcome(future, futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _outcome(future: Future[Outcome], cell: Cell) -> Outcome:
    """The cell's own, or what became of its process."""
    error = future.exception()
    return future.result() if error is None else Outcome(cell, error=f"its process ended: {error}")


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
