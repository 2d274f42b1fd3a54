"""What the defence did, step by step: a row a stage, a mark where a lie was proven or a stage was left out.

forward ▲   backward ▼   gradient ◆   update ■     hollow: an alert, nobody proven     pale bar: left out
blue dot: a worker lost or banned, other seats, or a step done again
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from holdfast.evidence.story import printable
from holdfast.report.changes import TURNS, told_of
from holdfast.report.record import RunRecord
from holdfast.report.svg import Axis, drawing, element, text, title

WIDTH, LEFT, RIGHT = 1040.0, 76.0, 16.0
ROW, TOP, BOTTOM = 34.0, 8.0, 40.0
SHAPES = {
    "forward": "M0 -6L6 5H-6z",
    "backward": "M0 6L6 -5H-6z",
    "gradient": "M0 -6L6 0L0 6L-6 0z",
    "update": "M-5 -5H5V5H-5z",
}
TURN_NAMES = {
    "a worker lost": ("WorkerLost",),
    "a worker banned": ("Banned",),
    "a step done again": ("StepRestarted", "RolledBack"),
    "other seats": ("Reseated",),
}
OFFSETS = {"forward": -7.0, "backward": 7.0, "gradient": -7.0, "update": 7.0}


def timeline(run: RunRecord) -> str:
    """The drawing of `run` as an SVG element, or an empty text where nothing happened."""
    marks = _marks(run)
    bars = run.of("StagesSkipped")
    turns = run.of(*TURNS)
    if not (marks or bars or turns):
        return ""
    shown = list(range(1, max(run.stages - 1, 2)))
    steps = max([step for step, _ in run.losses] + [step for step, _, _ in marks], default=1)
    x = Axis(0, max(steps, 1), LEFT, WIDTH - RIGHT - 6)
    rows = {stage: TOP + ROW * (index + 0.5) for index, stage in enumerate(shown)}
    bottom = TOP + ROW * len(shown)
    parts = [_frame(x, rows, bottom)]
    parts += [_bar(record, x, rows) for record in bars]
    parts += [_turn(record, x, bottom) for record in turns]
    parts += [_mark(key, records, x, rows, run.clock) for key, records in marks.items()]
    return drawing(WIDTH, bottom + BOTTOM, f"What was caught in {run.label}, by step and stage", *parts)


def legend(run: RunRecord) -> str:
    """What the marks of this run's timeline mean, as one line of HTML."""
    marks = _marks(run)
    proven = {direction for (_, _, direction), records in marks.items() if any(r.get("culprits") for r in records)}
    entries = [(name, _glyph(shape, f"lie {name}")) for name, shape in SHAPES.items() if name in proven]
    if any(not r.get("culprits") for records in marks.values() for r in records):
        entries.append(("alert, nobody proven", _glyph(SHAPES["forward"], "unclear")))
    if run.of("StagesSkipped"):
        entries.append(("left out of the step", element("rect", x=1, y=4, width=14, height=8, rx=2, class_="left-out")))
    meanings = [name for name, events in TURN_NAMES.items() if run.of(*events)]
    if meanings:
        entries.append((", or ".join(meanings), element("circle", cx=8, cy=8, r=4, class_="turn-dot")))
    icons = (
        (name, element("svg", inside, viewBox="0 0 16 16", width=16, height=16, aria_hidden="true")) for name, inside in entries
    )
    return f'<p class="legend">{"".join(f"<span>{icon}{name}</span>" for name, icon in icons)}</p>'


def _glyph(shape: str, kind: str) -> str:
    return element("path", d=shape, transform="translate(8 8)", class_=kind)


def _marks(run: RunRecord) -> dict[tuple[int, int, str], list[Mapping[str, Any]]]:
    """Rulings by step, stage and direction; an alert without a ruling about the same claim stands in for one."""
    found: dict[tuple[int, int, str], list[Mapping[str, Any]]] = defaultdict(list)
    ruled = {tuple(ruling["key"].values()) for ruling in run.of("Ruling")}
    for record in run.of("Ruling", "Alert"):
        key = record["key"]
        if record["event"] == "Ruling" or tuple(key.values()) not in ruled:
            found[key["step"], record.get("stage", key["stage"]), key["direction"]].append(record)
    return found


def _frame(x: Axis, rows: Mapping[int, float], bottom: float) -> str:
    parts = []
    for stage, y in rows.items():
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(text(f"stage {stage}", x=LEFT - 14, y=y + 4, class_="tick end"))
    parts += [text(f"{step:g}", x=x.at(step), y=bottom + 22, class_="tick middle") for step in x.ticks(8)]
    parts.append(text("step", x=LEFT - 14, y=bottom + 22, class_="tick end"))
    return "".join(parts)


def _mark(key: tuple[int, int, str], records: list[Mapping[str, Any]], x: Axis, rows: Mapping[int, float], clock: str) -> str:
    step, stage, direction = key
    if stage not in rows:
        return ""
    culprits = sorted({worker for record in records for worker in record.get("culprits", ())})
    suspects = sorted({worker for record in records for worker in record.get("suspects", ())})
    what = f"{' and '.join(culprits)} lied in" if culprits else f"nobody proven, suspects {', '.join(suspects)}, for"
    reasons = ", ".join(sorted({record["reason"] for record in records}))
    when = f"{clock} second {records[0]['seconds']:.2f}"
    told = f"step {step}: {what} {_claims(len(records), direction)} of stage {stage} ({reasons}), {when}"
    place = f"translate({x.at(step):.1f} {rows[stage] + OFFSETS[direction]:.1f}) scale(.85)"
    kind = "lie" if culprits else "unclear"
    return element("path", title(told), d=SHAPES[direction], transform=place, class_=f"{kind} {direction}")


def _bar(record: Mapping[str, Any], x: Axis, rows: Mapping[int, float]) -> str:
    half = max((x.at(1) - x.at(0)) / 2, 1.5)
    start, end = max(x.at(record["step"]) - half, LEFT - 8), min(x.at(record["step"]) + half, WIDTH)
    told = f"step {record['step']}: stages {record['bypassed']} left out, {record['frozen']} frozen"
    return "".join(
        element(
            "rect",
            title(told),
            x=start,
            y=rows[stage] - ROW / 2 + 2,
            width=end - start,
            height=ROW - 4,
            rx=2,
            class_="left-out",
        )
        for stage in record["bypassed"]
        if stage in rows
    )


def _turn(record: Mapping[str, Any], x: Axis, bottom: float) -> str:
    here = x.at(record["step"])
    line = element("line", x1=here, x2=here, y1=TOP, y2=bottom, class_=f"turn {record['event']}")
    return element("g", title(printable(told_of(record))), line, element("circle", cx=here, cy=bottom, r=4, class_="turn-dot"))


def _claims(count: int, direction: str) -> str:
    return f"{count} {direction} claim" + ("" if count == 1 else "s")
