"""The demo's four runs in child processes, as many at a time as there are cores (two at most), their events in one place.

child:  Experiment.run()  --(label, event, seconds)-->  queue  -->  parent: the live table
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError
from holdfast.event import Event
from holdfast.presets import DEMO_RUNS, demo_tables
from holdfast.report import Observer, RunRecord, read_run
from holdfast.report.terminal import Progress

MOST_AT_A_TIME = 2
POLL_S = 0.1

_events: Any = None
"""In a child: the queue to the parent."""


def run_all(
    out: Path, progress: Progress, *, steps: int | None = None, seed: int = 0, processes: int | None = None
) -> list[RunRecord]:
    """Run all of DEMO_RUNS and read their records, in order. What an earlier demo left in `out` is replaced."""
    tables = {label: demo_tables(label, out, steps, seed) for label in DEMO_RUNS}
    for label in tables:
        _clear(out / label)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    observers = {label: progress.observer(label, tables[label]["training"].get("steps", 0)) for label in tables}
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    count = processes or min(MOST_AT_A_TIME, os.cpu_count() or 1)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_prepare, initargs=(events,)) as pool:
        try:
            futures = [pool.submit(_run, label, table) for label, table in tables.items()]
            _follow(futures, events, observers)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return [read_run(out / label) for label in tables]


def _follow(futures: list[Future[None]], events: Any, observers: dict[str, Observer]) -> None:
    """Hand events to their observers until every run has ended; the first error of a run is raised here."""
    running = True
    while running:
        running = any(not future.done() for future in futures)
        for future in futures:
            if future.done():
                future.result()
        _drain(events, observers)


def _drain(events: Any, observers: dict[str, Observer]) -> None:
    while True:
        try:
            label, event, seconds = events.get(timeout=POLL_S)
        except queue.Empty:
            return
        observers[label](event, seconds)


def _prepare(events: Any) -> None:
    """In a child, before its first run: the parent alone answers Ctrl-C."""
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(label: str, tables: dict[str, Any]) -> None:
    from holdfast.config import resolve
    from holdfast.experiment import Experiment

    def observe(event: Event, seconds: float) -> None:
        _events.put((label, event, seconds))

    Experiment(resolve(tables), observers=(observe,), label=label).run()


def _clear(directory: Path) -> None:
    """Remove what an earlier demo wrote, and nothing else."""
    if not directory.exists():
        return
    if not (directory / "report.jsonl").exists():
        raise ConfigError(f"{directory} exists and is not a run of an earlier demo; choose another directory with --out")
    shutil.rmtree(directory)
