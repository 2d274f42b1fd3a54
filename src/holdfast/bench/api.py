"""The experiments from Python, as pandas frames: one row a cell, or one for each way that a cell compares in turns.

runs = run_table("table1", scale="smoke", seeds=2, out="runs/t1")
costs = run_overhead(quick(), out="runs/overhead")

Columns: the cell's axes (what is varied, `part`, `seed`), every number and word of its result, then where it comes from, as in
`holdfast.sweep.frame`: key, run_id, commit, command, error, cell_seconds, started and versions. With `out` cells are kept
there: called again, only what is missing is measured, and `holdfast report OUT` reads it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.sweep import Record, Store, Study, frame
from holdfast.sweep.record import LINES, expanded, write_lines

if TYPE_CHECKING:
    from pandas import DataFrame

    from holdfast.bench.aggregation import Question as AggregationQuestion
    from holdfast.bench.overhead import Plan as OverheadPlan
    from holdfast.bench.recovery import Plan as RecoveryPlan

Tell = Callable[[Record], None]


def run_table(
    name: str,
    *,
    seeds: int | range = 1,
    out: Path | str | None = None,
    store: Path | str | None = None,
    jobs: int = 1,
    tell: Tell = lambda _record: None,
    **asked: Any,
) -> DataFrame:
    """A row for each run of table1 or table2: axes scale, model, data, column, seed; the numbers of `train --json`.

    `asked` is as `holdfast.bench.paper.grid.ask` takes it: scale, models, data, columns, overfit, steps, device,
    directories, assignments. Models are made first, below `store` (default: OUT/store). Raises ConfigError and SetupError.
    """
    from holdfast.bench.paper.grid import ask, check_models
    from holdfast.bench.paper.pretrain import make_all
    from holdfast.bench.paper.runner import study_of

    question = ask(name, asked.pop("scale", "tiny"), seeds=seeds if isinstance(seeds, range) else range(seeds), **asked)
    check_models(question)
    with _directory(out) as directory:
        kept = Path(store) if store is not None else Path(directory) / "store"
        starters = [question.starter(*row) for row in question.rows]
        make_all([starter for starter in starters if starter is not None], kept, lambda _line: None, jobs)
        records = study_of(question, kept).run(Store(kept), jobs=jobs, tell=tell)
        if out is not None:
            write_lines(Path(directory) / LINES, records)
        return frame(records)


def run_overhead(
    plan: OverheadPlan, *, out: Path | str | None = None, jobs: int = 1, tell: Tell = lambda _record: None
) -> DataFrame:
    """`holdfast.bench.overhead.full()` or `quick()`, changed by `dataclasses.replace`. On the virtual clock: axes network,
    stages, micro_batches, schedule, defence, attack; numbers of `VirtualRow`. Real: engine, schedule, way; of `RealRow`.
    """
    from holdfast.bench.overhead import study_of

    return _measured(study_of(plan), out, jobs, tell)


def run_recovery(
    plan: RecoveryPlan, *, out: Path | str | None = None, jobs: int = 1, tell: Tell = lambda _record: None
) -> DataFrame:
    """`holdfast.bench.recovery.Plan()` or `quick()`. Incidents: axes way, stages, moment; numbers of `Incident`. Days: axes
    defence, every, life_h, gone_min, hours, seed; numbers of `Day`.
    """
    from holdfast.bench.recovery import study_of

    return _measured(study_of(plan), out, jobs, tell)


def run_detection(
    attacks: Sequence[str],
    defences: Sequence[str],
    *,
    seeds: int | range = 1,
    rates: Sequence[float] = (1.0,),
    steps: int = 4,
    scale: str = "tiny",
    assignments: Sequence[str] = (),
    out: Path | str | None = None,
    jobs: int = 1,
    tell: Tell = lambda _record: None,
) -> DataFrame:
    """A row for each run: axes attack, stage, direction, rate, defence, seed; the counts of `Measurement`. The clean runs that
    others are held against are rows too, with the attack `honest`.
    """
    from holdfast.bench.cell import Setup
    from holdfast.bench.suites import Grid, plan
    from holdfast.bench.workshop import study_of

    chosen = seeds if isinstance(seeds, range) else range(seeds)
    setup = Setup(scale, steps, None, tuple(assignments))
    grid = Grid(tuple(attacks), tuple(defences), rates=tuple(rates), seeds=chosen)
    cells = plan(grid, setup, frozenset([*attacks, *defences])).cells
    return _measured(study_of(cells, setup), out, jobs, tell)


def run_aggregation(
    question: AggregationQuestion, *, out: Path | str | None = None, jobs: int = 1, tell: Tell = lambda _record: None
) -> DataFrame:
    """Rows of three parts: `watched` (axes direction, attack; area, found and false alarms of the test that did best),
    `training` (replaced, aggregator; perplexity, loss, cosine), `jump` (as `run_detection`). The tables of the command:
    `holdfast.bench.aggregation_cells.gather`.
    """
    from holdfast.bench.aggregation_cells import study_of

    with _directory(out) as directory:
        return _measured(study_of(question, Path(directory)), directory, jobs, tell)


def _measured(study: Study, out: Path | str | None, jobs: int, tell: Tell) -> DataFrame:
    with _directory(out) as directory:
        return frame(expanded(study.fill(Store(directory), jobs=jobs, tell=tell)))


def _directory(out: Path | str | None) -> AbstractContextManager[Path | str]:
    return tempfile.TemporaryDirectory(prefix="holdfast-bench-") if out is None else nullcontext(out)
