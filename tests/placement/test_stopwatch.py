"""The stopwatch reads speeds off headers alone."""

import pytest

from holdfast.bench.workshop import job_of
from holdfast.claim import ClaimKey, Direction
from holdfast.cluster import Cluster, Deployment
from holdfast.config import resolve
from holdfast.engine import MemoryEngine
from holdfast.placement.load import load_of
from holdfast.placement.stopwatch import Hops, Stopwatch, speeds_from
from holdfast.route import plain_route

SPEEDS = (1.0, 0.5, 2.0, 0.25, 1.0, 1.0)


def measured(defence, latency_s):
    config = resolve(
        {
            "model": {"name": "gpt2:layers=6,width=8,heads=1"},
            "data": {"name": "synthetic", "sequence_length": 2, "vocabulary": 300, "validation_tokens": 2},
            "pipeline": {"micro_batch_size": 1},
            "defence": {"name": defence},
            "cluster": {"speeds": SPEEDS, "latency_s": latency_s},
        }
    )
    job, engine = job_of(config), MemoryEngine(config)
    load = load_of(job)
    cluster = Cluster(Deployment("one", hops=Hops(load.link, load.tensor_bytes)), job, lambda _event, _s: None, engine)
    cluster.deploy({i: job.initial_state(i) for i in range(6)}, 0)
    for step in range(3):
        assert cluster.run_step(step) is None
    machines = [engine.introduce(name) for name in ("initiator", "w1", "w2", "w3", "w4")]
    equal = [type(machine)(machine.name) for machine in machines]
    return speeds_from(cluster.coordinator.stopwatch.measured, load, job.plan.layers, equal)


@pytest.mark.parametrize("defence", ["duplicate", "spot-check", "none"])
@pytest.mark.parametrize("latency_s", [0.001, 0.05])
def test_speeds_are_found_though_nobody_tells_them(defence, latency_s):
    found = measured(defence, latency_s)
    for i, speed in enumerate(SPEEDS[1:5], start=1):
        assert found[f"w{i}", 0] == pytest.approx(speed, rel=0.1)


def test_who_has_no_seat_and_what_comes_twice_changes_nothing():
    clock = iter(range(100))
    watch = Stopwatch(lambda: float(next(clock)))
    route = plain_route(["i", "w1", "w2", "i"], ["i"], shadowed=True)
    watch.began(route, again=False)
    key = ClaimKey(0, 0, Direction.FORWARD, 1, 0)
    for worker in ("w1", "w1", "stranger"):
        watch.posted(worker, key)
    watch.sealed()
    assert watch.measured[0].samples == {("w1", 0): [(1, 1, 1.0)]}


def test_a_step_in_which_somebody_was_lost_says_nothing():
    watch = Stopwatch(lambda: 0.0)
    route = plain_route(["i", "w1", "w2", "i"], ["i"], shadowed=True)
    watch.began(route, again=False)
    watch.disturbed()
    watch.sealed()
    watch.began(route, again=True)
    watch.sealed()
    assert watch.step_s is None


def test_a_long_run_keeps_the_last_steps_only():
    now = 0.0
    watch = Stopwatch(lambda: now)
    route = plain_route(["i", "w1", "w2", "i"], ["i"], shadowed=True)
    for step in range(100):
        watch.began(route, again=False)
        now += step
        watch.sealed()
    assert [found.step_s for found in watch.measured] == [97.0, 98.0, 99.0]
    assert watch.step_s == 98.0
