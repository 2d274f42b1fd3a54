"""The pipeline as a picture: stages in a row, tensors between them, jumping connections above, shadows inside.

          .--- jump a_0 ---.
    [stage 0] -> [stage 1] -> [stage 2 | shadow of 1] -> ...          forward above, backward below

A stage whose worker was proven to have lied is marked with the number of its lies.
"""

from __future__ import annotations

from collections import Counter

from holdfast.report.record import RunRecord
from holdfast.report.svg import drawing, element, text, title

BOX, GAP, TALL = 130.0, 50.0, 168.0
LEAST_WIDTH = 1040.0
MOST_LINES = 2
ABOVE, BELOW = 96.0, 30.0
MARKERS = "".join(
    element(
        "marker",
        element("path", d="M0 0L8 4L0 8z", class_=f"head {kind}"),
        id=f"head-{kind}",
        viewBox="0 0 8 8",
        refX=7,
        refY=4,
        markerWidth=8,
        markerHeight=8,
        orient="auto",
        markerUnits="userSpaceOnUse",
    )
    for kind in ("forward", "backward", "jump")
)


def pipeline_drawing(run: RunRecord) -> str:
    """The drawing of `run` as an SVG element: its stages, who holds them, and which of them were caught lying."""
    stages = run.stages
    shadowed = run.defence.startswith("duplicate") and stages > 2
    jumps = shadowed and not run.defence.startswith("duplicate-only")
    lies = Counter(ruling["stage"] for ruling in run.of("Ruling") if ruling["culprits"])
    used = stages * BOX + (stages - 1) * GAP
    width = max(LEAST_WIDTH, used + 2)
    left = (width - used) / 2
    top = ABOVE if jumps else 24.0
    parts = [element("defs", MARKERS)]
    for stage in range(stages):
        x = left + stage * (BOX + GAP)
        if stage + 1 < stages:
            parts.append(_arrows(stage, x + BOX, top))
        if jumps and stage + 2 < stages:
            parts.append(_jump(stage, x, top))
        parts.append(_box(run, stage, x, top, shadowed=shadowed))
        if lies[stage]:
            parts.append(_mark(lies[stage], x, top))
    return drawing(width, top + TALL + BELOW, f"A pipeline of {stages} stages", *parts)


def _box(run: RunRecord, stage: int, x: float, y: float, *, shadowed: bool) -> str:
    trusted = stage in (0, run.stages - 1)
    caught = any(ruling["stage"] == stage and ruling["culprits"] for ruling in run.of("Ruling"))
    middle = x + BOX / 2
    kind = "trusted" if trusted else "caught" if caught else "plain"
    parts = [
        element("rect", x=x, y=y, width=BOX, height=TALL, rx=10, class_=f"stage {kind}"),
        text(f"stage {stage}", x=middle, y=y + 28, class_="stage-name middle"),
        text(_short(_at(run.started.get("workers", ()), stage)), x=middle, y=y + 48, class_="stage-note middle"),
    ]
    held = _at(run.started.get("stages", ()), stage).split(", ")
    lines = enumerate(held[:MOST_LINES])
    parts += [text(_short(line), x=middle, y=y + 70 + 17 * row, class_="stage-note middle") for row, line in lines]
    if shadowed and stage >= 2:
        parts += [
            element("rect", x=x + 10, y=y + TALL - 64, width=BOX - 20, height=34, rx=7, class_="shadow"),
            text(f"shadow of {stage - 1}", x=middle, y=y + TALL - 42.5, class_="shadow-name middle"),
        ]
    elif trusted:
        parts.append(text("trusted", x=middle, y=y + TALL - 42.5, class_="stage-note middle"))
    return "".join(parts)


def _arrows(stage: int, x: float, top: float) -> str:
    forward, backward = top + 42, top + 74
    start, end = x + 6, x + GAP - 6
    return (
        element("path", d=f"M{start} {forward}H{end}", class_="wire forward", marker_end="url(#head-forward)")
        + text(f"a{_subscript(stage)}", x=x + GAP / 2, y=forward - 8, class_="wire-name middle")
        + element("path", d=f"M{end} {backward}H{start}", class_="wire backward", marker_end="url(#head-backward)")
        + text(f"g{_subscript(stage + 1)}", x=x + GAP / 2, y=backward + 18, class_="wire-name middle")
    )


def _jump(stage: int, x: float, top: float) -> str:
    """From the middle of one box to that after the next; two heights, so that neighbours do not run into one another."""
    start, end = x + BOX * 0.62, x + 2 * (BOX + GAP) + BOX * 0.38
    high = top - (66 if stage % 2 == 0 else 46)
    curve = f"M{start} {top - 4}C{start + 30} {high} {end - 30} {high} {end} {top - 5}"
    named = text(f"jump a{_subscript(stage)}", x=(start + end) / 2, y=(top + 3 * high) / 4 - 6, class_="wire-name middle jump")
    return element("path", d=curve, class_="wire jump", marker_end="url(#head-jump)") + named


def _mark(lies: int, x: float, top: float) -> str:
    wide = 24 + 7.2 * len(f"caught ×{lies}")
    return element(
        "g",
        title(f"{lies} proven lies"),
        element("rect", x=x + BOX / 2 - wide / 2, y=top + TALL - 12, width=wide, height=24, rx=12, class_="badge"),
        text(f"caught ×{lies}", x=x + BOX / 2, y=top + TALL + 4.5, class_="badge-name middle"),
    )


def _at(names: object, stage: int) -> str:
    if not isinstance(names, (list, tuple)) or stage >= len(names):
        return ""
    return str(names[stage])


def _short(name: str) -> str:
    return name if len(name) <= 19 else name[:18] + "…"


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
