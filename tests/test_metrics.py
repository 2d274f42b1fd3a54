"""Metrics: what a scraper reads while a run goes on, of any engine, and who may not read it."""

from __future__ import annotations

import json
import math
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.claim import ClaimKey, Direction
from holdfast.errors import CannotListen, ConfigError
from holdfast.event import (
    Alert,
    Banned,
    CheckpointWritten,
    Event,
    Joined,
    RolledBack,
    Ruling,
    RunStarted,
    StepSealed,
    TakenOver,
    WorkerLost,
)
from holdfast.launch import Glance
from holdfast.metrics import Metrics
from holdfast.metrics_server import MOST_AT_ONCE, MetricsServer
from holdfast.transport import LinkStats

parser = pytest.importorskip("prometheus_client.parser")

KEY = ClaimKey(1, 0, Direction.FORWARD, 2, 0)
SMALL: dict[str, Any] = {
    "model": {"name": "gpt2:layers=4,width=32,heads=2"},
    "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 16, "validation_tokens": 512},
    "pipeline": {"stages": 4, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": 4},
    "machines": {"metrics": "127.0.0.1:0"},
}

Samples = dict[tuple[str, ...], float]


def fetch(server: MetricsServer, path: str, **headers: str) -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://{server.address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def scrape(server: MetricsServer) -> Samples:
    """Every sample by its name and the values of its labels in order of their names."""
    status, kind, text = fetch(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    families = parser.text_string_to_metric_families(text)
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watched() -> Iterator[tuple[Metrics, MetricsServer, Clock]]:
    clock = Clock()
    metrics = Metrics(9, clock)
    with MetricsServer(metrics, "127.0.0.1:0") as server:
        yield metrics, server, clock


def started() -> RunStarted:
    return RunStarted("r-1", (), {}, 1, ("", "", "", ""), ("initiator", "w1", "w2", "initiator"))


def test_events_become_numbers(watched: tuple[Metrics, MetricsServer, Clock]) -> None:
    metrics, server, clock = watched
    events: list[Event] = [
        started(),
        StepSealed(0, 0, 5.5, 0.7, 1e-3, 100),
        Alert(KEY, "output", ("w1", "w2")),
        Alert(KEY, "output", ("w1", "w2")),
        Ruling(KEY, ("w2",), 2, "output"),
        Ruling(KEY, (), 2, "output"),
        WorkerLost("w2", 1, "killed"),
        TakenOver(2, "w2", "initiator", 1),
        StepSealed(1, 0, 5.25, 0.6, 1e-3, 100),
        CheckpointWritten(2, "checkpoints/2"),
        Banned("w1", 3, 2),
        Joined("w2", 2),
        StepSealed(2, 0, 5.0, 0.5, 1e-3, 100),
        RolledBack(3, 1, "a lie was found"),
    ]
    for at, event in enumerate(events):
        clock.now = float(at)
        metrics(event, 0.25 * at)
    clock.now = 20.0
    found = scrape(server)
    expected = {
        ("holdfast_run_info", "r-1"): None,
        ("holdfast_step",): 1,
        ("holdfast_steps",): 9,
        ("holdfast_steps_sealed_total",): 3,
        ("holdfast_tokens_total",): 300,
        ("holdfast_loss",): 5.0,
        ("holdfast_gradient_norm",): 0.5,
        ("holdfast_tokens_per_second",): 200 / 11,
        ("holdfast_seconds_since_seal",): 8.0,
        ("holdfast_run_seconds",): 3.25,
        ("holdfast_alerts_total", "output"): 2,
        ("holdfast_rulings_total", "w2"): 1,
        ("holdfast_rulings_inconclusive_total",): 1,
        ("holdfast_takeovers_total",): 1,
        ("holdfast_rollbacks_total",): 1,
        ("holdfast_workers_lost_total",): 1,
        ("holdfast_workers_banned_total",): 1,
        ("holdfast_checkpoint_step",): 2,
        ("holdfast_member_present", "initiator"): 1,
        ("holdfast_member_present", "w1"): 0,
        ("holdfast_member_present", "w2"): 1,
    }
    for key, value in expected.items():
        if value is not None:
            assert found[key] == pytest.approx(value), key
    assert any(key[:2] == ("holdfast_run_info", "r-1") for key in found)
    health = json.loads(fetch(server, "/healthz")[2])
    assert health == {
        "run": "r-1",
        "state": "running",
        "step": 1,
        "steps": 9,
        "seconds_since_seal": 8.0,
        "members": ["initiator", "w2"],
        "absent": ["w1"],
    }


def test_before_anything_has_happened(watched: tuple[Metrics, MetricsServer, Clock]) -> None:
    _, server, _ = watched
    found = scrape(server)
    assert found[("holdfast_step",)] == 0
    assert not any(key[0] in ("holdfast_loss", "holdfast_seconds_since_seal") for key in found)
    health = json.loads(fetch(server, "/healthz")[2])
    assert (health["state"], health["seconds_since_seal"]) == ("starting", None)


class Launcher:
    def __init__(self, seconds: float, links: dict[str, LinkStats] | None = None) -> None:
        self.found = Glance({"forward": seconds}, int(100 * seconds), links or {})

    def glance(self) -> Glance:
        return self.found


def test_links_and_sums_over_deployments(watched: tuple[Metrics, MetricsServer, Clock]) -> None:
    metrics, server, _ = watched
    first = Launcher(2.0)
    metrics.watch(first)
    assert scrape(server)[("holdfast_compute_seconds_total", "forward")] == 2.0
    never_heard = LinkStats("broken", None, None, 11, 22, 33, 0, 4, None)
    metrics.watch(Launcher(0.5, {"w1": LinkStats("up", "direct", 0.25, 10, 20, 30, 0, 3, 1.5), "w2": never_heard}))
    found = scrape(server)
    assert found[("holdfast_compute_seconds_total", "forward")] == 2.5, "what was counted before a rollback stays"
    assert found[("holdfast_sent_bytes_total",)] == 250
    assert found[("holdfast_link_state", "w1", "up")] == 1
    assert found[("holdfast_link_state", "w2", "up")] == 0
    assert found[("holdfast_link_state", "w2", "broken")] == 1
    assert found[("holdfast_link_rtt_seconds", "w1")] == 0.25
    assert ("holdfast_link_rtt_seconds", "w2") not in found
    assert found[("holdfast_link_sent_bytes_total", "w2")] == 11
    assert found[("holdfast_link_received_bytes_total", "w2")] == 22
    assert found[("holdfast_link_queued_bytes", "w2")] == 33
    assert found[("holdfast_link_reconnects_total", "w2")] == 4


def test_a_worker_cannot_invent_kinds_of_work(watched: tuple[Metrics, MetricsServer, Clock]) -> None:
    metrics, server, _ = watched
    launcher = Launcher(1.0)
    launcher.found = Glance({"forward": 1.0, **{f"kind-{i}": 0.5 for i in range(1000)}}, 0, {})
    metrics.watch(launcher)
    found = {key[1]: value for key, value in scrape(server).items() if key[0] == "holdfast_compute_seconds_total"}
    assert found == {"forward": 1.0, "other": 500.0}


def test_names_cannot_forge_samples(watched: tuple[Metrics, MetricsServer, Clock]) -> None:
    """Who joins chooses his name."""
    metrics, server, _ = watched
    name = 'w"} 1\nholdfast_step 99\n# '
    metrics(Joined(name, 0), 0.0)
    found = scrape(server)
    assert found[("holdfast_member_present", name)] == 1
    assert found[("holdfast_step",)] == 0


def test_only_two_pages(watched: tuple[Metrics, MetricsServer, Clock]) -> None:
    _, server, _ = watched
    assert fetch(server, "/")[0] == 404
    assert fetch(server, "/metrics?name=x")[0] == 200
    assert "openmetrics" in fetch(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")[1]


def test_many_idle_callers_do_not_pile_up(watched: tuple[Metrics, MetricsServer, Clock]) -> None:
    _, server, _ = watched
    where = (server.address.host, server.address.port)
    callers = [socket.create_connection(where, timeout=30) for _ in range(MOST_AT_ONCE + 1)]
    assert callers[-1].recv(1) == b"", "the one too many is sent away at once"
    for caller in callers:
        caller.close()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.org:9464"])
def test_other_machines_are_kept_out_unless_somebody_says_so(address: str) -> None:
    with pytest.raises(ConfigError, match="--expose-metrics"):
        MetricsServer(Metrics(1), address)
    with pytest.raises(ConfigError, match="--expose-metrics"):
        Experiment({**SMALL, "machines": {"metrics": address}})


def test_exposed_where_it_is_wanted() -> None:
    with (
        MetricsServer(Metrics(1), "0.0.0.0:0", exposed=True) as server,
        socket.create_connection(("127.0.0.1", server.address.port), timeout=30) as caller,
    ):
        caller.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"200 OK" in caller.recv(100)


def test_a_taken_port(watched: tuple[Metrics, MetricsServer, Clock]) -> None:
    _, server, _ = watched
    with pytest.raises(CannotListen, match=r"cannot listen at .*: address already in use; choose another with --metrics"):
        MetricsServer(Metrics(1), str(server.address))


class Scraper:
    """Scrapes its experiment once a step; a scrape of a cluster elsewhere has workers tell what the next one shows."""

    def __init__(self) -> None:
        self.experiment: Experiment | None = None
        self.found: list[Samples] = []

    def __call__(self, event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed):
            assert self.experiment is not None
            assert self.experiment.metrics is not None
            self.found.append(scrape(self.experiment.metrics))


@pytest.mark.timeout(280)
@pytest.mark.parametrize("engine", ["memory", "processes"])
def test_a_run_can_be_watched(engine: str, tmp_path: Path) -> None:
    scraper = Scraper()
    against = {"attack": ["sign-flip,rate=1.0,stages=1"]}
    scraper.experiment = Experiment(SMALL, observers=[scraper], engine=engine, out=str(tmp_path / "run"), **against)
    result = scraper.experiment.run()
    last = scraper.found[-1]
    assert [found[("holdfast_step",)] for found in scraper.found] == [1, 2, 3, 4]
    assert last[("holdfast_tokens_total",)] == result.tokens
    assert sum(value for key, value in last.items() if key[0] == "holdfast_alerts_total") == result.alerts
    assert {key[1]: value for key, value in last.items() if key[0] == "holdfast_rulings_total"} == result.blamed_workers
    assert last[("holdfast_claims_replaced_total",)] == result.claims_replaced > 0
    assert last[("holdfast_member_present", "w1")] == 1
    assert math.isfinite(last[("holdfast_loss",)])
    assert last[("holdfast_compute_seconds_total", "forward")] > 0
    assert 0 < last[("holdfast_sent_bytes_total",)] <= result.bytes_sent
    if engine == "processes":
        assert last[("holdfast_link_state", "w1", "up")] == last[("holdfast_link_state", "w2", "up")] == 1
        assert last[("holdfast_link_sent_bytes_total", "w1")] > 0
        assert last[("holdfast_compute_seconds_total", "shadow-forward")] > 0, "which only workers compute"
    server = scraper.experiment.metrics
    assert server is not None
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((server.address.host, server.address.port), timeout=30).close()
