"""What a report can be made of, as records: directories of runs, of sweeps, and of the paper's tables.

run.json + config.toml      one run (`train --out`); its axis is `run`, its label
cells/ or sweep.json        a sweep
NAME.jsonl                  a table of `bench table1` or `table2`, in its directory or by its path
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.config import resolve
from holdfast.errors import DataError
from holdfast.plain import from_own_json
from holdfast.report import RunRecord, read_run
from holdfast.sweep.cell import Cell, command_of
from holdfast.sweep.store import Record, Store, is_store

RUN, SOURCE = "run", "source"
PLACES = ("scale", "model", "data", "column", "seed")
"""The axes of the paper's tables."""
MEASURES = ("run_id", "command", "commit", "date")


def is_run(path: Path) -> bool:
    """Whether `path` is to be read as the directory of a single run: nothing else that is known lies there."""
    return path.is_dir() and not is_store(path) and _lines_of(path) is None


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
        return store.name, store.records()
    lines = _lines_of(path)
    assert lines is not None
    return lines.stem, _table(lines)


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


def _lines_of(path: Path) -> Path | None:
    """The file of a table, where `path` is one or has exactly one."""
    if path.is_file():
        return path
    found = sorted(path.glob("table*.jsonl")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None


def _table(path: Path) -> list[Record]:
    try:
        lines = [from_own_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        records = [_row(line, path) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no table of runs ({error}); give a run, a sweep, or NAME.jsonl of a table") from None
    if not records:
        raise DataError(f"{path} holds no run")
    return records


def _row(line: Any, path: Path) -> Record:
    if not isinstance(line, dict) or not isinstance(line.get("key"), str) or not isinstance(line.get("settings"), dict):
        raise DataError(f"{path} is no table of runs; give a run, a sweep, or NAME.jsonl of a table")
    axes = {name: line[name] for name in PLACES if name in line}
    known = {"key", "settings", "error", *axes}
    result = {name: value for name, value in line.items() if name not in known and name not in MEASURES[1:]}
    environment = line.get("environment")
    return Record(
        key=line["key"],
        axes=axes,
        tables=line["settings"],
        result=None if line.get("error") else result,
        error=line.get("error"),
        seconds=float(line.get("seconds") or 0.0),
        started=str(line.get("date") or ""),
        command=str(line.get("command") or ""),
        environment={**(environment if isinstance(environment, dict) else {}), "commit": line.get("commit")},
    )
