"""What a defence costs on a described cluster: the protocol runs as it is, on small tensors that count for large ones.

    one step on the virtual clock ──> Cost: seconds, busy seconds by worker, bytes by sender and kind
    Cost with a defence against Cost without ──> Overhead: the ratio, its bound, the share of the shadow work that is hidden

Letters: K stages, M micro-batches. A backward pass takes two forward passes; hashing and signatures are not counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from holdfast.bench.described import CHECKED_STEPS, NETWORKS, Setting, Size, config_of
from holdfast.cast import Troupe
from holdfast.cluster import Cluster, Deployment
from holdfast.config import RunConfig
from holdfast.engine import MemoryEngine
from holdfast.errors import FaultWindowExceeded
from holdfast.launch import InProcess
from holdfast.message import Envelope
from holdfast.schedule import SCHEDULES, in_flight_limit
from holdfast.schedule.simulate import Pipeline, step_time
from holdfast.sweep.jobs import job_of
from holdfast.transport.memory import Cluster as Links
from holdfast.transport.memory import Link
from holdfast.transport.wire import WITH_TENSORS

LARGEST_ON_PAPER = 400
"""The greedy simulation looks at every pass for every pass; beyond this K x M it takes longer than the run."""


@dataclass(frozen=True)
class Cost:
    """Of one step, on average over `steps`. `busy_s` is by worker's device; bytes are by sender: tensors, states, and the rest.

    `waste` counts steps that were begun again or whose stages were skipped.
    """

    steps: int
    step_s: float
    busy_s: dict[str, float]
    tensor_bytes: dict[str, float]
    state_bytes: dict[str, float]
    control_bytes: dict[str, float]
    waste: int = 0


@dataclass(frozen=True)
class Overhead:
    """A cost against that with defences off.

    `work_bound` is the busiest worker's time over the clean step's, `link_bound` that of the busiest link: no schedule is
    faster than either. `formula` is max(1, 2M/(M+K-1)), the first of them for full duplication on equal devices. `hidden` is
    the share of the busiest worker's added work that does not lengthen the step (None: none was added; below 0: waiting for
    verdicts adds more than all that work), `bubbles` the share of the clean step that this worker idles. `work` is the ratio of
    all that is computed, by whomever.
    """

    ratio: float
    work_bound: float
    link_bound: float
    formula: float
    on_paper: float | None
    hidden: float | None
    bubbles: float
    work: float
    tensor_bytes: float
    control_bytes: float
    state_megabytes: float

    @property
    def bound(self) -> float:
        return max(1.0, self.work_bound, self.link_bound)


def measure(setting: Setting, size: Size, steps: int | None = None) -> Cost:
    """Run the protocol for some steps (None: as many as the defence needs) and read its clock."""
    bare = config_of(setting, size)
    steps = (CHECKED_STEPS if bare.spot_checked or setting.attack else 1) if steps is None else steps
    config = config_of(setting, size, steps=steps)
    meter = Meter(config)
    for step in range(steps):
        broken = meter.cluster.run_step(step)
        if broken is not None:
            raise FaultWindowExceeded(f"{setting}: {broken}")
    ended = meter.launcher.now
    broken = meter.cluster.settle()
    if broken is not None:
        raise FaultWindowExceeded(f"{setting}: {broken}")
    return meter.cost(steps, ended)


class Meter:
    """A cluster whose seats are filled and whose clock, links and workers are read from then on."""

    def __init__(self, config: RunConfig) -> None:
        job = job_of(config)
        troupe = Troupe(config) if config.attack or config.faults else None
        self._waste = 0
        self.cluster = Cluster(Deployment("overhead"), job, self._observe, MemoryEngine(config, troupe))
        self.cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
        assert isinstance(self.cluster.launcher, InProcess)
        self.launcher = self.cluster.launcher
        network = self.cluster.transport
        self.launcher.run_until(lambda: network.next_s == float("inf"))  # the first states are no part of a step
        self._began = self.launcher.now
        self._busy = dict(self.launcher.busy_s)
        self._sent = {kind: Counter[str]() for kind in ("tensors", "states", "control")}
        self._weigh(Links(Link(), tensor_bytes=config.cluster.tensor_bytes, state_bytes=config.cluster.state_bytes))

    def cost(self, steps: int, ended: float) -> Cost:
        """What `steps` steps have cost that were over at `ended` (seconds of the launcher's clock)."""
        busy = {
            f"{name}.{device}": (seconds - self._busy.get((name, device), 0.0)) / steps
            for (name, device), seconds in self.launcher.busy_s.items()
        }
        sent = {kind: {name: count / steps for name, count in counts.items()} for kind, counts in self._sent.items()}
        step_s = (ended - self._began) / steps
        return Cost(steps, step_s, busy, sent["tensors"], sent["states"], sent["control"], self._waste)

    def _observe(self, event: Any, _seconds: float) -> None:
        self._waste += type(event).__name__ in ("StepRestarted", "StagesSkipped")

    def _weigh(self, links: Links) -> None:
        send = self.cluster.transport.send

        def weighed(envelope: Envelope) -> None:
            if envelope.sender != envelope.recipient:
                kind = type(envelope.message)
                name = "control" if kind not in WITH_TENSORS else "states" if hasattr(envelope.message, "state") else "tensors"
                self._sent[name][envelope.sender] += links.frame_bytes(envelope)
            send(envelope)

        self.cluster.transport.send = weighed


def overhead(setting: Setting, cost: Cost, clean: Cost) -> Overhead:
    """`cost` of `setting` against `clean`, both as `measure` gives them."""
    k, m = setting.stages, setting.micro_batches
    bandwidth = NETWORKS[setting.network]["bandwidth_bytes_per_s"]
    untrusted = [place for place in cost.busy_s if place.partition(".")[0] not in ("referee", "checker", "coordinator")]
    busiest = max(untrusted, key=lambda place: cost.busy_s[place])
    added = cost.busy_s[busiest] - clean.busy_s.get(busiest, 0.0)
    sent = max(cost.tensor_bytes.get(name, 0.0) + cost.state_bytes.get(name, 0.0) for name in cost.tensor_bytes)
    return Overhead(
        ratio=cost.step_s / clean.step_s,
        work_bound=cost.busy_s[busiest] / clean.step_s,
        link_bound=sent / bandwidth / clean.step_s,
        formula=max(1.0, 2 * m / (m + k - 1)),
        on_paper=on_paper(setting),
        hidden=1 - (cost.step_s - clean.step_s) / added if added > 1e-9 else None,
        bubbles=1 - clean.busy_s.get(busiest, 0.0) / clean.step_s,
        work=sum(cost.busy_s.values()) / sum(clean.busy_s.values()),
        tensor_bytes=sum(cost.tensor_bytes.values()) / sum(clean.tensor_bytes.values()),
        control_bytes=sum(cost.control_bytes.values()),
        state_megabytes=sum(cost.state_bytes.values()) / 1e6,
    )


@lru_cache
def on_paper(setting: Setting) -> float | None:
    """The ratio of a greedy list scheduling of the same passes, with messages that take no time; None where it says nothing."""
    duplicated = setting.defence.partition(",")[0].startswith("duplicate") and not setting.attack
    if not duplicated or setting.network != "local" or setting.stages * setting.micro_batches > LARGEST_ON_PAPER:
        return None
    times = []
    for shadowed in (True, False):
        k, m = setting.stages, setting.micro_batches
        orders = tuple(tuple(SCHEDULES[setting.schedule](k, i, m)) for i in range(k))
        limits = tuple(in_flight_limit(setting.schedule, k, i, m, shadowed) for i in range(k))
        times.append(step_time(Pipeline(orders, limits, shadowed, backward_waits=setting.schedule == "gpipe")))
    return times[0] / times[1]
