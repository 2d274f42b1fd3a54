"""An open run in this process: a host in a thread, machines in threads, the real door and the real wire."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast import Experiment
from holdfast.admission.invite import Invite
from holdfast.cluster import Cluster
from holdfast.config import RunConfig, resolve
from holdfast.event import Event
from holdfast.host import Host, Premises
from holdfast.join import Guest, Machine
from holdfast.result import RunResult

from . import alike

SMALL: dict[str, Any] = {**alike.SMALL, "training": {"steps": 12}, "output": {"checkpoint_every": 4}}


PATIENCE_S = 200.0
"""How long something may take that comes for sure: a machine may stand still for a while."""

PORTS = itertools.count(10_000 + os.getpid() % 200 * 100)
"""Below those that the system gives to whoever asks for any: nobody who dials gets one by chance while nobody listens there."""


def free_port() -> int:
    """Another one each time."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("unreachable")


def wait_for(found: Callable[[], Any]) -> Any:
    """What `found` finds, once it finds something."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if got := found():
            return got
        time.sleep(0.02)
    raise AssertionError("it did not happen")


class Opened:
    """A host in a thread of its own; `prepare` is called with each cluster, before its first step, `at` with each event: the
    run goes on when they are done.
    """

    def __init__(
        self,
        out: Path,
        premises: Premises = Premises(uses=4),  # noqa: B008  # frozen
        *,
        prepare: Callable[[Cluster], None] = lambda _cluster: None,
        at: Callable[[Event], None] = lambda _event: None,
        **changes: Any,
    ) -> None:
        self.told: list[str] = []
        config: RunConfig = resolve({**SMALL, "output": {**SMALL["output"], "dir": str(out)}, **changes})
        resume = out if (out / "config.toml").is_file() else None
        self.host = Host(config, out, premises, self.told.append)
        observers = (self.host.observe, lambda event, _seconds: at(event))
        self.experiment = Experiment(config, observers=observers, resume=resume, host=self.host)
        self.experiment._trainer._deployed = prepare
        self.result: RunResult | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self.experiment.run()
        except BaseException as error:  # noqa: BLE001  # shown by the test
            self.error = error
        finally:
            self.host.close()

    def invite(self) -> Invite:
        def told() -> list[str]:
            assert self.error is None, self.error
            return re.findall(r"holdfast1:\S+", " ".join(self.told))

        return Invite.parse(wait_for(told)[0])

    @property
    def deployed(self) -> frozenset[str]:
        """The machines that play their part."""
        assert self.host._machines is not None
        return self.host._machines.deployed

    def end(self) -> RunResult:
        self.thread.join(PATIENCE_S)
        assert self.error is None, self.error
        assert self.result is not None, "the run is not over"
        return self.result


class Visitor:
    """A guest in a thread of its own, with a home of its own."""

    def __init__(self, invite: Invite, home: Path, **machine: Any) -> None:
        home.mkdir(exist_ok=True)
        self.told: list[str] = []
        self.reason: str | None = None
        self.error: BaseException | None = None
        self.guest = Guest(invite, Machine(**{"home": home, "patience_s": PATIENCE_S, **machine}), self.told.append)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.reason = self.guest.run()
        except BaseException as error:  # noqa: BLE001  # shown by the test
            self.error = error

    def end(self) -> None:
        self.guest.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
