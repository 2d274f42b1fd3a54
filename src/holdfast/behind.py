"""Work for the disk in a thread of its own, one piece at a time: the steps go on while a checkpoint is written.

    begin(7, write) ... step ... step ... settled() -> Outcome(7, path)      begin(9, ...) waits while 7 is still being written

So every checkpoint that was asked for is written, one state of the run is held for it, and the steps wait only where a write
takes longer than the steps between two.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import CheckpointError


@dataclass(frozen=True)
class Outcome:
    """`path` holds the checkpoint of `version`, or `error` says why it does not."""

    version: int
    path: Path
    error: CheckpointError | None = None


class Behind:
    """See the module. Called from one thread; what a write raises besides CheckpointError is raised there."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "holdfast checkpoint")
        self._writing: tuple[int, Path, Future[Path]] | None = None
        self._done: list[Outcome] = []

    @property
    def version(self) -> int | None:
        """What is being written now."""
        return None if self._writing is None else self._writing[0]

    def begin(self, version: int, path: Path, write: Callable[[], Path]) -> None:
        """Have `write` called soon, which makes `path`; waits for the one before."""
        self.wait()
        self._writing = version, path, self._thread.submit(write)

    def settled(self) -> list[Outcome]:
        """What has been written, or has failed, since this was last asked; waits for nothing."""
        if self._writing is not None and self._writing[2].done():
            self.wait()
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._writing is None:
            return
        (version, path, future), self._writing = self._writing, None
        try:
            self._done.append(Outcome(version, future.result()))
        except CheckpointError as error:
            self._done.append(Outcome(version, path, error))

    def close(self) -> None:
        """Finish what is being written. A second call does nothing."""
        self._thread.shutdown()
