"""A table of results as one self-contained page: every number opens to the runs that it was made of.

No script, no font, no image and no address outside the page; light and dark follow the reader's system.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from holdfast.report.pipes import NOTHING
from holdfast.report.svg import Axis, drawing, element, text, title
from holdfast.sweep.cell import shown
from holdfast.sweep.draw import drawn_values, is_log, label_of
from holdfast.sweep.frame import SEED
from holdfast.sweep.record import Record
from holdfast.sweep.table import Figure, Line, ResultTable, value_of
from holdfast.sweep.text import (
    ORIGIN_HEADINGS,
    axes_of,
    digits,
    environments_of,
    explanation,
    of_run,
    origin,
    runs_of,
    told,
)

WIDTH, ROW, TOP, BOTTOM, LETTER = 1040.0, 30.0, 10.0, 46.0, 7.0


def page(*tables: ResultTable) -> str:
    """The page as text; several tables stand one below the other, their runs together."""
    sheets = (("holdfast.report", "page.css"), ("holdfast.sweep", "results.css"))
    style = "".join(files(package).joinpath(name).read_text(encoding="utf-8") for package, name in sheets)
    records = [record for table in tables for record in table.records]
    environments = environments_of(records)
    sections = [_header(tables, records)]
    for index, table in enumerate(tables):
        sections.append(_section(_capital(table.part) or "Results", _table(table, index), f"{explanation(table)} {_CHOOSE}"))
        sections += [
            _section(_titled(table, value), f'<div class="wide">{_forest(table, value)}</div>', _FOREST)
            for value in drawn_values(table)
        ]
    sections += [
        *_failures(records),
        _section("Where the numbers come from", _runs(records, environments) + _environments(environments)),
        *(card for index, table in enumerate(tables) for card in _cards(table, index)),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>Holdfast: {escape(tables[0].name)}</title><style>{style}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{"".join(sections)}</main></body></html>\n'


_CHOOSE = "Choose a number to see its runs."
_FOREST = "Faint: every run. Strong: mean and 95 % interval. Rest the pointer on a dot."


def _titled(table: ResultTable, value: str) -> str:
    return _capital(f"{table.part}: {table.heading(value)}" if table.part else table.heading(value))


def _header(tables: Sequence[ResultTable], records: Sequence[Record]) -> str:
    table = tables[0]
    runs, failed = len(records), sum(not record.ok for record in records)
    lines = sum(len(each.lines) for each in tables)
    commits = sorted({str(record.environment.get("commit") or "unknown") for record in records})
    words = [f"{runs:,} {'run' if runs == 1 else 'runs'} in {lines:,} rows", f"commit {', '.join(commits)}"]
    if failed:
        words.insert(1, f"{failed:,} failed")
    told_of = " · ".join(words)
    return f'<header><p class="brand">Holdfast</p><h1>{escape(table.name)}</h1><p class="note">{escape(told_of)}</p></header>'


def _table(table: ResultTable, number: int) -> str:
    heads = "".join(f"<th>{escape(axis.replace('_', ' '))}</th>" for axis in table.by)
    heads += "".join(f"<th class=num>{escape(name)}</th>" for name in ("runs", *map(table.heading, table.values)))
    body = []
    before: list[str] = []
    for row, line in enumerate(table.lines):
        places = [shown(value) for value in line.place.values()]
        same = 0
        while same < len(places) - 1 and places[: same + 1] == before[: same + 1]:
            same += 1
        cells = [
            f'<td class="{"again" if index < same else "place"}">{escape(place)}</td>' for index, place in enumerate(places)
        ]
        cells.append(f"<td class=num>{escape(runs_of(line))}</td>")
        cells += [_number(figure, _card_id(number, row, column), table) for column, figure in enumerate(line.figures)]
        body.append(f"<tr{'' if same else ' class=first'}>{''.join(cells)}</tr>")
        before = places
    return (
        f'<div class="wide"><table class="results"><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _number(figure: Figure, card: str, table: ResultTable) -> str:
    shade = ""
    if figure.equal is not None:
        shade = " equal" if figure.equal[0] == figure.equal[1] else " differ"
    mean, around = told(figure), ""
    if " ± " in mean:
        mean, _, around = mean.partition(" ± ")
        around = f"<small> ± {escape(around)}</small>"
    hover = "; ".join(f"{_seed(record)}{of_run(record, figure.value, table)}" for record in figure.records)
    button = f'<button popovertarget="{card}" title="{escape(hover)}">{escape(mean)}{around}</button>'
    return f'<td class="num{shade}">{button if mean != NOTHING else NOTHING}</td>'


def _cards(table: ResultTable, number: int) -> list[str]:
    """What opens over a number: its runs, each with its own value."""
    cards = []
    for row, line in enumerate(table.lines):
        for column, figure in enumerate(line.figures):
            body = "".join(
                f"<tr><td>{escape(_seed(record).rstrip(': ') or NOTHING)}</td>"
                f"<td class=num>{escape(of_run(record, figure.value, table))}</td>"
                f"<td><code>{escape(str((record.result or {}).get('run_id') or NOTHING))}</code></td>"
                f"<td><code>{escape(str(record.environment.get('commit') or NOTHING))}</code></td>"
                f'<td><a href="#c{escape(record.key[:12])}"><code>{escape(record.key[:12])}</code></a></td></tr>'
                for record in figure.records
            )
            heads = "<th>seed</th><th class=num>value</th><th>run</th><th>commit</th><th>cell</th>"
            cards.append(
                f'<div popover id="{_card_id(number, row, column)}" class="card">'
                f"<h3>{escape(_capital(table.heading(figure.value)))}: {escape(told(figure))}</h3>"
                f"<p class=note>{escape(label_of(line))}{_exactly(figure)}</p>"
                f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
            )
    return cards


def _exactly(figure: Figure) -> str:
    """Mean, spread and interval, with more digits than the table has."""
    mean = figure.mean
    if mean.n < 2:
        return ""
    spread = f"standard deviation {digits(mean.std)}, 95 % interval {digits(mean.low)} to {digits(mean.high)}, n = {mean.n}"
    return f"<br>mean {escape(digits(mean.mean))}, {escape(spread)}"


def _forest(table: ResultTable, value: str) -> str:
    index = table.values.index(value)
    numbers = {id(line): [(record, value_of(record, value, table.clean)) for record in line.records] for line in table.lines}
    means = [line.figures[index].mean for line in table.lines]
    every = [x for found in numbers.values() for _, x in found if math.isfinite(x)]
    ends = [x for mean in means for x in (mean.low, mean.high) if math.isfinite(x)]
    log = is_log(every)
    inside = [x for x in (*every, *ends) if x > 0 or not log]
    low, high = min(inside), max(inside)
    margin = 0.04 * (high - low) or 0.5
    left = 24 + LETTER * max(len(label_of(line)) for line in table.lines)
    height = TOP + ROW * len(table.lines) + BOTTOM
    x = Axis(low / 1.1, high * 1.1, left, WIDTH - 24, log=True) if log else Axis(low - margin, high + margin, left, WIDTH - 24)
    parts = [_ticks(x, table.heading(value), height)]
    for row, line in enumerate(table.lines):
        parts.append(_row(line, table, value, x, TOP + ROW * (row + 0.5), index))
    return drawing(WIDTH, height, f"{table.heading(value)}, a row for each place", *parts)


def _row(line: Line, table: ResultTable, value: str, x: Axis, y: float, index: int) -> str:
    parts = [text(label_of(line), x=x.start - 16, y=y + 4, class_="end tick")]
    mean = line.figures[index].mean
    if math.isfinite(mean.low) and (mean.low > 0 or not x.log):
        parts.append(element("line", x1=x.at(mean.low), x2=x.at(mean.high), y1=y, y2=y, class_="interval"))
    for record in line.records:
        found = value_of(record, value, table.clean)
        if math.isfinite(found):
            where = title(f"{record.name}: {digits(found)} (run {(record.result or {}).get('run_id', NOTHING)})")
            parts.append(element("circle", where, cx=x.at(found), cy=y, r=4.5, class_="one"))
    if mean.n:
        parts.append(element("circle", title(told(line.figures[index])), cx=x.at(mean.mean), cy=y, r=5, class_="mean"))
    else:
        parts.append(text("no number", x=x.start, y=y + 4, class_="tick"))
    return "".join(parts)


def _ticks(x: Axis, heading: str, height: float) -> str:
    base = height - BOTTOM
    parts = []
    for tick in x.ticks(8):
        here = x.at(tick)
        parts.append(element("line", x1=here, x2=here, y1=TOP, y2=base, class_="grid"))
        parts.append(text(f"{tick:g}", x=here, y=base + 20, class_="tick middle"))
    parts.append(element("line", x1=x.start, x2=x.end, y1=base, y2=base, class_="axis"))
    unit = heading + (", log scale" if x.log else "")
    parts.append(text(unit, x=x.end, y=height - 6, class_="tick end"))
    return "".join(parts)


def _failures(records: Sequence[Record]) -> list[str]:
    failed = [record for record in records if not record.ok]
    if not failed:
        return []
    body = "".join(f"<tr><td>{escape(record.name)}</td><td>{escape(str(record.error))}</td></tr>" for record in failed)
    heads = "<th>cell</th><th>error</th>"
    return [_section("What failed", f'<table class="errors"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>')]


def _runs(records: Sequence[Record], environments: dict[str, str]) -> str:
    axes = axes_of(records)
    heads = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in (*axes, *ORIGIN_HEADINGS, "alone"))
    first = {record.key: index for index, record in reversed(list(enumerate(records)))}
    marks = [f' id="c{escape(record.key[:12])}"' if first[record.key] == i else "" for i, record in enumerate(records)]
    rows = zip(records, marks, strict=True)
    body = "".join(f"<tr{mark}>{_run(record, axes, environments)}</tr>" for record, mark in rows)
    return f'<div class="wide"><table class="runs"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _run(record: Record, axes: Sequence[str], environments: dict[str, str]) -> str:
    cells = [f"<td>{escape(shown(record.axes.get(axis)))}</td>" for axis in axes]
    cells += [f"<td><code>{escape(value)}</code></td>" for value in origin(record, environments)]
    command = f"<details><summary>command</summary><pre>{escape(record.command)}</pre></details>"
    return f"{''.join(cells)}<td>{command}</td>"


def _environments(environments: dict[str, str]) -> str:
    entries = "".join(
        f"<div><dt>environment {letter}</dt><dd>{escape(environment)}</dd></div>"
        for environment, letter in environments.items()
    )
    return f'<dl class="environments">{entries}</dl>'


def _seed(record: Record) -> str:
    return f"seed {shown(record.axes[SEED])}: " if SEED in record.axes else ""


def _card_id(table: int, row: int, column: int) -> str:
    return f"n{table}-{row}-{column}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _section(name: str, content: str, note: str = "") -> str:
    told_of = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(name)}</h2>{told_of}{content}</section>"
