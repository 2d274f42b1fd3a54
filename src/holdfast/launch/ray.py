"""A Ray actor for each worker: Ray finds it a node and a GPU, starts its process, and starts that again when it dies.

    launcher --- serve(entry, told) --> actor (a process on some node) --> entry(told, say, ip)
       ^                                   |
       +--- where it is, what it says -----+      and when it dies, the call fails; Ray has the actor up again, untold

Ray moves what a worker must be told when it starts, and the lines that it says beside the wire: never a tensor. A Ray cluster
is one trust domain: whoever reaches its ports can run anything on all of its nodes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from holdfast.launch.ray_cluster import Needs, RayCluster

Entry = Callable[[bytes, Callable[[bytes], None], str], None]
"""What an actor runs: it gets what it is told, something to say a line with, and the address of its node."""

log = logging.getLogger("holdfast.launch")


class Seat:
    """The actor. It knows nothing until `serve` is called, and again nothing when Ray has started it anew."""

    def serve(self, entry: str, told: bytes) -> Iterator[bytes]:
        """Run `entry`, given as module:function; yields first where this is, as JSON, then what it says, until it returns."""
        import ray

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
        address = ray.util.get_node_ip_address()
        said: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
        module, _, name = entry.partition(":")

        def run() -> None:
            try:
                perform: Entry = getattr(importlib.import_module(module), name)
                perform(told, said.put, address)
                said.put(None)
            except BaseException as error:  # noqa: BLE001  # it is raised where the lines are read
                said.put(error)

        threading.Thread(target=run, name="holdfast worker", daemon=True).start()
        yield json.dumps({"ip": address, "pid": os.getpid()}).encode()
        while (line := said.get()) is not None:
            if isinstance(line, BaseException):
                raise line
            yield line


@dataclass(frozen=True, slots=True)
class Place:
    """The node that a worker runs on, and its process there."""

    ip: str
    pid: int


@dataclass(slots=True)
class _Actor:
    handle: Any
    serving: int = 0
    """Which call of `serve` goes on; 0 where none does."""
    place: Place | None = None
    threads: list[threading.Thread] = field(default_factory=list)


class RayActors:
    """`ended(name, why)` and `heard(name, line)` are called from threads of their own, `ended` once for each start.

    `entry` is what an actor runs, as module:function.
    """

    def __init__(
        self,
        cluster: RayCluster,
        needs: Needs,
        entry: str,
        ended: Callable[[str, str], None],
        heard: Callable[[str, bytes], None] = lambda _name, _line: None,
    ) -> None:
        self._cluster = cluster
        self._needs = needs
        self._entry = entry
        self._ended = ended
        self._heard = heard
        self._actors: dict[str, _Actor] = {}
        self._calls = 0
        self._lock = threading.Lock()
        self._closing = False

    def start(self, name: str, told: bytes) -> None:
        """Tell `name` its part; its actor is made where there is none, and else waits until Ray has it up again."""
        ray = self._cluster.ray
        with self._lock:
            actor = self._actors.get(name)
            if actor is None:
                made = ray.remote(Seat).options(**self._cluster.options(self._needs)).remote()
                actor = self._actors[name] = _Actor(made)
            self._calls += 1
            actor.serving, actor.place = self._calls, None
            lines = actor.handle.serve.options(num_returns="streaming").remote(self._entry, told)
            watch = partial(self._watch, name, actor, actor.serving, lines)
            thread = threading.Thread(target=watch, name=f"holdfast {name}", daemon=True)
            actor.threads = [thread]
        thread.start()

    def alive(self) -> tuple[str, ...]:
        """The names of those who play a part, or are waiting for a place to."""
        with self._lock:
            return tuple(name for name, actor in self._actors.items() if actor.serving)

    def place(self, name: str) -> Place | None:
        """Where a worker runs; None where it waits for a place, or does not run."""
        with self._lock:
            actor = self._actors.get(name)
            return None if actor is None or not actor.serving else actor.place

    def kill(self, name: str, *, for_good: bool = False) -> None:
        """End the process of `name`; unless it is `for_good`, Ray has the actor up again, and it may be started."""
        with self._lock:
            actor = self._actors.get(name)
            if actor is None or not (actor.serving or for_good):
                return
            if for_good:
                del self._actors[name]
        self._kill(actor, for_good=for_good)

    def close(self, patience_s: float = 5.0) -> None:
        """End all: who has been dismissed returns; who has not after `patience_s` is killed. A second call does nothing."""
        self._closing = True
        with self._lock:
            actors = list(self._actors.values())
            self._actors.clear()
        deadline = threading.Event()
        timer = threading.Timer(patience_s, deadline.set)
        timer.daemon = True
        timer.start()
        for actor in actors:
            for thread in actor.threads:
                while thread.is_alive() and not deadline.is_set():
                    thread.join(0.05)
        timer.cancel()
        for actor in actors:
            self._kill(actor, for_good=True)
        for actor in actors:
            for thread in actor.threads:
                thread.join(patience_s)

    def _kill(self, actor: _Actor, *, for_good: bool) -> None:
        ray = self._cluster.ray
        with contextlib.suppress(ray.exceptions.RayError, ValueError):  # it is gone already
            ray.kill(actor.handle, no_restart=for_good)

    def _watch(self, name: str, actor: _Actor, call: int, lines: Any) -> None:
        ray = self._cluster.ray
        try:
            for reference in lines:
                line = ray.get(reference)
                if actor.place is None:
                    actor.place = Place(**json.loads(line))
                    log.info("%s runs on node %s, process %d", name, actor.place.ip, actor.place.pid)
                else:
                    self._heard(name, line)
            why = "its actor ended"
        except Exception as error:  # noqa: BLE001  # of Ray, or of the worker itself: either way it is gone
            why = f"its actor ended: {_reason(error)}"
        with self._lock:
            if actor.serving == call:
                actor.serving = 0
            if actor.place is None and self._actors.get(name) is actor:
                del self._actors[name]  # it never came up, so it never will
        if not self._closing:
            self._ended(name, why)


def _reason(error: Exception) -> str:
    """The first line of what Ray says, or what the worker itself raised."""
    cause = getattr(error, "cause", None)
    found = cause if isinstance(cause, Exception) else error
    lines = [line.strip() for line in str(found).splitlines() if line.strip()]
    if found is error and len(lines) > 1 and lines[-1].startswith(("The actor is dead", "ModuleNotFoundError")):
        return lines[-1][:300]
    return lines[0][:300] if lines else type(found).__name__
