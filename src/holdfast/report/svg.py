"""Drawing without a library: elements as escaped text, and axes that turn values into positions and pick round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


def element(name: str, *children: str, **attributes: object) -> str:
    """One element; a trailing underscore and inner ones are spelling (`class_`, `stroke_width`), None leaves out.

    >>> element("text", "a & b".replace("&", "&amp;"), x=1.50, class_="label")
    '<text x="1.5" class="label">a &amp; b</text>'
    """
    spelled = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{spelled}>{''.join(children)}</{name}>" if children else f"<{name}{spelled}/>"


def text(content: str, **attributes: object) -> str:
    """A `text` element with its content escaped."""
    return element("text", escape(content), **attributes)


def title(content: str) -> str:
    """What a browser shows while the pointer rests on the parent element."""
    return element("title", escape(content))


def polyline(points: Iterable[tuple[float, float]], class_: str) -> str:
    """A line through the points; a point that is not a number interrupts it."""
    path, pen_is_down = [], False
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen_is_down = False
            continue
        path.append(f"{'L' if pen_is_down else 'M'}{_plain(x)} {_plain(y)}")
        pen_is_down = True
    return element("path", d="".join(path), class_=class_) if path else ""


def drawing(width: float, height: float, label: str, *children: str) -> str:
    """A whole drawing that scales with the page; `label` is what a screen reader says."""
    box = f"0 0 {_plain(width)} {_plain(height)}"
    return element("svg", *children, viewBox=box, width=width, height=height, role="img", aria_label=label)


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values `low..high` to positions `start..end`; with `log`, by their logarithm (then low > 0)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of `value`; NaN stays NaN.

        >>> Axis(1, 100, 0, 10, log=True).at(10)
        5.0
        """
        low, high, here = (_log(v) if self.log else v for v in (self.low, self.high, value))
        share = (here - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the axis, at most about `most` of them.

        >>> Axis(0, 150, 0, 1).ticks()
        [0.0, 50.0, 100.0, 150.0]
        >>> Axis(2, 300, 0, 1, log=True).ticks()
        [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]
        """
        if self.log:
            exponents = range(math.floor(_log(self.low)), math.ceil(_log(self.high)) + 1)
            candidates = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
            return [value for value in candidates if self.low <= value <= self.high]
        span = max(self.high - self.low, 1e-12)
        rough = span / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved apart by at least `gap` (labels that must not overlap), in the order given, inside low..high.

    >>> spread([10, 12, 40], 10, 0, 100)
    [10, 20, 40]
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed = list(positions)
    floor = low
    for index in order:
        placed[index] = max(placed[index], floor)
        floor = placed[index] + gap
    ceiling = high
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def _log(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
