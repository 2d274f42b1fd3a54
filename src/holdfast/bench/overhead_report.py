"""The overhead on paper: every column as JSON lines and CSV, what people read as Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.described import IN_WORDS
from holdfast.bench.overhead import DUPLICATE, Found
from holdfast.bench.overhead_rows import RealRow, VirtualRow
from holdfast.bench.writing import write_tables
from holdfast.report.pipes import NOTHING, told_pipes

DUPLICATION: Mapping[str, Callable[[VirtualRow], str]] = {
    "network": lambda row: row.network,
    "K": lambda row: str(row.stages),
    "M": lambda row: str(row.micro_batches),
    "schedule": lambda row: row.schedule,
    "clean step": lambda row: f"{row.clean_s:.2f} s",
    "defended": lambda row: f"{row.step_s:.2f} s",
    "time": lambda row: _ratio(row.ratio),
    "on paper": lambda row: _ratio(row.on_paper),
    "2M/(M+K-1)": lambda row: _ratio(row.formula),
    "busiest worker": lambda row: _ratio(row.work_bound),
    "busiest link": lambda row: _ratio(row.link_bound),
    "hidden": lambda row: _percent(row.hidden),
}

MODES: Mapping[str, Callable[[VirtualRow], str]] = {
    "network": lambda row: row.network,
    "K": lambda row: str(row.stages),
    "M": lambda row: str(row.micro_batches),
    "schedule": lambda row: row.schedule,
    "defence": lambda row: row.defence,
    "time": lambda row: _ratio(row.ratio),
    "bound": lambda row: _ratio(row.bound),
    "hidden": lambda row: _percent(row.hidden),
    "work": lambda row: _ratio(row.work, 3),
    "tensors": lambda row: _ratio(row.tensor_bytes),
    "messages": lambda row: f"{row.control_bytes / 1e3:,.0f} kB",
    "states a step": lambda row: f"{row.state_megabytes:,.0f} MB" if row.state_megabytes >= 1 else NOTHING,
}

REMEDIES: Mapping[str, Callable[[VirtualRow], str]] = {
    **{name: tell for name, tell in MODES.items() if name not in ("bound", "hidden", "messages")},
    "steps begun again or skipped in": lambda row: f"{row.waste} of {row.steps}",
}

IN_MEMORY: Mapping[str, Callable[[RealRow], str]] = {
    "way": lambda row: row.way,
    "lies": lambda row: row.attack or NOTHING,
    "operations": lambda row: _ratio(row.operations_ratio, 3),
    "a step": lambda row: NOTHING if row.operations is None else f"{row.operations / 1e9:.1f} G",
    "time of one core": lambda row: _spread(row.cpu_ratio, row.cpu_low, row.cpu_high),
    "bytes, states included": lambda row: _ratio(row.bytes_ratio),
    "memory of a worker, planned": lambda row: _ratio(row.memory_ratio),
}

PROCESSES: Mapping[str, Callable[[RealRow], str]] = {
    "way": lambda row: row.way,
    "schedule": lambda row: row.schedule,
    "tokens/s": lambda row: NOTHING if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
    "wall": lambda row: _spread(row.wall_ratio, row.wall_low, row.wall_high),
    "processor time": lambda row: _spread(row.cpu_ratio, row.cpu_low, row.cpu_high),
    "of": lambda row: row.of,
    "bytes": lambda row: NOTHING if row.bytes_sent is None else f"{row.bytes_sent / 1e6:.1f} MB",
    "memory of a worker, planned": lambda row: _mebibytes(row.memory_bytes),
    "its process at most": lambda row: _mebibytes(row.process_bytes),
    "loss": lambda row: f"{row.loss:.6f}",
}

EXPLAINED = """\
Virtual time is that of a described cluster; the protocol runs as it is, on small tensors that count for large ones (unless
told otherwise 4 MiB between stages, 696 MB a state, 50 ms a forward pass: GPT-2 345M in six stages). *Time*: a step with the
defence over one with defences off, same network, K, M and schedule. *On paper*: a greedy list scheduling without messages.
*2M/(M+K-1)*: the physical limit of full duplication on equal devices. *Busiest worker*, *busiest link*: what one of them does
in a defended step, over the clean step; no schedule is faster. *Bound*: the larger of both, at least 1 (over long lines a
defended 1F1B may be faster than a clean one, because it may hold twice as many micro-batches in flight). *Hidden*: the share
of the busiest worker's shadow work that does not lengthen the step; below zero where waiting for verdicts costs more than the
work itself. *Work*: all that is computed, referee and checker included. *States*: whole stages that travel so that a referee
or a checker can compute (apart from *tensors*); tensors wait behind them on a sender's link.

Real figures are of one machine that may be shared: medians of repeats (least to greatest), ways in turns.
"""


def sections(found: Found) -> list[tuple[str, str]]:
    """Title and Markdown table of each part that has rows."""
    honest = [row for row in found.virtual if not row.attack]
    grid = [row for row in honest if row.defence == DUPLICATE]
    lies = [row for row in found.virtual if row.attack]
    one_core = [row for row in found.real if row.engine == "memory"]
    parts: list[tuple[str, str]] = [
        ("Full duplication against its bound (virtual time)", told_pipes(grid, DUPLICATION)),
        ("Every defence on every network (virtual time)", told_pipes([r for r in honest if _has_company(r, honest)], MODES)),
        ("Remedies, with a lie in every step (virtual time)", told_pipes(lies, REMEDIES)),
        ("One core of this machine computes all members in turn (real)", told_pipes(one_core, IN_MEMORY)),
        ("A process a worker on this machine (real)", told_pipes([r for r in found.real if r.engine != "memory"], PROCESSES)),
    ]
    return [(title, text) for title, text in parts if text]


def headline(found: Found) -> str:
    """The few rows that a terminal has room for."""
    honest = [r for r in found.virtual if not r.attack]
    usual = [r for r in honest if r.stages == 6 and r.network == "local"]
    parts = [
        told_pipes(usual or honest, MODES),
        told_pipes(
            found.real, {"engine": lambda row: row.engine, **IN_MEMORY, "wall": PROCESSES["wall"], "of": PROCESSES["of"]}
        ),
    ]
    return "\n".join(part for part in parts if part)


def promises(found: Found) -> list[str]:
    """What was promised, beside what was measured."""
    return [
        f"{'kept' if measured <= most else 'BROKEN'}: {what}: {measured:.3f}x, at most {most:.2f}x"
        for what, measured, most in found.promises()
    ]


def write(out: Path, found: Found, environment: Mapping[str, Any]) -> None:
    """overhead.md, .csv and .jsonl (with a column `part`), environment.json in `out`."""
    records = [{"part": "virtual", **dataclasses.asdict(row)} for row in found.virtual]
    records += [{"part": "real", **dataclasses.asdict(row)} for row in found.real]
    networks = dict.fromkeys(row.network for row in found.virtual)
    parts = ["# What a defence costs\n", *(f"## {title}\n\n{text}" for title, text in sections(found)), "## Promises\n"]
    parts += ["".join(f"- {line}\n" for line in promises(found)) or "None of those that are promised was measured.\n"]
    parts += ["## What the columns mean\n", EXPLAINED]
    parts += ["".join(f"- `{name}`: {IN_WORDS[name]}\n" for name in networks), json.dumps(dict(environment)) + "\n"]
    write_tables(out, "overhead", records, "\n".join(parts), environment)


def _has_company(row: VirtualRow, rows: Sequence[VirtualRow]) -> bool:
    """Whether other defences were measured at the same place."""
    place = (row.network, row.stages, row.micro_batches)
    return len({other.defence for other in rows if (other.network, other.stages, other.micro_batches) == place}) > 1


def _ratio(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}x"


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.0f} %"


def _spread(middle: float | None, low: float | None, high: float | None) -> str:
    if middle is None:
        return NOTHING
    return f"{middle:.3f}x" if low == high else f"{middle:.3f}x ({low:.3f} to {high:.3f})"


def _mebibytes(count: int | None) -> str:
    return NOTHING if count is None else f"{count / 1024**2:,.0f} MiB"
