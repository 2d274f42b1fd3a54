"""The recovery on paper: every column as JSON lines and CSV, what people read as Markdown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.described import IN_WORDS
from holdfast.bench.incidents import CHECKPOINT, CRASHED, EVERY, MICRO_BATCHES, STAGES, TAKEOVER, Incident
from holdfast.bench.killed import Kill
from holdfast.bench.recovery import Recovery, TraceRow
from holdfast.bench.trace import FOREVER_S, HOUR_S
from holdfast.bench.writing import ends, span, write_tables
from holdfast.report.pipes import NOTHING, told_pipes

IN_SHORT = {TAKEOVER: "takeover", CHECKPOINT: "checkpoint"}

CRASHES: Mapping[str, Callable[[Incident], str]] = {
    "way": lambda row: IN_SHORT.get(row.way, row.way),
    "stages": lambda row: "+".join(str(stage) for stage in row.stages),
    "at": lambda row: row.moment,
    "steps lost": lambda row: str(row.steps_lost),
    "seconds lost": lambda row: f"{row.extra_s:.2f}",
    "in steps": lambda row: f"{row.extra_steps:.2f}",
    "by formula": lambda row: NOTHING if row.formula_s is None else f"{row.formula_s:.2f} s",
    "new shadows": lambda row: f"{row.shadows_s:.2f} s" if row.shadows_s else NOTHING,
    "slower after it": lambda row: f"{row.slower:.2f}x",
    "weights": lambda row: "equal" if row.equal else "other",
}

LIES: Mapping[str, Callable[[Sequence[Incident]], str]] = {
    "way": lambda rows: rows[0].way.rpartition("=")[2] if "on_alert" in rows[0].way else rows[0].way,
    "direction": lambda rows: rows[0].moment,
    "stages": lambda rows: ", ".join(str(row.stages[0]) for row in rows),
    "steps lost": lambda rows: ends([row.steps_lost for row in rows]),
    "steps begun again": lambda rows: ends([row.restarted for row in rows]),
    "stages skipped": lambda rows: ends([row.skipped for row in rows]),
    "claims replaced": lambda rows: ends([row.replaced for row in rows]),
    "seconds lost": lambda rows: span([row.extra_s for row in rows]),
    "in steps": lambda rows: span([row.extra_steps for row in rows]),
    "weights": lambda rows: "equal" if all(row.equal for row in rows) else "other",
}

TRACE: Mapping[str, Callable[[Sequence[TraceRow]], str]] = {
    "way": lambda rows: _way(rows[0]),
    "a machine stays": lambda rows: f"{rows[0].life_h:g} h",
    "days": lambda rows: str(len(rows)),
    "went": lambda rows: ends([row.lost_workers for row in rows]),
    "rollbacks": lambda rows: ends([row.rollbacks for row in rows]),
    "steps that stand": lambda rows: ends([row.steps for row in rows]),
    "computed": lambda rows: ends([row.computed for row in rows]),
    "goodput": lambda rows: span([row.goodput for row in rows], 3, mean=True),
    "by formula": lambda rows: f"{rows[0].expected:.3f}",
    "of its own calm day": lambda rows: span([row.of_own for row in rows], 3, mean=True),
    "a checkpoint": lambda rows: f"{rows[0].checkpoint_s:.0f} s" if rows[0].every > 1 else "in the step",
    "ended early": lambda rows: "; ".join(dict.fromkeys(row.ended for row in rows if row.ended)) or NOTHING,
}

KILLS: Mapping[str, Callable[[Kill], str]] = {
    "worker": lambda row: row.worker,
    "step": lambda row: str(row.step),
    "noticed": lambda row: f"{row.detection_s:.3f} s",
    "rest of the step": lambda row: f"{row.takeover_s:.3f} s",
    "new shadows": lambda row: f"{row.reshadow_s:.3f} s",
    "seated again": lambda row: f"{row.reseated_s:.1f} s",
    "at the referee": lambda row: f"{row.examined} of {row.pieces}",
    "a step": lambda row: f"{row.step_s:.3f} s",
    "weights": lambda row: "equal" if row.equal else "other",
}

EXPLAINED = """\
Virtual time of a described cluster; the protocol runs as it is, on small tensors that count for large ones. *Takeover*: full
duplication, the shadow's worker goes on. *Checkpoint*: defences off, the run goes back to its last checkpoint, without the
lost one. *Steps lost*: sealed steps that were computed again. *Seconds lost*: by how much later the step in question is
sealed than in the same run without incident. *By formula* (rollbacks): what the step had taken when it was given up, a new
deployment, and the steps since the checkpoint. *New shadows*: what seating them adds to the next two steps. *Slower after
it*: nobody comes in the lost one's place. *Weights*: against the run without incident, to the bit.

*Goodput* (mean, least to greatest): steps that stand at the end of the day, over those of a day with defences off in which
nobody goes. *By formula*: to the first order: each interval of T seconds of work and a checkpoint of C takes (1/f +
R)(exp(f(T+C)) - 1) at f failures a second with a new deployment of R (Daly 2006); with takeover a loss costs one step.
Starting new processes takes no time here, which is to the favour of checkpoints.
"""


ALONE = f"One worker goes in step {CRASHED}, a checkpoint every {EVERY}"
"""The longest of the sections."""


def sections(found: Recovery) -> list[tuple[str, str]]:
    """Title and Markdown table of each part that has rows."""
    crashes = [row for row in found.incidents if row.what == "crash"]
    alone = [row for row in crashes if len(row.stages) == 1]
    groups: dict[tuple[str, str], list[Incident]] = {}
    for row in found.incidents:
        if row.what == "lie":
            groups.setdefault((row.way, row.moment), []).append(row)
    parts = [
        (ALONE, told_pipes(alone, CRASHES)),
        ("Several go at once", told_pipes([row for row in crashes if row not in alone], CRASHES)),
        ("One lie", told_pipes(groups.values(), LIES)),
        ("A day among machines that come and go", told_pipes(_days(found), TRACE)),
        ("Processes killed on this machine (real seconds)", told_pipes(found.kills, KILLS)),
    ]
    return [(title, text) for title, text in parts if text]


def headline(found: Recovery) -> list[tuple[str, str]]:
    """The sections that a terminal has room for: those beside the crashes one by one, of which the summary speaks too."""
    told = sections(found)
    return [part for part in told if part[0] != ALONE] or told


def summary(found: Recovery) -> list[str]:
    """The outcome in a few lines."""
    told = []
    for way, name in IN_SHORT.items():
        rows = [row for row in found.incidents if row.what == "crash" and row.way == way and len(row.stages) == 1]
        if rows:
            lost, seconds = [row.steps_lost for row in rows], span([row.extra_s for row in rows])
            equal = sum(row.equal for row in rows)
            told.append(f"{name}: {ends(lost)} steps and {seconds} s lost; weights equal in {equal} of {len(rows)} crashes")
    for days in _days(found):
        goodput, first = span([day.goodput for day in days], 3, mean=True), days[0]
        told.append(f"{_way(first)}, a machine stays {first.life_h:g} h: goodput {goodput}, {first.expected:.3f} by formula")
    if found.kills:
        noticed, equal = span([kill.detection_s for kill in found.kills], 3), sum(kill.equal for kill in found.kills)
        told.append(f"processes: a kill noticed in {noticed} s; weights equal after {equal} of {len(found.kills)} kills")
    return told


def write(out: Path, found: Recovery, network: str, environment: Mapping[str, Any]) -> None:
    """recovery.md, .csv and .jsonl (with a column `part`), environment.json in `out`."""
    records = [{"part": row.what, **dataclasses.asdict(row)} for row in found.incidents]
    records += [{"part": "trace", **dataclasses.asdict(row)} for row in found.trace]
    records += [{"part": "processes", **dataclasses.asdict(row)} for row in found.kills]
    parts = ["# What recovery costs\n", f"K = {STAGES}, M = {MICRO_BATCHES}, GPipe; {IN_WORDS[network]}.\n"]
    parts += ["".join(f"- {line}\n" for line in summary(found)), *(f"## {title}\n\n{text}" for title, text in sections(found))]
    broken = (
        "".join(f"- {line}\n" for line in found.findings()) or "None: takeover and replace lost no step and changed no bit.\n"
    )
    calm = [day for day in found.days if day.life_h >= FOREVER_S / HOUR_S]
    days = "".join(
        f"- {IN_SHORT.get(d.defence, d.defence)}, every {d.every}: {d.steps} steps of {d.step_s:.0f} s\n" for d in calm
    )
    parts += ["## What stands out\n", broken, "## What the columns mean\n", EXPLAINED]
    parts += ["The calm days:\n", days] if days else []
    parts += [json.dumps(dict(environment)) + "\n"]
    write_tables(out, "recovery", records, "\n".join(parts), environment)


def _days(found: Recovery) -> list[list[TraceRow]]:
    """Days that differ in their seed alone, together."""
    groups: dict[tuple[str, int, float], list[TraceRow]] = {}
    for row in found.trace:
        groups.setdefault((row.defence, row.every, row.life_h), []).append(row)
    return list(groups.values())


def _way(row: TraceRow) -> str:
    return f"{IN_SHORT.get(row.defence, row.defence)}, checkpoint every {row.every}"
