"""Loss curves of all runs in one frame: each step's loss as a faint line, its running median as a strong one.

The reference (the clean run) is drawn as a wide pale band, so that a run with the same losses is seen to lie on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from holdfast.report.comparison import clean_run
from holdfast.report.record import RunRecord
from holdfast.report.svg import Axis, drawing, element, polyline, spread, text, title

WIDTH, HEIGHT = 1040.0, 400.0
LEFT, TOP, BOTTOM = 52.0, 16.0, 44.0
LEADER, SIGN = 26.0, 7.8
"""Beside the curves: the way to a label, and what a sign of it takes at most, as wide as its letters are on the whole."""
FEWEST, MOST = 14, 38
"""Signs of a label that there is room for, at least and at most; a longer label is cut."""
MOST_HOVERS = 160
LOG_ABOVE = 20.0
LABEL_GAP, LIFT = 18.0, 16.0
"""Between two labels, and of the label of a line that ends inside the frame above its end, where others go on."""

Points = list[tuple[int, float]]


def loss_curves(runs: Sequence[RunRecord], colours: Sequence[str]) -> str:
    """The drawing as an SVG element; `colours` are class names, one a run."""
    curves = [run.losses for run in runs]
    values = [loss for points in curves for _, loss in points if math.isfinite(loss)]
    if not values:
        return '<p class="note">No step was sealed, so there is no curve.</p>'
    x, y = _axes(curves, values, WIDTH - _room(runs))
    reference = clean_run(runs)
    layers = [_frame(x, y)]
    order = sorted(range(len(runs)), key=lambda index: runs[index] is not reference)
    for index in order:
        band = " band" if runs[index] is reference and len(runs) > 1 else ""
        layers.append(_curve(curves[index], x, y, colours[index], band))
    layers += [_hovers(runs[index].label, curves[index], x, y) for index in order]
    layers.append(_labels(runs, curves, x, y, colours))
    return drawing(WIDTH, HEIGHT, "Training loss by step, one curve a run", *layers)


def running_median(points: Points) -> Points:
    """The median of each point and its neighbours, over about a sixteenth of the run: one odd batch leaves no bump.

    >>> running_median([(0, 1.0), (1, 2.0), (2, 6.0)])
    [(0, 1.0), (1, 2.0), (2, 6.0)]
    """
    half = len(points) // 32
    smooth = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)
        window = [loss for _, loss in points[index - reach : index + reach + 1]]
        smooth.append((step, median(window)))
    return smooth


def _axes(curves: Sequence[Points], values: Sequence[float], edge: float) -> tuple[Axis, Axis]:
    steps = [step for points in curves for step, _ in points]
    low, high = min(values), max(values)
    log = low > 0 and high / low > LOG_ABOVE
    margin = 0.04 * (high - low) or 0.5
    bottom, top = (low / 1.1, high * 1.1) if log else (low - margin, high + margin)
    x = Axis(min(steps), max(max(steps), min(steps) + 1), LEFT, edge)
    return x, Axis(bottom, top, HEIGHT - BOTTOM, TOP, log=log)


def _frame(x: Axis, y: Axis) -> str:
    parts = []
    for value in y.ticks():
        here = y.at(value)
        parts.append(element("line", x1=x.start, x2=x.end, y1=here, y2=here, class_="grid"))
        parts.append(text(f"{value:g}", x=x.start - 10, y=here + 4, class_="tick end"))
    for value in x.ticks(8):
        parts.append(text(f"{value:g}", x=x.at(value), y=HEIGHT - BOTTOM + 22, class_="tick middle"))
    parts.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(text("step", x=x.end, y=HEIGHT - 4, class_="tick end"))
    unit = "loss, nats a token" + (", log scale" if y.log else "")
    parts.append(text(unit, x=x.start + 8, y=TOP + 6, class_="tick"))
    return "".join(parts)


def _curve(points: Points, x: Axis, y: Axis, colour: str, band: str) -> str:
    raw = polyline(((x.at(step), y.at(loss)) for step, loss in points), f"raw {colour}")
    middle = polyline(((x.at(step), y.at(loss)) for step, loss in running_median(points)), f"middle-line {colour}{band}")
    return raw + middle


def _hovers(label: str, points: Points, x: Axis, y: Axis) -> str:
    stride = max(1, math.ceil(len(points) / MOST_HOVERS))
    return "".join(
        element("circle", title(f"{label}, step {step}: loss {loss:.4f}"), cx=x.at(step), cy=y.at(loss), r=6, class_="hover")
        for step, loss in points[::stride]
        if math.isfinite(loss)
    )


def _labels(runs: Sequence[RunRecord], curves: Sequence[Points], x: Axis, y: Axis, colours: Sequence[str]) -> str:
    """A name at the end of each line. That of a line that ends inside the frame is there too, a little above it; among names
    that would overlap, some make way.
    """
    ends = [_end(points, x, y) for points in curves]
    names = [_short(run.label, MOST) for run in runs]
    starts = [at + LEADER for at, _ in ends]
    wanted = [height if at >= x.end else height - LIFT for at, height in ends]
    places = list(wanted)
    for group in _overlapping([(start, start + SIGN * len(name)) for start, name in zip(starts, names, strict=True)]):
        apart = spread([wanted[index] for index in group], LABEL_GAP, TOP + 8, HEIGHT - BOTTOM)
        for index, place in zip(group, apart, strict=True):
            places[index] = place
    parts = []
    for name, (at, height), place, colour in zip(names, ends, places, colours, strict=True):
        inside = " inside" if at < x.end else ""
        if inside:
            parts.append(element("circle", cx=at, cy=height, r=3.5, class_=f"end-dot {colour}"))
        parts.append(element("path", d=f"M{at + 3:.1f} {height:.1f}L{at + 14:.1f} {place:.1f}h6", class_=f"leader {colour}"))
        parts.append(text(name, x=at + LEADER - 1, y=place + 4, class_=f"label {colour}{inside}"))
    return "".join(parts)


def _end(points: Points, x: Axis, y: Axis) -> tuple[float, float]:
    """Where a line ends; one without any number, as if it reached the edge at the top."""
    found = next(((step, loss) for step, loss in reversed(running_median(points)) if math.isfinite(loss)), None)
    return (x.end, y.end) if found is None else (x.at(found[0]), y.at(found[1]))


def _overlapping(spans: Sequence[tuple[float, float]]) -> list[list[int]]:
    """The indices of the spans, those together that overlap, by way of others too.

    >>> _overlapping([(0, 4), (9, 12), (3, 6)])
    [[0, 2], [1]]
    """
    groups: list[list[int]] = []
    reach = -math.inf
    for index in sorted(range(len(spans)), key=lambda index: spans[index]):
        if spans[index][0] < reach:
            groups[-1].append(index)
        else:
            groups.append([index])
        reach = max(reach, spans[index][1])
    return groups


def _room(runs: Sequence[RunRecord]) -> float:
    """What the longest label takes, with the way to it."""
    return LEADER + SIGN * min(max(FEWEST, *(len(run.label) for run in runs)), MOST)


def _short(label: str, most: int) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
