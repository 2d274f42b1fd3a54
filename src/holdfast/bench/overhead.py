"""The experiment on overhead: every defence against defences off, on described clusters and on this machine.

part        what is measured                                              letters
virtual     the protocol on the virtual clock, K x M x network            K stages, M micro-batches
memory      operations, processor time, bytes and memory in one process
processes   a process a worker, beside torch.distributed.pipelining
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.bench.described import MIXED_SPEEDS, NETWORKS, OFF, Setting, Size, config_of
from holdfast.bench.kept import Kept
from holdfast.bench.overhead_rows import RealRow, VirtualRow, first_of_each, real_rows, virtual_row
from holdfast.bench.real import RealCost, Workload, in_memory, in_processes
from holdfast.bench.virtual import Cost, measure, overhead
from holdfast.config import Schedule
from holdfast.errors import ConfigError

PARTS = ("virtual", "memory", "processes")
DUPLICATE = "duplicate"
SPOT_CHECK = "spot-check,check_steps=0.1"
MODES = (DUPLICATE, "duplicate-only", SPOT_CHECK, "statistics")
REMEDIES = ("replace", "skip", "restart", "relay")
LIE = "sign-flip,rate=1"
"""A lie in every step, by another stage each time: what remedies cost where they matter."""

IN_MEMORY = (*((mode, "") for mode in MODES), *((f"duplicate,on_alert={remedy}", LIE) for remedy in REMEDIES))

HEADLINE = (6, 4)
WANTED_TIME, WANTED_OPERATIONS = 1.6, 1.10
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is to be measured. `sizes` are the (K, M) of full duplication, by network; `modes_at` those of all defences."""

    parts: tuple[str, ...] = PARTS
    sizes: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    modes_at: tuple[tuple[int, int], ...] = ((6, 4), (6, 16))
    networks: tuple[str, ...] = tuple(NETWORKS)
    schedules: tuple[Schedule, ...] = ("gpipe", "1f1b")
    in_memory: tuple[tuple[str, str], ...] = IN_MEMORY
    size: Size = field(default_factory=Size)
    memory: Workload = field(default_factory=Workload)
    processes: Workload = field(default_factory=lambda: Workload(stages=4, micro_batches=8, steps=5, repeats=3))

    def at(self, stages: Sequence[int] | None, micro_batches: Sequence[int] | None) -> Plan:
        """The same at other sizes: every K with every M of those that are given (None: as they are)."""
        if not stages and not micro_batches:
            return self
        ks = tuple(stages or (HEADLINE[0],))
        ms = tuple(micro_batches or (4, 16, 64))
        sizes = tuple((k, m) for k in ks for m in ms)
        return dataclasses.replace(self, sizes=dict.fromkeys(self.networks, sizes), modes_at=sizes[:2])

    def settings(self) -> list[Setting]:
        """Every run on the virtual clock but the clean ones; full duplication with the first schedule, and at K=6 with each."""
        found = []
        for network, sizes in self.sizes.items():
            found += [Setting(network, k, m, self.schedules[0], DUPLICATE) for k, m in sizes]
        for network in self.networks:
            for k, m in self.modes_at:
                found += [Setting(network, k, m, self.schedules[0], mode) for mode in MODES]
                found += [Setting(network, k, m, schedule, DUPLICATE) for schedule in self.schedules[1:]]
            k, m = self.modes_at[0]
            found += [Setting(network, k, m, self.schedules[0], f"duplicate,on_alert={remedy}", LIE) for remedy in REMEDIES]
        possible = [s for s in found if s.network != "mixed" or s.stages == len(MIXED_SPEEDS)]
        return list(dict.fromkeys(possible))


def full(networks: Sequence[str] = tuple(NETWORKS)) -> Plan:
    """K = 4..32 and M = 4..64; every defence at K = 6."""
    stages, coarse, fine = (4, 6, 8, 16, 32), (4, 16, 64), (4, 8, 16, 32, 64)
    sizes = {name: tuple((k, m) for k in stages for m in (fine if name == "local" else coarse)) for name in networks}
    return Plan(sizes=sizes, networks=tuple(networks))


def quick(networks: Sequence[str] = ("local", "wan")) -> Plan:
    """A subset that takes seconds; the processes are left out, because each takes seconds to start."""
    tiny = Workload(width=32, sequence=16, batch=2, repeats=2)
    sizes = dict.fromkeys(networks, ((4, 4), (6, 4)))
    cheap = ((DUPLICATE, ""), (SPOT_CHECK, ""))
    return Plan(PARTS[:2], sizes, ((6, 4),), tuple(networks), ("gpipe",), cheap, memory=tiny)


@dataclass(frozen=True)
class Found:
    """The rows of the experiment."""

    virtual: list[VirtualRow]
    real: list[RealRow]

    def promises(self) -> list[tuple[str, float, float]]:
        """What was promised and could be held against a row: in words, measured, at most."""
        told = [
            (f"virtual time of duplicate, K={row.stages}, M={row.micro_batches}, {row.schedule}", row.ratio, WANTED_TIME)
            for row in self.virtual
            if (row.network, row.stages, row.micro_batches, row.defence, row.attack) == ("local", *HEADLINE, DUPLICATE, "")
        ]
        told += [
            ("operations of spot checks at q = 0.1", row.operations_ratio, WANTED_OPERATIONS)
            for row in self.real
            if row.way == SPOT_CHECK and row.operations_ratio is not None
        ]
        return told


def run(plan: Plan, kept: Kept, tell: Tell = lambda _line: None) -> Found:
    """Measure what `kept` does not have yet, the clean runs first."""
    virtual: list[VirtualRow] = []
    real: list[RealRow] = []
    if "virtual" in plan.parts:
        virtual = _run_virtual(plan, kept, tell)
    if "memory" in plan.parts:
        real += _run_memory(plan, kept, tell)
    if "processes" in plan.parts:
        real += _run_processes(plan, kept, tell)
    return Found(virtual, real)


def _run_virtual(plan: Plan, kept: Kept, tell: Tell) -> list[VirtualRow]:
    if not plan.settings():
        raise ConfigError(
            f"nothing to measure: the network 'mixed' has {len(MIXED_SPEEDS)} devices, so it needs --stages {len(MIXED_SPEEDS)}"
        )
    settings = sorted(plan.settings(), key=lambda s: (s.stages, s.micro_batches))  # what is prepared for one serves the next
    rows = []
    for number, setting in enumerate(settings, start=1):
        config_of(setting, plan.size)  # what is refused is refused before anything runs
        clean, cost = (_virtual_cost(s, plan.size, kept) for s in (setting.clean, setting))
        found = overhead(setting, cost, clean)
        rows.append(virtual_row(setting, cost, clean, found))
        tell(f"[{number}/{len(settings)}] {setting}: {found.ratio:.3f}x, bound {found.bound:.3f}x")
    order = {setting: place for place, setting in enumerate(plan.settings())}
    return sorted(rows, key=lambda row: order[Setting(*(getattr(row, f.name) for f in dataclasses.fields(Setting)))])


def _virtual_cost(setting: Setting, size: Size, kept: Kept) -> Cost:
    cell = {"part": "virtual", **dataclasses.asdict(setting), "size": dataclasses.asdict(size)}
    return Cost(**kept.get(cell, lambda: dataclasses.asdict(measure(setting, size))))


def _run_memory(plan: Plan, kept: Kept, tell: Tell) -> list[RealRow]:
    """Each defence in turns with defences off; under lies operations alone are counted."""
    rows = []
    unhurried = dataclasses.replace(plan.memory, repeats=1)
    for defence, attack in plan.in_memory:
        work = unhurried if attack else plan.memory
        costs = _real_costs(
            {"part": "memory", "work": dataclasses.asdict(work), "defence": defence, "attack": attack},
            lambda work=work, way=(defence, attack): in_memory(work, [(OFF, ""), way], tell),  # type: ignore[misc]
            kept,
        )
        rows += real_rows(costs, costs[0])
    return first_of_each(rows)


def _run_processes(plan: Plan, kept: Kept, tell: Tell) -> list[RealRow]:
    rows = []
    for schedule, defences in (("1f1b", (OFF, DUPLICATE, SPOT_CHECK)), ("gpipe", (OFF, DUPLICATE))):
        cell = {"part": "processes", "work": dataclasses.asdict(plan.processes), "schedule": schedule, "ways": list(defences)}
        costs = _real_costs(cell, lambda s=schedule, d=defences: in_processes(plan.processes, s, d, tell), kept)  # type: ignore[misc]
        theirs, off = costs[0], costs[1]
        rows += [*real_rows([theirs], theirs), *real_rows([off], theirs), *real_rows(costs[2:], off)]
    return rows


def _real_costs(cell: Mapping[str, Any], measured: Callable[[], Sequence[RealCost]], kept: Kept) -> list[RealCost]:
    return [RealCost(**found) for found in kept.get(cell, lambda: [dataclasses.asdict(cost) for cost in measured()])]
