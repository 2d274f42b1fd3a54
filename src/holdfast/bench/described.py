"""The described clusters on which the cost of a defence is read off: networks, and what the small tensors stand for.

Letters: K stages, M micro-batches. A stage takes `seconds_per_forward`, a backward pass twice that; hashing is not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from holdfast.config import RunConfig, Schedule, resolve
from holdfast.errors import ConfigError
from holdfast.seeds import derive
from holdfast.settings import defence_tables, split_attack
from holdfast.verify.spotcheck import Sampling

MIXED_SPEEDS = (1.0, 0.6, 1.0, 0.8, 0.6, 1.0)
"""Six unlike devices, relative to the fastest. The paper names no speeds; these are ours."""

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "local": {"latency_s": 1e-4, "bandwidth_bytes_per_s": 1.25e9},
    "gigabit": {"latency_s": 1e-3, "bandwidth_bytes_per_s": 125e6},
    "wan": {"latency_s": 0.05, "bandwidth_bytes_per_s": 25e6},
    "mixed": {"latency_s": 1e-3, "bandwidth_bytes_per_s": 125e6, "speeds": MIXED_SPEEDS},
}
"""10 Gbit/s in one room; 1 Gbit/s; 200 Mbit/s with 50 ms; unlike devices on 1 Gbit/s."""

IN_WORDS: Mapping[str, str] = {
    "local": "local network, 10 Gbit/s, 0.1 ms",
    "gigabit": "1 Gbit/s, 1 ms",
    "wan": "200 Mbit/s, 50 ms",
    "mixed": "unlike devices, 1 Gbit/s",
}

OFF = "none"
TEXT = "synthetic:order=1,symbols=8,tokens=20000"
CHECKED_STEPS = 5
"""Steps of a run with spot checks: at q = 0.1 there are half as many draws as untrusted stages."""


@dataclass(frozen=True, slots=True)
class Size:
    """What the tensors stand for: by default GPT-2 345M in six stages, one sequence of 1,024 tokens a micro-batch, fp32."""

    seconds_per_forward: float = 0.05
    tensor_bytes: int = 4 * 1024**2
    state_bytes: int = 696_000_000


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """One run on the virtual clock. `defence` is as after `bench detection --defence`; `attack` is empty where nobody lies."""

    network: str
    stages: int
    micro_batches: int
    schedule: Schedule
    defence: str
    attack: str = ""

    @property
    def clean(self) -> Setting:
        """What it is held against: nobody lies, nobody checks."""
        return Setting(self.network, self.stages, self.micro_batches, self.schedule, OFF)

    def __str__(self) -> str:
        lies = f" under {self.attack}" if self.attack else ""
        return f"{self.network}, K={self.stages}, M={self.micro_batches}, {self.schedule}, {self.defence}{lies}"


def config_of(setting: Setting, size: Size, steps: int = 1) -> RunConfig:
    """The run's configuration; raises ConfigError for an unknown network, or unlike devices and another number of stages."""
    if setting.network not in NETWORKS:
        raise ConfigError(f"--network {setting.network!r}: known are {', '.join(NETWORKS)}")
    network = NETWORKS[setting.network]
    if "speeds" in network and setting.stages != len(network["speeds"]):
        raise ConfigError(f"the network {setting.network!r} has {len(network['speeds'])} devices, got {setting.stages} stages")
    layers = setting.stages * (4 if "speeds" in network else 1)  # unlike devices get unlike shares
    tables: dict[str, Any] = {
        "model": {"name": f"gpt2:layers={layers},width=8,heads=1"},
        "data": {
            "name": "synthetic:order=1,symbols=8,tokens=20000",
            "sequence_length": 2,
            "vocabulary": 258,
            "validation_tokens": 2,
        },
        "pipeline": {
            "stages": setting.stages,
            "micro_batches": setting.micro_batches,
            "micro_batch_size": 1,
            "schedule": setting.schedule,
        },
        "training": {"steps": CHECKED_STEPS},  # however many are run
        "cluster": {
            **network,
            "seconds_per_forward": size.seconds_per_forward,
            "tensor_bytes": size.tensor_bytes,
            "state_bytes": size.state_bytes,
        },
    }
    for section, values in defence_tables(setting.defence).items():
        tables[section] = {**tables.get(section, {}), **values}
    if setting.attack:
        tables["attack"] = (split_attack(setting.attack),)
    config = resolve(tables)
    if config.spot_checked and config.defence.check_seed is None:
        tables["defence"]["check_seed"] = fair_secret(setting.stages, config.check_steps, range(steps))
        config = resolve(tables)
    return config


@lru_cache
def fair_secret(stages: int, q: float, *blocks: range) -> int:
    """The first secret that draws as many whole steps as q says, in each block: other draws would be those of another q."""
    expected = {round(q * len(steps) * (stages - 2)) for steps in blocks}
    for secret in itertools.count():
        sampling = Sampling(derive(secret, "deployment", 0), steps=q)
        drawn = {sum(sampling.draws_step(step, 0, i) for step in steps for i in range(1, stages - 1)) for steps in blocks}
        if drawn == expected:
            return secret
    raise AssertionError("itertools.count ends")
