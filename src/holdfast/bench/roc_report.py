"""What is written of an ROC experiment: two tidy tables (jsonl and csv), a page, the figure, and what it depended on.

tampered.{jsonl,csv}   dtype, direction, kind, size -> forgeries, detected, convicted, rate; how many had to be, and were not
honest.{jsonl,csv}     dtype, direction, pair       -> checks, alarms, the largest distances beside the lowest alarms
roc.md  roc.{svg,pdf,png}  run.json
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from holdfast.bench.roc import BEYOND, Honest, Roc, Tampered
from holdfast.bench.roc_figure import draw

SCHEMA = 1


def write_roc(roc: Roc, out: Path, environment: Mapping[str, Any]) -> list[Path]:
    """Every file of the experiment, in the directory `out`, which is made. Gives their paths."""
    out.mkdir(parents=True, exist_ok=True)
    told = summary(roc) | {"environment": dict(environment), "date": datetime.now(UTC).date().isoformat()}
    (out / "run.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    paths = [out / "run.json"]
    for name, rows in (("tampered", [_tampered(row) for row in roc.tampered]), ("honest", [asdict(row) for row in roc.honest])):
        paths += [_jsonl(out / f"{name}.jsonl", rows), _csv(out / f"{name}.csv", rows)]
    page = out / "roc.md"
    page.write_text(markdown(roc, told), encoding="utf-8")
    return [*paths, page, *draw(roc, out)]


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
        "| dtype | direction | pair | checks | equal | largest overall | lowest alarm | largest row | lowest alarm | alarms |",
        "|" + " --- |" * 10,
    ]
    lines += [_honest_line(row) for row in roc.honest]
    lines += ["", "## Forgeries detected, by size", ""]
    decades = sorted({row.size for row in roc.tampered if _is_decade(row.size)})
    lines += [
        "| dtype | direction | kind | " + " | ".join(f"{size:.0e}" for size in decades) + " |",
        "|" + " --- |" * (3 + len(decades)),
    ]
    rates = {(row.dtype, row.direction, row.kind, row.size): _rate(row) for row in roc.tampered}
    for group in dict.fromkeys(key[:3] for key in rates):
        lines.append("| " + " | ".join([*group, *(f"{rates[(*group, size)]:.2f}" for size in decades)]) + " |")
    lines += ["", f"`{json.dumps(told['environment'])}`, {told['date']}, {json.dumps(told['plan'])}"]
    return "\n".join(lines) + "\n"


def _honest_line(row: Honest) -> str:
    spread = f"{row.overall:.1e} | {row.alarm_overall:.1e} | {row.worst_row:.1e} | {row.alarm_row:.1e}"
    return f"| {row.dtype} | {row.direction} | {row.one}, {row.other} | {row.checks} | {row.equal} | {spread} | {row.alarms} |"


def _tampered(row: Tampered) -> dict[str, Any]:
    return asdict(row) | {"rate": _rate(row), "conviction_rate": row.convicted / row.forgeries}


def _rate(row: Tampered) -> float:
    return row.detected / row.forgeries


def _is_decade(size: float) -> bool:
    mantissa = f"{size:.6e}".partition("e")[0]
    return float(mantissa) == 1.0


def _jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
