"""Processes that work on items (cells to measure, models to make), one each at a time; one that dies takes only its own along.

parent --item--> worker      spawned, one thread of torch, deaf to Ctrl-C, ended with its parent
       <-ending-
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass
class _Worker:
    process: SpawnProcess
    line: Connection
    item: Any = None
    busy: bool = False


def together(items: Sequence[Item], work: Callable[[Item], Any], jobs: int) -> Iterator[tuple[Item, Any]]:
    """Each item with what `work` returned for it, as they end; a str where its process died instead.

    `work` and what it returns must be picklable; it raises nothing. Leaving the loop early ends all processes.
    """
    waiting = list(reversed(items))
    workers: list[_Worker] = []
    with _single_threaded():
        try:
            for _ in range(min(jobs, len(waiting))):
                workers.append(_start(work))
                _give(workers[-1], waiting.pop())
            while busy := [worker for worker in workers if worker.busy]:
                for line in wait([worker.line for worker in busy]):
                    worker = next(worker for worker in busy if worker.line is line)
                    item, worker.busy = worker.item, False
                    ending = _take(worker)
                    if isinstance(ending, _Death):
                        workers.remove(worker)
                        if waiting:
                            workers.append(worker := _start(work))
                    if waiting and worker in workers:
                        _give(worker, waiting.pop())
                    yield item, ending.told if isinstance(ending, _Death) else ending
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.process.join()
                worker.line.close()


@dataclass(frozen=True)
class _Death:
    told: str


def _start(work: Callable[[Any], Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, item: Any) -> None:
    worker.item, worker.busy = item, True
    with suppress(OSError):  # it is dead already, which shows where its ending is waited for
        worker.line.send(item)


def _take(worker: _Worker) -> Any:
    try:
        return worker.line.recv()
    except (EOFError, OSError):
        worker.process.join()
        worker.line.close()
        code = worker.process.exitcode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return _Death(f"the process that ran it ended {how}; perhaps for want of memory: try fewer at a time")


def _work(line: Connection, work: Callable[[Any], Any]) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            item = line.recv()
        except EOFError:
            return
        line.send(work(item))


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Libraries of the workers read this when they are loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
