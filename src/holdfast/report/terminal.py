"""Progress for the person who waits: a live table on a terminal, one line every n steps anywhere else, silence with -q."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO

from holdfast.event import (
    VIRTUAL,
    Banned,
    CheckpointFailed,
    CheckpointWritten,
    Evaluated,
    Event,
    Joined,
    JournalSetAside,
    Paced,
    Paused,
    Placed,
    Reunited,
    RolledBack,
    RunFinished,
    RunStarted,
    StepSealed,
    TakenOver,
    WorkerLost,
)
from holdfast.report.log import Log
from holdfast.report.tally import Tally, tell

Observer = Callable[[Event, float], None]
"""Called with every event of a run and its time in seconds, by the run's clock, from the thread of the run; must not raise."""

REFRESH_PER_SECOND = 8
LINES_A_RUN = 10

NEWS = (
    WorkerLost,
    Joined,
    TakenOver,
    Banned,
    RolledBack,
    Placed,
    Paced,
    Paused,
    CheckpointFailed,
    Reunited,
    JournalSetAside,
)
"""What is told at once, also to who has not asked for everything (`verbose`)."""

LINES = (*NEWS, RunStarted, Evaluated, CheckpointWritten)


class Progress(AbstractContextManager["Progress"], Protocol):
    """Where the progress of one run, or of several side by side, is shown while the context is open."""

    def observer(self, label: str, steps: int) -> Observer: ...

    def say(self, line: str) -> None:
        """A line that is not of the run itself, at once and in one piece, however long; from any thread."""
        ...


class LineProgress:
    """One line every `steps / 10` steps, and for who comes and goes; with `verbose`, for every alert and ruling as well."""

    def __init__(self, stream: TextIO, *, verbose: bool = False, clock: str = VIRTUAL) -> None:
        self._stream = stream
        self._verbose = verbose
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.flush()

    def observer(self, label: str, steps: int) -> Observer:
        tally = Tally(label, steps, time=self._clock)
        every = max(1, steps // LINES_A_RUN)

        def observe(event: Event, seconds: float) -> None:
            tally(event, seconds)
            due = isinstance(event, StepSealed) and (tally.step % every == 0 or tally.step == steps)
            if due:
                self._print(label, progress_line(tally))
            elif self._verbose or isinstance(event, LINES):
                news = tell(event)
                if news is not None:
                    self._print(label, news)

        return observe

    def say(self, line: str) -> None:
        self._print("", line)

    def _print(self, label: str, text: str) -> None:
        self._stream.write(f"{label}: {text}\n" if label else f"{text}\n")
        self._stream.flush()


class LiveProgress:
    """A table that redraws itself, one row a run; news scrolls above it, with `verbose` of every alert and ruling."""

    def __init__(self, stream: TextIO, *, verbose: bool = False, clock: str = VIRTUAL) -> None:
        from rich.console import Console
        from rich.live import Live

        self._tallies: list[Tally] = []
        self._verbose = verbose
        self._clock = clock
        self._live = Live(
            get_renderable=self._table,
            console=Console(file=stream, highlight=False),
            refresh_per_second=REFRESH_PER_SECOND,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def observer(self, label: str, steps: int) -> Observer:
        tally = Tally(label, steps, time=self._clock)
        self._tallies.append(tally)

        def observe(event: Event, seconds: float) -> None:
            tally(event, seconds)
            if isinstance(event, Placed) and not label:
                self._live.console.print(placement_table(event))
            news = tell(event) if self._verbose or isinstance(event, NEWS) else None
            if news is not None:
                self._live.console.print(f"{label}: {news}" if label else news, markup=False)
            if isinstance(event, RunFinished):
                self._live.refresh()

        return observe

    def say(self, line: str) -> None:
        self._live.console.print(line, markup=False, soft_wrap=True)  # the terminal wraps it: what is copied is one line

    def _table(self) -> Any:
        from rich import box
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("run", "", "step"):
            table.add_column(heading, no_wrap=True)
        for heading in ("loss", "grad norm", "tokens/s", f"{self._clock} s", "alerts"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("caught", max_width=28)
        for tally in self._tallies:
            bar = ProgressBar(total=tally.steps, completed=tally.step, width=16)
            numbers = (_figure(tally.loss, 3), _figure(tally.gradient_norm, 2), _figure(tally.tokens_per_second, 0))
            where = (f"{tally.step}/{tally.steps}", *numbers, f"{tally.virtual_seconds:.1f}", str(tally.alerts))
            table.add_row(tally.label, bar, *where, tally.names_of_caught)
        return table


def placement_table(event: Placed) -> Any:
    """Who carries what: one row a machine, with its share of the predicted step and the memory that it needs."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"predicted: {event.step_s:.3g} s a step", title_justify="left")
    for heading in ("machine", "layers", "shadows"):
        table.add_column(heading, no_wrap=True)
    for heading in ("busy", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, memory in event.memory_bytes.items():
        own, shadowed = (
            ", ".join(f"{lo}-{hi - 1}" for (lo, hi), holder in zip(event.layers, holders, strict=True) if holder == name)
            for holders in (event.primaries, event.shadows)
        )
        table.add_row(name, own, shadowed or "none", f"{event.busy.get(name, 0.0):.0%}", f"{memory / 2**20:,.1f} MiB")
    return table


class LogProgress:
    """The lines of `LineProgress` as JSON, one object each, for programs that collect them."""

    def __init__(self, stream: TextIO, *, verbose: bool = False, clock: str = VIRTUAL) -> None:
        self._log = Log(stream, "json")
        self._verbose = verbose
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def observer(self, label: str, steps: int) -> Observer:
        tally = Tally(label, steps, time=self._clock)
        every = max(1, steps // LINES_A_RUN)

        def observe(event: Event, seconds: float) -> None:
            tally(event, seconds)
            if isinstance(event, StepSealed):
                if tally.step % every == 0 or tally.step == steps:
                    fields = {"event": "StepSealed", "step": event.step, "loss": event.loss, "tokens": tally.tokens}
                    self._log.write("info", progress_line(tally), fields)
            elif self._verbose or isinstance(event, (*LINES, RunFinished)):
                self._log(event, seconds)

        return observe

    def say(self, line: str) -> None:
        self._log.write("info", line, {"event": "host"})


class SilentProgress:
    """Shows nothing of the run (-q)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def observer(self, label: str, steps: int) -> Observer:
        return Tally(label, steps)

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def open_progress(
    stream: TextIO,
    *,
    quiet: bool = False,
    verbose: bool = False,
    form: Literal["text", "json"] = "text",
    clock: str = VIRTUAL,
) -> Progress:
    """The progress that suits `stream`: live on a terminal, lines into a file or a pipe, nothing with `quiet`.

    As JSON it is lines everywhere. `clock` is what the time of events is called, VIRTUAL or REAL.
    """
    if quiet:
        return SilentProgress(stream)
    if form == "json":
        return LogProgress(stream, verbose=verbose, clock=clock)
    return (
        LiveProgress(stream, verbose=verbose, clock=clock)
        if stream.isatty()
        else LineProgress(stream, verbose=verbose, clock=clock)
    )


def progress_line(tally: Tally) -> str:
    """The tally as one line.

    >>> progress_line(Tally("", 150, step=20, loss=5.0312, gradient_norm=0.71, virtual_seconds=3.25))
    'step 20/150  loss 5.031  grad norm 0.71  virtual 3.2 s'
    """
    parts = [
        f"step {tally.step}/{tally.steps}",
        f"loss {_figure(tally.loss, 3)}",
        f"grad norm {_figure(tally.gradient_norm, 2)}",
    ]
    if tally.wall_seconds > 0:
        parts.append(f"{_figure(tally.tokens_per_second, 0)} tokens/s")
    parts.append(f"{tally.time} {tally.virtual_seconds:.1f} s")
    if tally.alerts:
        parts.append(f"alerts {tally.alerts}")
    if tally.caught:
        parts.append(f"caught {tally.names_of_caught}")
    return "  ".join(parts)


def _figure(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"
