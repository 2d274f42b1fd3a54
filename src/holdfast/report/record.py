"""A run record is one finished run as plain data: its result, its settings and its events, from memory or from its directory.

run.json       {"schema", "holdfast", "label", "result"}      config.toml    the resolved settings
report.jsonl   one line an event                              report.html    the page made of all of it
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import holdfast
from holdfast.atomic import write_file
from holdfast.config import resolve
from holdfast.errors import ConfigError, DataError
from holdfast.event import CLOCKS, REAL, SCHEMA, VIRTUAL, Event, to_record
from holdfast.plain import fits, from_own_json, from_toml
from holdfast.report.jsonl import finite, read_report
from holdfast.result import RunResult


@dataclass(frozen=True, slots=True)
class Catch:
    """One worker's proven lies in a run: how many, about which stage, in which steps."""

    worker: str
    stage: int
    lies: int
    first_step: int
    last_step: int
    first_seconds: float


@dataclass(frozen=True, slots=True)
class RunRecord:
    """`result` has the keys of `train --json`, `config` the tables of config.toml, `events` the records of report.jsonl."""

    label: str
    result: Mapping[str, Any]
    config: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]

    def of(self, *names: str) -> list[Mapping[str, Any]]:
        """The records of the events with these names, oldest first."""
        return [record for record in self.events if record["event"] in names]

    @property
    def started(self) -> Mapping[str, Any]:
        """The last start of the run (a resumed one has several), or an empty mapping."""
        return next(iter(reversed(self.of("RunStarted"))), {})

    @property
    def stages(self) -> int:
        """K, from the settings, or else from the start of the run."""
        named = self.config.get("pipeline", {}).get("stages")
        return int(named if named is not None else len(self.started.get("stages", ())))

    @property
    def clock(self) -> str:
        """What the run's own clock is called: VIRTUAL, REAL, or both."""
        return clock_of(self.result, self.config)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of each sealed step in order; after a rollback or a resume the later seal counts."""
        return sorted({record["step"]: number(record["loss"]) for record in self.of("StepSealed")}.items())

    @property
    def perplexity(self) -> float:
        """Validation perplexity after the last step; NaN where it was not measured."""
        return number(self.result.get("validation_perplexity"))

    @property
    def defence(self) -> str:
        """`none`, or the defence with its remedy, for example `duplicate, replace`."""
        table = self.config.get("defence", {})
        name = table.get("name") or ("none" if self.stages == 2 else "duplicate")
        return name if name == "none" else f"{name}, {table.get('on_alert', 'replace')}"

    @property
    def catches(self) -> list[Catch]:
        """Who was proven to have lied, in the order in which the first lie of each was proven."""
        found: dict[str, Catch] = {}
        for ruling in self.of("Ruling"):
            for worker in ruling["culprits"]:
                old = found.get(worker)
                step, seconds = ruling["key"]["step"], float(ruling["seconds"])
                first = (step, seconds) if old is None else (old.first_step, old.first_seconds)
                stage = ruling["stage"] if old is None else old.stage
                found[worker] = Catch(worker, stage, 1 + (old.lies if old else 0), first[0], step, first[1])
        return list(found.values())


def clock_of(result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What the clock of a run is called by its result, or where that is older and does not say it, by its settings."""
    usual = VIRTUAL if config.get("pipeline", {}).get("engine", "memory") == "memory" else REAL
    told = result.get("clock")
    return told if told in CLOCKS else usual


def number(value: Any) -> float:
    """A float out of JSON, where NaN and infinity are strings and what was not measured is null.

    >>> number("inf"), number(2)
    (inf, 2.0)
    """
    return math.nan if value is None else float(value)


def make_record(
    label: str, result: Mapping[str, Any], config: Mapping[str, Any], events: Iterable[tuple[Event, float]]
) -> RunRecord:
    """The record of a run that just ended in this process."""
    return RunRecord(label, finite(dict(result)), config, tuple(finite(to_record(event, when)) for event, when in events))


def write_run(directory: Path, label: str, result: Mapping[str, Any]) -> None:
    """Write `run.json` whole or not at all: it says that the run in `directory` ended."""
    content = {"schema": SCHEMA, "holdfast": holdfast.__version__, "label": label, "result": finite(dict(result))}
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_file(directory / "run.json", text.encode(), mode=0o644)


def read_run(directory: Path) -> RunRecord:
    """The record of the run that `directory` holds; raises DataError where it holds none, or none that ended."""
    try:
        content = from_own_json((directory / "run.json").read_text(encoding="utf-8"))
        config = from_toml((directory / "config.toml").read_text(encoding="utf-8"))
        resolve(config)
    except OSError as error:
        missing = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(
            f"{directory} holds no finished run: {Path(str(error.filename)).name} {missing}; "
            "give the directory that `holdfast train --out` wrote"
        ) from None
    except (ValueError, ConfigError) as error:
        raise DataError(f"{directory}: run.json or config.toml cannot be read ({error}); the run was altered or torn") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise DataError(f"{directory}/run.json has schema {found!r}; this version of Holdfast reads {SCHEMA}")
    if not isinstance(content.get("label"), str) or not _is_result(content.get("result")):
        raise DataError(f"{directory}/run.json is not what a run writes at its end; it was altered or torn")
    return RunRecord(content["label"], content["result"], config, read_report(directory / "report.jsonl"))


def read_result(directory: Path) -> RunResult:
    """What the run in `directory` came to, as it was returned then. Raises DataError."""
    run = read_run(directory)
    found = {"clock": run.clock, **run.result}
    kinds = typing.get_type_hints(RunResult)
    values: dict[str, Any] = {
        name: math.nan if value is None and kinds[name] is float else value for name, value in found.items() if name in kinds
    }
    try:
        return RunResult(**values)
    except TypeError as error:
        raise DataError(f"{directory}/run.json is not what this version writes ({error})") from None


def _is_result(result: Any) -> bool:
    """Whether each number has its form; one that left the numbers is null there."""
    kinds = typing.get_type_hints(RunResult)
    return isinstance(result, dict) and all(
        name not in kinds or fits(value, kinds[name]) or (value is None and kinds[name] is float)
        for name, value in result.items()
    )
