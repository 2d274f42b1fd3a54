"""An experiment is one run with all that surrounds it: short settings, attackers, observers, a directory for the result.

Experiment(stages=6, steps=60, attack="sign-flip,rate=0.7", on_alert="replace").run()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.attacks import Misconduct
from holdfast.cast import Troupe
from holdfast.config import AttackConfig, RunConfig, resolve
from holdfast.engine import Engine, clock_of
from holdfast.errors import ConfigError, NothingLeft
from holdfast.event import REAL, Event
from holdfast.metrics import Metrics
from holdfast.metrics_server import MetricsServer, check_metrics
from holdfast.report import (
    JsonlReport,
    LogFile,
    Observer,
    RunRecord,
    TensorBoard,
    make_record,
    read_result,
    read_run,
    render_html,
    write_run,
)
from holdfast.report.tensorboard import require_tensorboard
from holdfast.result import RunResult
from holdfast.settings import check_available, merge, run_directory, split_attack
from holdfast.toml import read_toml, to_toml
from holdfast.trainer import Trainer

if TYPE_CHECKING:
    from holdfast.host import Host
    from holdfast.job import Job

AttackLike = str | Misconduct | AttackConfig | Mapping[str, Any]


class Experiment:
    """One run of `config`, changed by `settings`: short names as on the command line, or whole sections as mappings.

    `attack` is a name with parameters, an object of a subclass of `Attack`, a table whose `spec` is either, or several of them.
    With `out=DIR` the directory receives config.toml, report.jsonl, run.json, report.html, checkpoints and the model; without,
    nothing is written. `resume` is the directory of a run to go on with. While it runs, `metrics` is the server of its metrics,
    where the config wants one. With a `host` the workers are machines that join, and all keys are their own. `job` is what was
    prepared before for exactly this run (`holdfast.sweep.jobs.job_of`). Where a run that was to go on has ended, `nothing_left`
    says so, and the result is the one that is written there. Raises ConfigError and the like before anything is
    written.
    """

    def __init__(
        self,
        config: RunConfig | Mapping[str, Any] | None = None,
        *,
        observers: Sequence[Observer] = (),
        label: str = "",
        resume: Path | str | None = None,
        host: Host | None = None,
        job: Job | None = None,
        **settings: Any,
    ) -> None:
        tables = _tables(config, resume)
        objects: dict[int, Misconduct] = {}
        if "attack" in settings:
            settings["attack"], objects = _attacks(settings["attack"])
        if "faults" in settings:
            settings["faults"] = tuple(str(fault) for fault in settings["faults"])
        self.config = resolve(merge(tables, settings))
        check_available(self.config)
        self.label = label or _label(self.config)
        self.record: RunRecord | None = None
        self.nothing_left: str | None = None
        self._out = _directory(self.config, resumed=resume is not None)
        if resume is not None and self._out is not None:
            _check_opened_by(self._out, hosted=host is not None)
        self.metrics: MetricsServer | None = None
        self._metrics = _metrics(self.config)
        clock = clock_of(self.config) if host is None else REAL
        self._recorder = _Recorder(self.config, self._out, clock, [*([self._metrics] if self._metrics else []), *observers])
        troupe = Troupe(self.config, objects) if self.config.attack or self.config.faults else None
        self._trainer = Trainer(
            self.config,
            observers=(self._recorder,) if troupe is None else (self._recorder, troupe.observe),
            cast=troupe,
            resume=Path(resume) if resume is not None else None,
            job=job,
            deployed=lambda cluster: None if self._metrics is None else self._metrics.watch(cluster.launcher),
            open_engine=_engine(self.config, troupe, objects, self._out) if host is None else host.engine,
            identity=None if host is None else host.identity,
            journal=None if host is None else host.journal,
        )

    def run(self) -> RunResult:
        """Train to the end (or to `stop`), write the reports, and return the numbers of `train --json`."""
        machines = self.config.machines
        if self._metrics is not None:
            self.metrics = MetricsServer(self._metrics, machines.metrics or "", exposed=machines.expose_metrics)
        try:
            result = self._trainer.run()
        except NothingLeft as left:
            assert self._out is not None, "it was found there"
            self.nothing_left = str(left)
            self.record = read_run(self._out)
            return read_result(self._out)
        finally:
            self._recorder.close()
            if self.metrics is not None:
                self.metrics.close()
        if self._out is None:
            tables = self.config.model_dump(mode="json", exclude_none=True)
            self.record = make_record(self.label, result.to_json(), tables, self._recorder.events)
        else:
            write_run(self._out, self.label, result.to_json())
            self.record = read_run(self._out)
            (self._out / "report.html").write_text(render_html([self.record]), encoding="utf-8")
        return result

    def stop(self) -> None:
        """Finish the step that is running, write a checkpoint, and let `run` return."""
        self._trainer.stop()


def _metrics(config: RunConfig) -> Metrics | None:
    """Who counts for a scraper, where the config wants it; raises now what would else come when the run begins."""
    machines = config.machines
    if machines.metrics is None:
        return None
    check_metrics(machines.metrics, exposed=machines.expose_metrics)
    return Metrics(config.training.steps)


def _engine(
    config: RunConfig, troupe: Troupe | None, objects: Mapping[int, Misconduct], out: Path | None
) -> Callable[[], Engine] | None:
    """What opens the engine that the config asks for; None for the one in memory."""
    if config.pipeline.engine == "memory":
        return None
    if objects:
        raise ConfigError(
            f"an attack that is an object lives in this process, and the engine {config.pipeline.engine!r} has others; "
            "give its class as file.py:Class, or use the engine memory"
        )
    from holdfast.actors import actors
    from holdfast.crew import Staging, processes

    logs = None if out is None else out / "workers"
    start = actors if config.pipeline.engine == "ray" else processes
    if troupe is None:
        return partial(start, Staging(config, logs=logs))
    return partial(start, Staging(config, config, troupe.absorb, lambda: troupe.latest + 2, logs))


_BESIDE = ("host", "workers", "control.sock")
"""What may lie in a run's directory before the run does: that of its host and of its workers' processes."""


class _Recorder:
    """Observer that keeps or writes every event, and hands it on; the directory is made at the first one, not before."""

    def __init__(self, config: RunConfig, out: Path | None, clock: str, observers: Iterable[Observer]) -> None:
        self.events: list[tuple[Event, float]] = []
        self._config = config
        self._out = out
        self._clock = clock
        self._observers = list(observers)
        self._writers: list[JsonlReport | LogFile | TensorBoard] = []
        if config.output.report_to and out is None:
            raise ConfigError("--report-to tensorboard needs a directory for its files; give --out DIR (out=DIR in Python)")
        if config.output.report_to:
            require_tensorboard()  # now, and not when there is something to write

    def __call__(self, event: Event, seconds: float) -> None:
        if self._out is None:
            self.events.append((event, seconds))
        elif not self._writers:
            self._open(self._out)
        for observer in (*self._writers, *self._observers):
            observer(event, seconds)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def _open(self, out: Path) -> None:
        self._writers.append(JsonlReport(out / "report.jsonl"))
        self._writers.append(LogFile(out, self._config.output.log_format))
        (out / "config.toml").write_text(to_toml(self._config), encoding="utf-8")
        if "tensorboard" in self._config.output.report_to:
            self._writers.append(TensorBoard(out / "tensorboard", self._clock))


def _attacks(given: Any) -> tuple[tuple[Any, ...], dict[int, Misconduct]]:
    """Tables for the configuration, and the attacks among them that are objects, by index."""
    alone = isinstance(given, str | Misconduct | AttackConfig | Mapping) or not isinstance(given, Iterable)
    several = [] if given is None else [given] if alone else list(given)
    tables: list[Any] = []
    objects: dict[int, Misconduct] = {}
    for index, attack in enumerate(several):
        if isinstance(attack, Misconduct):
            objects[index] = attack
            tables.append({"spec": type(attack).__name__})
        elif isinstance(attack, AttackConfig):
            tables.append(attack.model_dump(exclude_none=True))
        elif isinstance(attack, str):
            tables.append(split_attack(attack))
        elif isinstance(attack, Mapping):
            table = dict(attack)
            if isinstance(table.get("spec"), Misconduct):
                objects[index], table["spec"] = table["spec"], type(table["spec"]).__name__
            tables.append(table)
        else:
            found = attack.__name__ if isinstance(attack, type) else type(attack).__name__
            raise ConfigError(f"attack: needed are a name, an object of a subclass of Attack, or a table; got {found}")
    return tuple(tables), objects


def _label(config: RunConfig) -> str:
    """What a run is called in a comparison if nobody says: what it is up against, and what it does about it."""
    struck = [table.spec.partition(",")[0] for table in config.attack] + (["faults"] if config.faults else [])
    defence = "" if config.defence_name == "none" else config.defence.on_alert
    return ", ".join(["+".join(struck) if struck else "clean", *([defence] if struck and defence else [])])


def _tables(config: RunConfig | Mapping[str, Any] | None, resume: Path | str | None) -> dict[str, Any]:
    """The settings to start from; a run that goes on has its own, and its own directory."""
    if config is None and resume is not None:
        directory = run_directory(Path(resume))
        return merge(read_toml(directory / "config.toml"), {"out": str(directory)})
    return config.model_dump(exclude_none=True) if isinstance(config, RunConfig) else dict(config or {})


def _check_opened_by(out: Path, *, hosted: bool) -> None:
    """The keys of a run that was hosted are those of its machines: who goes on without them would spoil its evidence."""
    before = (out / "host").is_dir()
    if before and not hosted:
        raise ConfigError(
            f"the run in {out} was opened by `holdfast host`: go on with the same command, `holdfast host ... --out {out}`"
        )
    if hosted and not before:
        raise ConfigError(
            f"the run in {out} was not opened by `holdfast host`: go on with `holdfast train --resume {out}`, "
            "or give another --out"
        )


def _directory(config: RunConfig, *, resumed: bool) -> Path | None:
    """Where the run is written. A directory that holds a run is never written over, only gone on with."""
    if config.output.dir is None:
        return None
    out = Path(config.output.dir)
    if not resumed and out.exists() and (not out.is_dir() or any(entry.name not in _BESIDE for entry in out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; choose another --out, or go on with a run by --resume {out}")
    return out


__all__ = ["AttackLike", "Experiment"]
