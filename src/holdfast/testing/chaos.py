"""A run over processes that are killed, stopped and cut off while it trains, told by its events, and what each loss cost.

Chaos(config, at).run()        at(chaos, event) is called with each event and may strike: chaos.kill("w2")
Kills(seed, count)             an `at`: random workers at random moments, each when the last one's place is filled again
"""

from __future__ import annotations

import itertools
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.cast import Troupe
from holdfast.cluster import Cluster
from holdfast.config import RunConfig
from holdfast.crew import Processes, Staging, processes
from holdfast.event import Event, Joined, Reseated, Reshadowed, StepSealed, TakenOver, WorkerLost
from holdfast.machines import HOST, Machines, Patience
from holdfast.message import Envelope, Peers
from holdfast.result import RunResult
from holdfast.stage import REFEREE
from holdfast.testing.proxy import Proxy
from holdfast.trainer import Trainer
from holdfast.transport import Endpoint

WAIT_S = 120.0
"""How long a run waits for a strike, and for a new process."""

LATE_STEPS = 8

PATIENCE = Patience(start_s=120.0, deploy_s=120.0, answer_s=2.0, deadlock_s=120.0)

Strike = Callable[["Chaos", Event], None]


@dataclass(frozen=True)
class Happened:
    """An event and when it was told, in seconds of the monotonic clock."""

    event: Event
    at_s: float


class Chaos:
    """See the module. `crew` makes the crew, `meddle` may change the machines before anybody is deployed.

    `happened` are all events so far, `examined` when the referee computed something, both in order.
    """

    def __init__(
        self,
        config: RunConfig,
        at: Strike | None = None,
        *,
        crew: Callable[..., Processes] = Processes,
        meddle: Callable[[Machines], None] = lambda _machines: None,
        patience: Patience = PATIENCE,
        logs: Path | None = None,
    ) -> None:
        self.happened: list[Happened] = []
        self.examined: list[float] = []
        self._config = config
        self._at = at
        self._crew = crew
        self._meddle = meddle
        self._patience = patience
        self._logs = logs
        self._troupe = Troupe(config) if config.attack or config.faults else None
        observers = [self._observe] if self._troupe is None else [self._troupe.observe, self._observe]
        self.trainer = Trainer(
            config, observers=observers, cast=self._troupe, open_engine=self._open, deployed=self._watch_referee
        )
        self.machines: Machines

    def run(self) -> RunResult:
        return self.trainer.run()

    @property
    def crew(self) -> Processes:
        assert isinstance(self.machines.crew, Processes)
        return self.machines.crew

    @property
    def workers(self) -> tuple[str, ...]:
        """Whose processes run."""
        return self.crew.children.alive()

    def signal(self, worker: str, number: int) -> None:
        self.crew.children.signal(worker, number)

    def kill(self, worker: str) -> None:
        self.signal(worker, signal.SIGKILL)

    def of(self, kind: type[Event]) -> list[Any]:
        """The events of a kind."""
        return [told.event for told in self.happened if isinstance(told.event, kind)]

    def _open(self) -> Machines:
        troupe = self._troupe
        staging = Staging(self._config, logs=self._logs)
        if troupe is not None:
            staging = replace(staging, cast=self._config, heard=troupe.absorb, step=lambda: troupe.latest + 2)
        self.machines = processes(staging, self._crew, self._patience)
        self._meddle(self.machines)
        return self.machines

    def _observe(self, event: Event, _seconds: float) -> None:
        self.happened.append(Happened(event, time.monotonic()))
        if self._at is not None:
            self._at(self, event)

    def _watch_referee(self, cluster: Cluster) -> None:
        referee = cluster.launcher._bench.actors[REFEREE]  # type: ignore[attr-defined]
        execute = referee.execute

        def watched(work: Any) -> Any:
            self.examined.append(time.monotonic())
            return execute(work)

        referee.execute = watched


class Spared(Processes):
    """Kills nobody whom the run has lost: as with machines of other people."""

    def left(self, name: str, *, banned: bool) -> None:
        with self._lock:
            self._banned |= {name} if banned else set()


class Lines:
    """A proxy on every line between two processes: give `crew` and `meddle` to a `Chaos`, then `sever("w1", "w2")`."""

    def __init__(self) -> None:
        self._proxies: dict[tuple[str, str], Proxy] = {}

    def crew(self, run: str, host: Endpoint, *others: Any) -> Processes:
        lines = self

        class Dialling(Processes):
            def _start(self, name: str) -> None:
                self._host = replace(host, address=lines.address(name, host))
                super()._start(name)

        return Dialling(run, host, *others)

    def meddle(self, machines: Machines) -> None:
        """Everybody, the host too, is told the proxies' addresses instead of the true ones."""
        transport: Any = machines._transport
        send, know = transport.send, transport.know

        def told(envelope: Envelope) -> None:
            if isinstance(envelope.message, Peers):
                ends = [Endpoint(*process) for process in envelope.message.processes]
                told = tuple((end.process, end.names, self.address(envelope.recipient, end)) for end in ends)
                envelope = replace(envelope, message=Peers(told))
            send(envelope)

        transport.send = told
        transport.know = lambda ends: know([replace(end, address=self.address(HOST, end)) for end in ends])

    def address(self, dialler: str, end: Endpoint) -> str | None:
        if end.address is None or dialler == end.process:
            return end.address
        key = (dialler, end.process)
        if key not in self._proxies or self._proxies[key].target != end.address:
            self._proxies[key] = Proxy(end.address)
        return self._proxies[key].address

    def sever(self, one: str, other: str) -> None:
        for key in ((one, other), (other, one)):
            if key in self._proxies:
                self._proxies[key].sever()

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()


@dataclass(frozen=True)
class Loss:
    """What one kill cost. Seconds: until it was noticed; from there until the step was sealed; in which new shadows were built
    after that; until a machine sat in the place again. `examined`: pieces of work of the step that the referee computed for
    want of a shadow, of `pieces` that a step has. `step_s` is the median step of the run.
    """

    worker: str
    step: int
    detection_s: float
    takeover_s: float
    reshadow_s: float
    reseated_s: float
    examined: int
    pieces: int
    step_s: float
    attempts: int

    def row(self) -> dict[str, Any]:
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


class Kills:
    """An `at` for `Chaos`: kills `count` times, a random worker at a random moment of a step, all drawn from `seed`.

    The run waits for a strike that has not come within `LATE_STEPS`, and for the new process once the step after the loss is
    sealed, so that a short one lasts until they are there.
    """

    def __init__(self, seed: int, count: int, *, spread_s: float = 0.15) -> None:
        self.strikes: list[tuple[str, float]] = []
        self._random = random.Random(seed)
        self._count = count
        self._spread_s = spread_s
        self._sealed = 0
        self._state = "whole"

    def __call__(self, chaos: Chaos, event: Event) -> None:
        match event:
            case WorkerLost() if self._state == "struck":
                self._state, self._sealed = "lost", 0
            case Joined() if self._state == "lost":
                self._state = "joined"
            case Reseated() if self._state == "joined":
                self._state = "seated"
            case StepSealed():
                self._sealed += 1
                if self._state == "seated":
                    self._state, self._sealed = "whole", 0
                elif self._state == "whole" and self._sealed >= 2 and len(self.strikes) < self._count:
                    self._state, self._sealed = "aiming", 0
                    worker = self._random.choice(sorted(chaos.workers))
                    threading.Timer(self._random.uniform(0, self._spread_s), self._strike, (chaos, worker)).start()
                elif self._state == "aiming" and self._sealed > LATE_STEPS:
                    self._wait_for(lambda: self._state != "aiming")
                elif self._state == "lost" and self._sealed > 1:  # the takeover itself is not held up
                    self._wait_for(lambda: self.strikes[-1][0] in chaos.machines.deployed)

    def _wait_for(self, come: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not come() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _strike(self, chaos: Chaos, worker: str) -> None:
        self.strikes.append((worker, time.monotonic()))
        self._state = "struck"
        chaos.kill(worker)


def losses(chaos: Chaos, strikes: list[tuple[str, float]]) -> list[Loss]:
    """What each of the `strikes`, (worker, when), cost; those whose place was not filled again before the end are left out."""
    config = chaos._config
    stages, micro_batches = config.pipeline.stages, config.pipeline.micro_batches
    step_s = statistics.median(_steps(chaos))
    found = []
    for worker, struck_s in strikes:
        after = [told for told in chaos.happened if told.at_s >= struck_s]
        lost = next((told for told in _all(after, WorkerLost) if getattr(told.event, "worker", None) == worker), None)
        if lost is None:
            continue
        later = [told for told in after if told.at_s >= lost.at_s]
        sealed, seated, taken = (next(iter(_all(later, kind)), None) for kind in (StepSealed, Reseated, TakenOver))
        shadowed = [told.at_s for told in _all(later, Reshadowed)]
        if sealed is None or seated is None or taken is None:
            continue
        new_shadows = [at_s for at_s in shadowed if at_s <= seated.at_s]
        began_s = taken.at_s if new_shadows and new_shadows[0] < sealed.at_s else sealed.at_s  # lost between two steps
        assert isinstance(sealed.event, StepSealed)
        found.append(
            Loss(
                worker=worker,
                step=sealed.event.step,
                detection_s=lost.at_s - struck_s,
                takeover_s=sealed.at_s - (taken.at_s if began_s == sealed.at_s else max(new_shadows)),
                reshadow_s=max(new_shadows, default=began_s) - began_s,
                reseated_s=seated.at_s - struck_s,
                examined=sum(struck_s <= at_s <= sealed.at_s for at_s in chaos.examined),
                pieces=stages * (2 * micro_batches + 2),
                step_s=step_s,
                attempts=1 + sealed.event.attempt,
            )
        )
    return found


def _steps(chaos: Chaos) -> list[float]:
    sealed = [told.at_s for told in _all(chaos.happened, StepSealed)]
    return [after - before for before, after in itertools.pairwise(sealed)] or [0.0]


def _all(happened: list[Happened], kind: type[Event]) -> list[Happened]:
    return [told for told in happened if isinstance(told.event, kind)]
