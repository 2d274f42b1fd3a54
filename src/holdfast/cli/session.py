"""What every command that trains needs: progress on stderr, a first Ctrl-C that stops cleanly, the result on stdout."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from holdfast.config import RunConfig
    from holdfast.errors import StoppedWaiting
    from holdfast.experiment import Experiment
    from holdfast.host import Host
    from holdfast.result import RunResult

INTERRUPTED = 130


def run_experiment(config: RunConfig, *, resume: Path | None = None, quiet: bool = False, verbose: bool = False) -> RunResult:
    """One run with progress on stderr; stopped by Ctrl-C, it writes its checkpoint and leaves with exit code 130."""
    from holdfast.transport.quiet import quiet_grpc

    quiet_grpc()
    from holdfast.engine import clock_of
    from holdfast.experiment import Experiment
    from holdfast.report import open_progress

    clock, form = clock_of(config), config.output.log_format
    with (
        _last_word(config, f": holdfast train --resume {config.output.dir}"),
        open_progress(sys.stderr, quiet=quiet, verbose=verbose, form=form, clock=clock) as progress,
    ):
        observer = progress.observer("", config.training.steps)
        experiment = Experiment(config, observers=(observer,), resume=resume)
        with first_interrupt_calls(experiment.stop) as interrupted:
            result = _unless_waiting(experiment)
    return _ended(experiment, result, f"holdfast train --resume {config.output.dir}", ": ", interrupted=interrupted())


def run_hosted(
    config: RunConfig, host: Host, *, resume: Path | None = None, quiet: bool = False, verbose: bool = False
) -> RunResult:
    """Like `run_experiment`, with machines that join; the door is shut at the end, however it comes."""
    from holdfast.event import REAL
    from holdfast.experiment import Experiment
    from holdfast.report import open_progress

    form = config.output.log_format
    with (
        _last_word(config, " the same command"),
        open_progress(sys.stderr, quiet=quiet, verbose=verbose, form=form, clock=REAL) as progress,
    ):
        host.tell = progress.say
        observers = (progress.observer("", config.training.steps), host.observe)
        experiment = Experiment(config, observers=observers, resume=resume, host=host)
        try:
            with first_interrupt_calls(experiment.stop) as interrupted:
                result = _unless_waiting(experiment)
        finally:
            host.close()
    return _ended(experiment, result, "the same command", " ", interrupted=interrupted())


def _unless_waiting(experiment: Experiment) -> RunResult | StoppedWaiting:
    """What the run comes to, or that it was stopped while it waited: that is told when the progress is no longer shown."""
    from holdfast.errors import StoppedWaiting

    try:
        return experiment.run()
    except StoppedWaiting as left:
        return left


def _ended(
    experiment: Experiment, ending: RunResult | StoppedWaiting, command: str, between: str, *, interrupted: bool
) -> RunResult:
    """Say how the run ended, now that its progress is no longer shown; leave where it was stopped by hand. `command` goes on
    with it, and stands in a sentence after `between`.
    """
    from holdfast.errors import StoppedWaiting

    if isinstance(ending, StoppedWaiting):
        print(f"{ending}; go on with {command}", file=sys.stderr)
        raise typer.Exit(ending.exit_code)
    if experiment.nothing_left is not None:
        print(experiment.nothing_left, file=sys.stderr)
    elif interrupted:
        print(f"stopped; go on with{between}{command}{_from_where(ending)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    else:
        _warn_of_checkpoints(ending)
    return ending


@contextmanager
def _last_word(config: RunConfig, command: str) -> Iterator[None]:
    """Who is stopped at once, by a second Ctrl-C, says how to go on and from where, as far as it is on the disk."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped at once; {_how_to_go_on(config, command)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _how_to_go_on(config: RunConfig, command: str) -> str:
    from holdfast.checkpoint import latest_checkpoint, version_of
    from holdfast.journal import FOLDER

    out = None if config.output.dir is None else Path(config.output.dir)
    if out is None or not (out / "config.toml").is_file():
        return "the run had not begun"
    newest = latest_checkpoint(out / "checkpoints")
    where = (
        "the beginning: there is no checkpoint" if newest is None else f"step {version_of(newest)} of {config.training.steps}"
    )
    if (out / FOLDER).is_dir():
        where = f"the last step that was sealed, if its machines come back, else from {where}"
    return f"go on with{command} (from {where})"


def _from_where(result: RunResult) -> str:
    """Where a resumed run would begin, if that is not where this one has stopped."""
    if result.checkpoint_step == result.steps or result.out is None:
        return ""
    if result.checkpoint_step is None:
        return " (from the beginning: no checkpoint could be written)"
    return f" (from step {result.checkpoint_step} of {result.steps}: no later checkpoint could be written)"


def _warn_of_checkpoints(result: RunResult) -> None:
    """Also where progress is not shown: a run that has ended well lacks the checkpoint from which it could be made longer."""
    if result.out is not None and result.checkpoint_step != result.steps:
        last = (
            "there is none" if result.checkpoint_step is None else f"the last good one is after {result.checkpoint_step} steps"
        )
        print(
            f"warning: the model is written, but no checkpoint after {result.steps} steps could be; {last}; "
            f"{result.out}/holdfast.log says why",
            file=sys.stderr,
        )


def show_result(result: RunResult, *, as_json: bool) -> None:
    """The result for people, or as one JSON object on the last line."""
    record = result.to_json()
    if as_json:
        print(json.dumps(record, allow_nan=False))
        return
    shown = {key: value for key, value in record.items() if value not in (None, {}, []) and key != "clock"}
    width = max(len(key) for key in shown)
    for key, value in shown.items():
        name = f"{result.clock}_seconds" if key == "virtual_seconds" else key
        print(f"{name.replace('_', ' '):<{width}}  {_told(value)}")


@contextmanager
def first_interrupt_calls(stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """While open, the first Ctrl-C calls `stop`, the second interrupts; yields a function that says whether one came."""
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def _told(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {count}" for key, count in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
