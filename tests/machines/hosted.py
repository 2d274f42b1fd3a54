"""An open run in this process: a host in a thread, machines in threads, the real door and the real wire."""

from __future__ import annotations

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
from holdfast.host import Host, Premises
from holdfast.join import Guest, Machine
from holdfast.result import RunResult

from . import alike

SMALL: dict[str, Any] = {**alike.SMALL, "training": {"steps": 12}, "output": {"checkpoint_every": 4}}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Opened:
    """A host in a thread of its own; `prepare` is called with each cluster, before its first step."""

    def __init__(
        self,
        out: Path,
        premises: Premises = Premises(uses=4),  # noqa: B008  # frozen
        *,
        prepare: Callable[[Cluster], None] = lambda _cluster: None,
        **changes: Any,
    ) -> None:
        self.told: list[str] = []
        config: RunConfig = resolve({**SMALL, "output": {**SMALL["output"], "dir": str(out)}, **changes})
        resume = out if (out / "config.toml").is_file() else None
        self.host = Host(config, out, premises, self.told.append)
        self.experiment = Experiment(config, observers=(self.host.observe,), resume=resume, host=self.host)
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
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for line in list(self.told):
                found = re.search(r"holdfast1:\S+", line)
                if found:
                    return Invite.parse(found[0])
            assert self.error is None, self.error
            time.sleep(0.02)
        raise AssertionError("no invite was told")

    def end(self) -> RunResult:
        self.thread.join(60)
        assert self.error is None, self.error
        assert self.result is not None
        return self.result


class Visitor:
    """A guest in a thread of its own, with a home of its own."""

    def __init__(self, invite: Invite, home: Path, **machine: Any) -> None:
        home.mkdir(exist_ok=True)
        self.told: list[str] = []
        self.reason: str | None = None
        self.error: BaseException | None = None
        self.guest = Guest(invite, Machine(**{"home": home, "patience_s": 20.0, **machine}), self.told.append)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.reason = self.guest.run()
        except BaseException as error:  # noqa: BLE001  # shown by the test
            self.error = error

    def end(self) -> None:
        self.guest.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()
