"""The experiment on overhead: every defence against defences off, on described clusters and on this machine.

part        what is measured                                              letters
virtual     the protocol on the virtual clock, K x M x network            K stages, M micro-batches
memory      operations, processor time, bytes and memory in one process
processes   a process a worker, beside torch.distributed.pipelining
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from holdfast.bench.described import MIXED_SPEEDS, NETWORKS, OFF, Setting, Size, config_of
from holdfast.bench.overhead_rows import RealRow, VirtualRow, first_of_each, real_rows, virtual_row
from holdfast.bench.real import Workload, in_memory, in_processes
from holdfast.bench.real import config_of as work_config
from holdfast.bench.virtual import Cost, measure, overhead
from holdfast.config import RunConfig, Schedule
from holdfast.errors import ConfigError
from holdfast.sweep.cell import Cell
from holdfast.sweep.record import Record, telling_first
from holdfast.sweep.study import Study

PARTS = ("virtual", "memory", "processes")
DUPLICATE = "duplicate"
SPOT_CHECK = "spot-check,check_steps=0.1"
MODES = (DUPLICATE, "duplicate-only", SPOT_CHECK, "statistics")
REMEDIES = ("replace", "skip", "restart", "relay")
LIE = "sign-flip,rate=1"
"""A lie in every step, by another stage each time: what remedies cost where they matter."""

IN_MEMORY = (*((mode, "") for mode in MODES), *((f"duplicate,on_alert={remedy}", LIE) for remedy in REMEDIES))

IN_PROCESSES: Mapping[Schedule, tuple[str, ...]] = {"1f1b": (OFF, DUPLICATE, SPOT_CHECK), "gpipe": (OFF, DUPLICATE)}
"""What is compared in turns, beside torch.distributed.pipelining."""

TELLING = ("ratio", "bound", "work", "tensor_bytes", "step_s", "clean_s")
"""What a report shows first of a row on the virtual clock."""

HEADLINE = (6, 4)
WANTED_TIME, WANTED_OPERATIONS = 1.6, 1.10


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


def cells_of(plan: Plan) -> list[Cell]:
    """Every cell of the plan; what is refused is refused here. Raises ConfigError."""
    found: list[Cell] = []
    if "virtual" in plan.parts:
        if not plan.settings():
            raise ConfigError(
                f"nothing to measure: the network 'mixed' has {len(MIXED_SPEEDS)} devices, "
                f"so it needs --stages {len(MIXED_SPEEDS)}"
            )
        settings = sorted(plan.settings(), key=lambda s: (s.stages, s.micro_batches))  # what serves one serves the next
        size = dataclasses.asdict(plan.size)
        found += [_cell("virtual", dataclasses.asdict(s), config_of(s, plan.size), size=size) for s in settings]
    if "memory" in plan.parts:
        for defence, attack in plan.in_memory:
            work = dataclasses.replace(plan.memory, repeats=1) if attack else plan.memory  # under lies operations alone count
            config = work_config(work, defence, engine="memory", schedule="1f1b", attack=attack)
            found.append(_cell("memory", {"way": defence, "attack": attack}, config, work=dataclasses.asdict(work)))
    if "processes" in plan.parts:
        for schedule, ways in IN_PROCESSES.items():
            config = work_config(plan.processes, ways[-1], engine="processes", schedule=schedule, tied=False)
            told = {"work": dataclasses.asdict(plan.processes), "ways": list(ways)}
            found.append(_cell("processes", {"schedule": schedule}, config, **told))
    return found


def study_of(plan: Plan) -> Study:
    """The plan as a study. Raises ConfigError for what cannot be measured."""
    return Study("overhead", cells_of(plan), measure_cell, command_of, is_real)


def is_real(cell: Cell) -> bool:
    """Whether its seconds are those of this machine, which nothing else should use then."""
    return cell.axes["part"] != "virtual"


def measure_cell(cell: Cell) -> dict[str, Any]:
    """One run on the virtual clock: its row. Real ones: `rows`, since ways are compared in turns."""
    axes = dict(cell.axes)
    part = axes.pop("part")
    if part == "virtual":
        setting, size = Setting(**axes), Size(**cell.more["size"])  # type: ignore[arg-type]
        cost, clean = measure(setting, size), _clean(setting.clean, size)
        row = virtual_row(setting, cost, clean, overhead(setting, cost, clean))
        told = {name: value for name, value in dataclasses.asdict(row).items() if name not in axes}
        return telling_first(told, TELLING)
    work = Workload(**cell.more["work"])
    if part == "memory":
        costs = in_memory(work, [(OFF, ""), (str(axes["way"]), str(axes["attack"]))])
        rows = real_rows(costs, costs[0])
    else:
        costs = in_processes(work, axes["schedule"], cell.more["ways"])  # type: ignore[arg-type]
        theirs, off = costs[0], costs[1]
        rows = [*real_rows([theirs], theirs), *real_rows([off], theirs), *real_rows(costs[2:], off)]
    return {"rows": [dataclasses.asdict(row) for row in rows]}


def command_of(cell: Cell) -> str:
    """The command line that measures the cell again, with as little else as can be."""
    words = ["holdfast", "bench", "overhead", "--part", str(cell.axes["part"])]
    if not is_real(cell):
        axes, size = cell.axes, cell.more["size"]
        words += ["--network", str(axes["network"]), "--stages", str(axes["stages"])]
        words += ["--micro-batches", str(axes["micro_batches"]), "--forward-seconds", f"{size['seconds_per_forward']:g}"]
        words += ["--tensor-bytes", str(size["tensor_bytes"]), "--state-bytes", str(size["state_bytes"])]
    return shlex.join(words)


def gather(plan: Plan, records: Sequence[Record]) -> Found:
    """The rows of what was measured, in the order of the plan."""
    virtual: dict[Setting, VirtualRow] = {}
    memory: list[RealRow] = []
    processes: list[RealRow] = []
    for record in records:
        axes = dict(record.axes)
        part, result = axes.pop("part"), record.result
        if result is None:
            continue
        if part == "virtual":
            virtual[Setting(**axes)] = VirtualRow(**axes, **result)  # type: ignore[arg-type]
        else:
            (memory if part == "memory" else processes).extend(RealRow(**row) for row in result["rows"])
    order = [virtual[setting] for setting in plan.settings() if setting in virtual]
    return Found(order, [*first_of_each(memory), *processes])


@lru_cache(maxsize=64)
def _clean(setting: Setting, size: Size) -> Cost:
    return measure(setting, size)


def _cell(part: str, axes: Mapping[str, Any], config: RunConfig, **more: Any) -> Cell:
    return Cell({"part": part, **axes}, config.model_dump(mode="json", exclude_none=True), f"overhead: {part}", more)
