"""The forecast of a step is what the engine's virtual clock shows for it, message for message."""

from dataclasses import replace

import pytest

from holdfast.bench.described import Setting, Size, config_of
from holdfast.bench.virtual import measure
from holdfast.bench.workshop import job_of
from holdfast.engine import MemoryEngine
from holdfast.placement.load import load_of
from holdfast.placement.place import predict

SIZE = Size()
WITHIN = 0.002
"""Sizes of headers are an average; the rest is exact."""


def names(config):
    return ("initiator", *(f"w{i}" for i in range(1, config.pipeline.stages - 1)), "initiator")


def described_machines(config):
    return list(MemoryEngine(config).survey(job_of(config), names(config)[1:-1]).machines)


@pytest.mark.parametrize("network", ["wan", "mixed"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("defence", ["none", "duplicate", "duplicate-only", "spot-check,check_steps=0.01"])
def test_the_prediction_is_the_virtual_clock(network, schedule, defence):
    setting = Setting(network, 6, 4, schedule, defence)
    config = config_of(setting, SIZE)
    job = job_of(config)
    found = predict(load_of(job), job.plan.layers, names(config), described_machines(config))
    assert found.step_s == pytest.approx(measure(setting, SIZE, steps=1).step_s, rel=WITHIN)


def test_a_slow_device_is_felt():
    config = config_of(Setting("mixed", 6, 4, "1f1b", "duplicate"), SIZE)
    job, machines = job_of(config), described_machines(config)
    slow = [machines[0], replace(machines[1], speed=0.1), *machines[2:]]
    fast, other = (predict(load_of(job), job.plan.layers, names(config), found) for found in (machines, slow))
    assert other.step_s > 1.5 * fast.step_s
