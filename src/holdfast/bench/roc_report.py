"""What is written of an ROC experiment: two tidy tables (jsonl and csv), a page, the figure, and what it depended on.

tampered.{jsonl,csv}   dtype, direction, kind, size -> forgeries, detected, convicted, rate; how many had to be, and were not
honest.{jsonl,csv}     dtype, direction, pair       -> checks, alarms, the largest distances beside the lowest alarms
roc.md  roc.{svg,pdf,png}  run.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from holdfast.bench.roc import BEYOND, Honest, Roc, Tampered
from holdfast.bench.roc_figure import draw
from holdfast.bench.writing import as_csv, as_lines, put
from holdfast.report.pipes import pipes

SCHEMA = 1


def write_roc(roc: Roc, out: Path, environment: Mapping[str, Any]) -> list[Path]:
    """Every file of the experiment, in the directory `out`, which is made. Gives their paths."""
    told = summary(roc) | {"environment": dict(environment)}
    paths = [put(out / "run.json", json.dumps(told, indent=1) + "\n")]
    for name, rows in (("tampered", [_tampered(row) for row in roc.tampered]), ("honest", [asdict(row) for row in roc.honest])):
        paths += [put(out / f"{name}.jsonl", as_lines(rows)), put(out / f"{name}.csv", as_csv(rows))]
    return [*paths, put(out / "roc.md", markdown(roc, told)), *draw(roc, out)]


def summary(roc: Roc) -> dict[str, Any]:
    """The numbers of `--json`."""
    return {
        "schema": SCHEMA,
        "plan": asdict(roc.plan),
        "steps": roc.steps,
        "honest_checks": roc.checks,
        "false_alarms": roc.false_alarms,
        "forgeries": sum(row.forgeries for row in roc.tampered),
        "beyond_3_alarms": sum(row.must for row in roc.tampered),
        "beyond_3_guilty": sum(row.must_convict for row in roc.tampered),
        "missed": roc.missed,
        "passed": roc.passed,
    }


def markdown(roc: Roc, told: Mapping[str, Any]) -> str:
    """A page for people: the outcome, the honest spread beside the bounds, the detection rates by decade."""
    lines = [
        "# What tolerance catches",
        "",
        f"{told['honest_checks']:,} honest checks on mixed arithmetic: **{told['false_alarms']} false alarms**. "
        f"{told['forgeries']:,} forgeries, of which {told['beyond_3_alarms']:,} were more than {BEYOND:g} times the alarm "
        f"away from the honest result and {told['beyond_3_guilty']:,} more than {BEYOND:g} times the limit of guilt: "
        f"**{told['missed']} of them missed**.",
        "",
        "![detection rate against the size of a forgery](roc.svg)",
        "",
        "## Honest checks",
        "",
        pipes(_HONEST, [_honest(row) for row in roc.honest]),
        "## Forgeries detected, by size",
        "",
    ]
    decades = sorted({row.size for row in roc.tampered if _is_decade(row.size)})
    rates = {(row.dtype, row.direction, row.kind, row.size): _rate(row) for row in roc.tampered}
    groups = dict.fromkeys(key[:3] for key in rates)
    rows = [[*group, *(f"{rates[(*group, size)]:.2f}" for size in decades)] for group in groups]
    lines.append(pipes(["dtype", "direction", "kind", *(f"{size:.0e}" for size in decades)], rows))
    lines.append(f"`{json.dumps(told['environment'])}`, {json.dumps(told['plan'])}")
    return "\n".join(lines) + "\n"


_HONEST = (
    "dtype",
    "direction",
    "pair",
    "checks",
    "equal",
    "largest overall",
    "lowest alarm",
    "largest row",
    "lowest alarm",
    "alarms",
)


def _honest(row: Honest) -> list[object]:
    spread = [f"{value:.1e}" for value in (row.overall, row.alarm_overall, row.worst_row, row.alarm_row)]
    return [row.dtype, row.direction, f"{row.one}, {row.other}", row.checks, row.equal, *spread, row.alarms]


def _tampered(row: Tampered) -> dict[str, Any]:
    return asdict(row) | {"rate": _rate(row), "conviction_rate": row.convicted / row.forgeries}


def _rate(row: Tampered) -> float:
    return row.detected / row.forgeries


def _is_decade(size: float) -> bool:
    mantissa = f"{size:.6e}".partition("e")[0]
    return float(mantissa) == 1.0
