"""What a report can be made of, as records: directories of runs, of sweeps, and of experiments.

run.json + config.toml      one run (`train --out`); its axis is `run`, its label
cells/ or sweep.json        a store, as a sweep and every `bench` fills it
cells.jsonl                 the records of an experiment in one file, in its directory or by its path
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from holdfast.config import resolve
from holdfast.report import RunRecord, read_run
from holdfast.sweep.cell import Cell, command_of
from holdfast.sweep.record import LINES, Record, expanded, read_lines
from holdfast.sweep.store import Store, is_store

RUN, SOURCE = "run", "source"


def is_run(path: Path) -> bool:
    """Whether `path` is to be read as the directory of a single run: nothing else that is known lies there."""
    return path.is_dir() and not is_store(path) and lines_of(path) is None


def read_sources(paths: Sequence[Path]) -> tuple[str, list[Record]]:
    """A name for the whole, and all records; those of several sweeps have the axis `source`. Raises DataError."""
    if all(is_run(path) for path in paths):
        runs = told_apart([(path, read_run(path)) for path in paths])
        return "runs", [record_of(run) for run in runs]
    found = [(path, *_read(path)) for path in paths]
    if len(found) == 1:
        return found[0][1:]
    titles = Counter(title for _, title, _ in found)
    records = []
    for path, title, some in found:
        source = title if titles[title] == 1 else str(path)
        records += [replace(record, axes={SOURCE: source, **record.axes}) for record in some]
    return ", ".join(titles), records


def told_apart(runs: Sequence[tuple[Path, RunRecord]]) -> list[RunRecord]:
    """Runs that have the same label are called by their directories."""
    labels = Counter(run.label for _, run in runs)
    return [run if labels[run.label] == 1 else replace(run, label=f"{run.label} ({path.resolve().name})") for path, run in runs]


def _read(path: Path) -> tuple[str, list[Record]]:
    if is_run(path) or not path.exists():  # what is missing is told as for a run
        return RUN, [record_of(read_run(path))]
    if is_store(path):
        store = Store(path)
        return store.name, expanded(store.records())
    lines = lines_of(path)
    assert lines is not None
    return _name_of(lines), expanded(read_lines(lines))


def record_of(run: RunRecord) -> Record:
    """A run of `train --out` as a record, with its label and its seed as axes."""
    config = resolve(run.config)
    cell = Cell({RUN: run.label, "seed": config.training.seed}, run.config)
    return Record(
        key=cell.key,
        axes=cell.axes,
        tables=config.model_dump(mode="json", exclude_none=True, exclude={"output"}),
        result=run.result,
        seconds=float(run.result.get("seconds") or 0.0),
        command=command_of(config),
        environment=run.started.get("environment", {}),
    )


def lines_of(path: Path) -> Path | None:
    """The file of records, where `path` is one or the directory of an experiment that has one."""
    if path.is_file():
        return path
    return path / LINES if (path / LINES).is_file() else None


def _name_of(lines: Path) -> str:
    """The directory of an experiment has its name; another file its own."""
    return lines.resolve().parent.name if lines.name == LINES else lines.stem
