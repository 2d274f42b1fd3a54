"""One process for each worker on this machine: started, watched, killed where it must be, and never left behind.

What a process must know is written to its standard input, which stays open: a child whose input ends has lost its parent and
leaves. What it tells its parent beside the wire are lines on its standard output. Its errors go to a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.errors import SetupError

MAX_LINE = 1 << 24
"""Bytes of one line of a child; more is not read on."""


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    errors: Path | None
    threads: list[threading.Thread] = field(default_factory=list)


class Subprocesses:
    """`ended(name, why)` and `heard(name, line)` are called from threads of their own, `ended` once for each start.

    `logs` is the directory that the standard errors are written to (None: they are dropped).
    """

    def __init__(
        self,
        ended: Callable[[str, str], None],
        heard: Callable[[str, bytes], None] = lambda _name, _line: None,
        logs: Path | None = None,
    ) -> None:
        self._ended = ended
        self._heard = heard
        self._logs = logs
        self._children: dict[str, _Child] = {}
        self._closing = False

    def start(self, name: str, command: Sequence[str], told: bytes, environment: Mapping[str, str] | None = None) -> None:
        """Start `command` as `name` and write one line, `told`, to it. Raises SetupError where the system refuses."""
        path = None if self._logs is None else self._logs / f"{name}.log"
        with contextlib.ExitStack() as stack:
            try:
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                errors = subprocess.DEVNULL if path is None else stack.enter_context(path.open("ab"))
                process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,  # a Ctrl-C at the terminal is the parent's to answer
                )
            except OSError as error:
                raise SetupError(f"cannot start the process of {name}: {error}; free some memory and try again") from None
        child = _Child(process, path)
        self._children[name] = child
        for target in (self._listen, self._wait):
            thread = threading.Thread(target=target, args=(name, child), name=f"holdfast {name}", daemon=True)
            child.threads.append(thread)
        with contextlib.suppress(OSError):  # a child that died at once is told of by `ended`
            assert process.stdin is not None
            process.stdin.write(told + b"\n")
            process.stdin.flush()
        for thread in child.threads:
            thread.start()

    def alive(self) -> tuple[str, ...]:
        """The names of the processes that run."""
        return tuple(name for name, child in self._children.items() if child.process.poll() is None)

    def pid(self, name: str) -> int:
        return self._children[name].process.pid

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process that runs; nothing happens to one that does not."""
        child = self._children.get(name)
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(number)

    def close(self, patience_s: float = 5.0) -> None:
        """End all: they see their input end; who has not left after `patience_s` is killed. A second call does nothing."""
        self._closing = True
        for child in self._children.values():
            with contextlib.suppress(OSError):
                assert child.process.stdin is not None
                child.process.stdin.close()
        deadline = time.monotonic() + patience_s
        for name, child in self._children.items():
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.signal(name, signal.SIGCONT)
                self.signal(name, signal.SIGKILL)
                child.process.wait()
        for child in self._children.values():
            for thread in child.threads:
                thread.join()
        self._children.clear()

    def _listen(self, name: str, child: _Child) -> None:
        assert child.process.stdout is not None
        with child.process.stdout as lines:
            while line := lines.readline(MAX_LINE):
                self._heard(name, line)

    def _wait(self, name: str, child: _Child) -> None:
        code = child.process.wait()
        with contextlib.suppress(OSError):
            assert child.process.stdin is not None
            child.process.stdin.close()
        child.threads[0].join()  # first all that it said, then that it is gone
        if not self._closing:
            self._ended(name, f"its process ended {_how(code)}{_last_words(child.errors)}")


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-code).name}"
    return f"by signal {-code}"


def _last_words(path: Path | None) -> str:
    """The last line of what a process wrote to its standard error, for the report."""
    if path is None:
        return ""
    with contextlib.suppress(OSError):
        lines = path.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return f" ({lines[-1][:200]}; see {path})" if lines else ""
    return ""
