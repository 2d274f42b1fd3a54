"""The rows of the experiment on overhead: a cost against that with defences off, as plain values."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast.bench.described import Setting
from holdfast.bench.real import RealCost
from holdfast.bench.virtual import Cost, Overhead


@dataclass(frozen=True)
class VirtualRow:
    """One run on the virtual clock against the clean one of the same network, K, M and schedule. Bytes are per step."""

    network: str
    stages: int
    micro_batches: int
    schedule: str
    defence: str
    attack: str
    clean_s: float
    step_s: float
    ratio: float
    bound: float
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
    steps: int
    waste: int


@dataclass(frozen=True)
class RealRow:
    """One way to train against the same with defences off, of this machine. Ratios are medians over repeats, with their range.

    `of` is what the ratios are to. `tokens_per_second` is by the clock on the wall.
    """

    engine: str
    schedule: str
    way: str
    attack: str
    of: str
    repeats: int
    cpu_s: float | None
    cpu_ratio: float | None
    cpu_low: float | None
    cpu_high: float | None
    wall_s: float | None
    wall_ratio: float | None
    wall_low: float | None
    wall_high: float | None
    tokens_per_second: float | None
    operations: float | None
    operations_ratio: float | None
    bytes_sent: float | None
    bytes_ratio: float | None
    memory_bytes: int | None
    memory_ratio: float | None
    process_bytes: int | None
    loss: float


def virtual_row(setting: Setting, cost: Cost, clean: Cost, found: Overhead) -> VirtualRow:
    """`found` is what `cost` comes to against `clean`."""
    return VirtualRow(
        **dataclasses.asdict(setting),
        **dataclasses.asdict(found),
        clean_s=clean.step_s,
        step_s=cost.step_s,
        bound=found.bound,
        steps=cost.steps,
        waste=cost.waste,
    )


def real_rows(costs: Iterable[RealCost], base: RealCost) -> list[RealRow]:
    """Each cost against `base`."""
    rows = []
    for cost in costs:
        cpu, wall = _ratios(cost.cpu_s, base.cpu_s), _ratios(cost.wall_s, base.wall_s)
        wall_s = _median(cost.wall_s)
        rows.append(
            RealRow(
                engine=cost.engine,
                schedule=cost.schedule,
                way=cost.way,
                attack=cost.attack,
                of=base.way,
                repeats=max(len(cost.cpu_s), len(cost.wall_s)),
                cpu_s=_median(cost.cpu_s),
                cpu_ratio=_median(cpu),
                cpu_low=min(cpu, default=None),
                cpu_high=max(cpu, default=None),
                wall_s=wall_s,
                wall_ratio=_median(wall),
                wall_low=min(wall, default=None),
                wall_high=max(wall, default=None),
                tokens_per_second=cost.tokens / wall_s if wall_s else None,
                operations=cost.operations,
                operations_ratio=_over(cost.operations, base.operations),
                bytes_sent=cost.bytes_sent,
                bytes_ratio=_over(cost.bytes_sent, base.bytes_sent),
                memory_bytes=cost.memory_bytes,
                memory_ratio=_over(cost.memory_bytes, base.memory_bytes),
                process_bytes=cost.process_bytes,
                loss=cost.loss,
            )
        )
    return rows


def first_of_each(rows: Sequence[RealRow]) -> list[RealRow]:
    """The clean way was measured beside every defence; one row of it is enough."""
    found: dict[tuple[str, str], RealRow] = {}
    for row in rows:
        found.setdefault((row.way, row.attack), row)
    return list(found.values())


def _ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Of the same repeat."""
    return [value / other for value, other in zip(values, base, strict=True)] if values and base else []


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
