"""Metrics of a run for those who watch machines: what its events and its launcher tell, as families that Prometheus knows.

    events ------------------> Metrics (an observer) ---+
    cluster --> its launcher --> glance (seconds, links) +--> collect, health --> holdfast.metrics_server

Nothing here changes what a run does: who asks reads what is known, and waits for nobody.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from holdfast import __version__
from holdfast.event import (
    Alert,
    Banned,
    CheckpointFailed,
    CheckpointWritten,
    ClaimReplaced,
    Evaluated,
    Event,
    Joined,
    Resumed,
    RolledBack,
    Ruling,
    RunFinished,
    RunStarted,
    StagesSkipped,
    StepRestarted,
    StepSealed,
    TakenOver,
    WorkerLost,
)
from holdfast.launch import Glance

LATELY = 20
"""Sealed steps that `holdfast_tokens_per_second` looks back over."""

KINDS = ("forward", "backward", "shadow-forward", "shadow-backward", "gradient", "update", "referee", "checker")
"""Of work. Workers elsewhere name their own: what is none of these counts as `other`, or one could fill a scraper's disk."""

LINK_STATES = ("waiting", "up", "broken", "lost")

Clock = Callable[[], float]


class Watched(Protocol):
    """What runs a cluster and can be looked at, from any thread (see `holdfast.engine.Launcher`)."""

    def glance(self) -> Glance: ...


@dataclass
class _Known:
    """What the events have told so far."""

    run: str = ""
    state: str = "starting"
    step: int = 0
    gauges: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    alerts: Counter[str] = field(default_factory=Counter)
    convicted: Counter[str] = field(default_factory=Counter)
    members: dict[str, bool] = field(default_factory=dict)
    seals: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=LATELY + 1))


class Metrics:
    """Observer of one run of `steps` steps; `clock` gives seconds of the machine's steady clock.

    `watch` is told of each launcher: their counts are added up, so that none falls after a rollback.
    """

    def __init__(self, steps: int, clock: Clock = time.monotonic) -> None:
        self._steps = steps
        self._clock = clock
        self._known = _Known()
        self._lock = threading.Lock()
        self._watched: Watched | None = None
        self._before: dict[str, float] = {}
        self._sent_before = 0
        self._latest: Glance = Glance({}, 0, {})

    # -- from the run ----------------------------------------------------------------------------------------------------

    def watch(self, launcher: Watched) -> None:
        """From now on `launcher` runs the cluster; what the last one is known to have used stays counted."""
        with self._lock:
            self._before = _sum(self._before, _by_known_kind(self._latest.seconds))
            self._sent_before += self._latest.bytes_sent
            self._latest = Glance({}, 0, {})
            self._watched = launcher

    def __call__(self, event: Event, seconds: float) -> None:
        with self._lock:
            self._known.gauges["run_seconds"] = seconds
            self._take(self._known, event)

    def _take(self, known: _Known, event: Event) -> None:
        match event:
            case RunStarted():
                known.run, known.state = event.run, "running"
                known.members = dict.fromkeys(event.workers, True)
            case Resumed():
                known.step = event.version
            case StepSealed():
                known.step = event.step + 1
                known.gauges |= {
                    "loss": event.loss,
                    "gradient_norm": event.gradient_norm,
                    "learning_rate": event.learning_rate,
                }
                known.counts.update(steps_sealed=1, tokens=event.tokens)
                known.seals.append((self._clock(), event.tokens))
            case Alert():
                known.alerts[event.reason] += 1
            case Ruling():
                known.convicted.update(event.culprits)
                known.counts["rulings_inconclusive"] += not event.culprits
            case ClaimReplaced():
                known.counts["claims_replaced"] += 1
            case StepRestarted():
                known.counts["steps_restarted"] += 1
            case StagesSkipped():
                known.counts["stages_skipped"] += len(event.bypassed)
            case TakenOver():
                known.counts["takeovers"] += 1
            case RolledBack():
                known.counts["rollbacks"] += 1
                known.step = event.version
            case WorkerLost() | Banned():
                known.counts["workers_lost" if isinstance(event, WorkerLost) else "workers_banned"] += 1
                known.members[event.worker] = False
            case Joined():
                known.members[event.worker] = True
            case CheckpointWritten():
                known.gauges["checkpoint_step"] = event.step
            case CheckpointFailed():
                known.counts["checkpoints_failed"] += 1
            case Evaluated():
                known.gauges["validation_perplexity"] = event.perplexity
            case RunFinished():
                known.state = "finished"
            case _:
                pass

    # -- for who asks ----------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """What `/healthz` says: `seconds_since_seal` is None before the first seal, `members` are those who are present."""
        with self._lock:
            known = self._known
            return {
                "run": known.run,
                "state": known.state,
                "step": known.step,
                "steps": self._steps,
                "seconds_since_seal": self._since_seal(),
                "members": [name for name, present in known.members.items() if present],
                "absent": [name for name, present in known.members.items() if not present],
            }

    def collect(self) -> Iterator[Any]:
        """The families of the client library, as a registry asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        glance, seconds, sent = self._look()
        with self._lock:
            known = self._known
            gauges = {
                "step": (known.step, "Steps that are committed; falls in a rollback."),
                "steps": (self._steps, "Steps that the run is to have."),
                "loss": (known.gauges.get("loss"), "Training loss of the last step, nats a token."),
                "gradient_norm": (known.gauges.get("gradient_norm"), "Global norm before clipping."),
                "learning_rate": (known.gauges.get("learning_rate"), "Of the last step."),
                "tokens_per_second": (self._tokens_per_second(), f"Over the last {LATELY} steps, by the clock on the wall."),
                "seconds_since_seal": (self._since_seal(), "Since the last step was committed."),
                "checkpoint_step": (known.gauges.get("checkpoint_step"), "Steps in the newest checkpoint of this process."),
                "validation_perplexity": (known.gauges.get("validation_perplexity"), "Of the last evaluation."),
                "run_seconds": (known.gauges.get("run_seconds"), "Of the run's own clock: virtual with the engine memory."),
            }
            counters = {name: (known.counts[name], text) for name, text in COUNTERS.items()}
            labelled: list[tuple[str, str, Mapping[str, float], str]] = [
                ("alerts", "reason", dict(known.alerts), "Checks that failed."),
                ("rulings", "worker", dict(known.convicted), "Proven lies."),
                ("compute_seconds", "kind", seconds, "Computed by all members; workers' as they last told."),
            ]
            info, members = {"run": known.run, "version": __version__}, dict(known.members)
        known_info = GaugeMetricFamily("holdfast_run_info", "The run that goes on here.", labels=list(info))
        known_info.add_metric(list(info.values()), 1)
        yield known_info
        for name, (value, text) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(f"holdfast_{name}", text, value=value)
        for name, (count, text) in {**counters, "sent_bytes": (sent, "Sent by all members; workers' as they told.")}.items():
            yield CounterMetricFamily(f"holdfast_{name}", text, value=count)
        for name, label, values, text in labelled:
            family = CounterMetricFamily(f"holdfast_{name}", text, labels=[label])
            for key, value in values.items():
                family.add_metric([key], value)
            yield family
        present = GaugeMetricFamily("holdfast_member_present", "Whether a member is there.", labels=["worker"])
        for name, here in members.items():
            present.add_metric([name], int(here))
        yield present
        yield from _links(glance.links)

    def _look(self) -> tuple[Glance, dict[str, float], int]:
        """The launcher now, and the sums over all launchers: seconds by kind, bytes."""
        with self._lock:
            watched = self._watched
        glance = None if watched is None else watched.glance()
        with self._lock:
            if glance is not None and watched is self._watched:
                self._latest = glance
            total = _sum(self._before, _by_known_kind(self._latest.seconds))
            return self._latest, total, self._sent_before + self._latest.bytes_sent

    def _since_seal(self) -> float | None:
        seals = self._known.seals
        return round(self._clock() - seals[-1][0], 3) if seals else None

    def _tokens_per_second(self) -> float | None:
        seals = list(self._known.seals)
        if len(seals) < 2 or seals[-1][0] <= seals[0][0]:
            return None
        return sum(tokens for _, tokens in seals[1:]) / (seals[-1][0] - seals[0][0])


COUNTERS: Mapping[str, str] = {
    "steps_sealed": "Steps committed by this process, those that a rollback undid included.",
    "tokens": "Tokens in them.",
    "rulings_inconclusive": "Disputes in which nobody could be named.",
    "claims_replaced": "False claims for which the innocent holder's own value was taken.",
    "steps_restarted": "Steps begun again.",
    "stages_skipped": "Stages left out of a step.",
    "takeovers": "Stages that another worker took over.",
    "rollbacks": "Returns to an earlier version.",
    "checkpoints_failed": "Times that checkpoints could not be written any more.",
    "workers_lost": "Workers lost; one that came back and went again counts twice.",
    "workers_banned": "Workers banned for proven lies.",
}


def _by_known_kind(seconds: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind, spent in seconds.items():
        name = kind if kind in KINDS else "other"
        found[name] = found.get(name, 0.0) + spent
    return found


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {kind: one.get(kind, 0.0) + other.get(kind, 0.0) for kind in {**one, **other}}


def _links(links: Mapping[str, Any]) -> Iterator[Any]:
    """Families of the links with other processes; the fields are those of `holdfast.transport.LinkStats`."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    if not links:
        return
    states = GaugeMetricFamily("holdfast_link_state", "1 for the state that a link is in.", labels=["peer", "state"])
    for peer, link in links.items():
        for state in LINK_STATES:
            states.add_metric([peer, state], int(link.state == state))
    yield states
    shown: list[tuple[Any, str, str, str]] = [
        (GaugeMetricFamily, "rtt_seconds", "rtt_s", "Last round trip."),
        (GaugeMetricFamily, "heard_seconds", "heard_s", "Since the peer was last heard."),
        (GaugeMetricFamily, "queued_bytes", "queued_bytes", "Waiting to be sent, or acknowledged."),
        (CounterMetricFamily, "sent_bytes", "bytes_sent", "Sent, packets and all."),
        (CounterMetricFamily, "received_bytes", "bytes_received", "Received, packets and all."),
        (CounterMetricFamily, "reconnects", "reconnects", "Times that a broken link was back."),
    ]
    for kind, name, attribute, text in shown:
        family = kind(f"holdfast_link_{name}", text, labels=["peer"])
        for peer, link in links.items():
            value = getattr(link, attribute)
            if value is not None and math.isfinite(value):
                family.add_metric([peer], value)
        yield family
