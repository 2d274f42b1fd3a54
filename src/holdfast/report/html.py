"""One self-contained page for a run or a comparison: result, curves, pipeline, who was caught, how to repeat it.

No script, no font, no image and no address outside the page; light and dark follow the reader's system.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from holdfast.event import REAL, VIRTUAL
from holdfast.evidence.story import printable
from holdfast.report.changes import account, verdict
from holdfast.report.comparison import clean_run
from holdfast.report.curves import loss_curves
from holdfast.report.pipeline import pipeline_drawing
from holdfast.report.placements import placement_table
from holdfast.report.record import RunRecord
from holdfast.report.tables import Row, against_clean, columns, content, figure, rows
from holdfast.report.timeline import legend, timeline

OTHERS = ("amber", "teal", "violet", "slate")
MOST_SENTENCES = 20
MEANINGS = {
    VIRTUAL: "Virtual seconds are those of the described cluster, in which each worker is a machine of its own.",
    REAL: "Run seconds are real ones, in which the stages were deployed; wall seconds are all of them.",
}
"""What the time of a run means, by the name of its clock."""


def render_html(runs: Sequence[RunRecord]) -> str:
    """The page as text. The first run without attack and fault is the reference that others are compared with."""
    shown = list(runs)
    colours = series(shown)
    style = files("holdfast.report").joinpath("page.css").read_text(encoding="utf-8")
    title = f"Holdfast: {', '.join(run.label for run in shown)}"
    sections = [
        _header(shown),
        _section("Result", _tiles(shown) + _table(shown, colours) + _words(shown)),
        _section(
            "Training loss",
            f'<div class="wide">{loss_curves(shown, colours)}</div>',
            "Faint: every step. Strong: running median. Rest the pointer on a curve.",
        ),
        *_pipeline_section(shown),
        *_placement_section(shown),
        *_caught_sections(shown),
        _section("How to repeat it", _repeat(shown)),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{style}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{"".join(sections)}</main></body></html>\n'


def series(runs: Sequence[RunRecord]) -> list[str]:
    """A colour class for each run: blue is the reference, red is attacked without defence, the others follow."""
    reference, spare = clean_run(runs), 0
    colours = []
    for run in runs:
        if run is reference:
            colours.append("blue")
        elif run.config.get("attack") and run.defence == "none" and "red" not in colours:
            colours.append("red")
        else:
            colours.append(OTHERS[spare % len(OTHERS)])
            spare += 1
    return colours


def headline(runs: Sequence[RunRecord]) -> str:
    """The one sentence that the page would keep if it could keep only one."""
    reference = clean_run(runs)
    defended = [run for run in runs if run.config.get("attack") and run.defence != "none"]
    for run in defended:
        if reference is not None and run.result.get("weights_digest") == reference.result.get("weights_digest"):
            forged = int(run.result.get("attacked_claims", 0))
            return f"{forged:,} forged claims, and the same weights as the clean run, bit for bit"
    if len(runs) == 1:
        steps = int(runs[0].result.get("steps", 0))
        caught = len(runs[0].catches)
        lost = len({record["worker"] for record in runs[0].of("WorkerLost")})
        gone = f"{lost} worker{'' if lost == 1 else 's'} lost, " if lost else ""
        return f"{steps:,} steps, {gone}" + (
            f"{caught} {'liar' if caught == 1 else 'liars'} caught" if caught else "nobody caught lying"
        )
    return f"A comparison of {len(runs)} runs"


def _header(runs: Sequence[RunRecord]) -> str:
    started = runs[-1].started if runs else {}
    parameters = f"{started['parameters']:,} parameters in " if "parameters" in started else ""
    model = str(runs[-1].config.get("model", {}).get("name", "")) if runs else ""
    told = f"{parameters}{runs[-1].stages} stages, model {model}" if runs else ""
    return f'<header><p class="brand">Holdfast</p><h1>{escape(headline(runs))}</h1><p class="note">{escape(told)}</p></header>'


def _placement_section(runs: Sequence[RunRecord]) -> list[str]:
    table = placement_table(runs[0]) if len(runs) == 1 else ""
    return [_section("Who carried what", table, "A step on the engine's clock: as predicted, and as it was.")] if table else []


def _tiles(runs: Sequence[RunRecord]) -> str:
    """The few numbers that matter, large: clean, attacked, defended, detection."""
    reference = clean_run(runs)
    tiles = []
    if reference is not None:
        tiles.append(("clean perplexity", figure(reference.perplexity), "blue"))
    attacked = [run for run in runs if run.config.get("attack")]
    for run, colour in zip(runs, series(runs), strict=True):
        ratio = against_clean(run, reference)
        if run in attacked and not math.isnan(ratio):
            tiles.append((f"perplexity {run.label}", f"× {ratio:.2f}", colour))
    defended = [run for run in attacked if run.defence != "none"]
    if defended:
        detected, missed, alarms = (
            sum(int(run.result.get(key, 0)) for run in defended) for key in ("detected", "missed", "false_alarms")
        )
        tiles += [("forged claims detected", f"{detected:,} of {detected + missed:,}", ""), ("false alarms", f"{alarms:,}", "")]
    cells = (
        f'<div class="tile {colour}"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value, colour in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>' if tiles else ""


def _words(runs: Sequence[RunRecord]) -> str:
    said = [MEANINGS[clock] for clock in dict.fromkeys(run.clock for run in runs) if clock in MEANINGS]
    if any(run.config.get("attack") for run in runs):
        said.insert(0, "A claim is one tensor that one stage sends for one micro-batch.")
        said.insert(1, "Dropped: thrown away with its step before anybody had to rule on it.")
    return f'<p class="note words">{" ".join(said)}</p>' if said else ""


def _table(runs: Sequence[RunRecord], colours: Sequence[str]) -> str:
    left = {"label", "weights", "remedy"}
    shown = {name: heading for name, heading in columns(runs).items() if name != "defence"}
    heads = "".join(f"<th{'' if name in left else ' class=num'}>{escape(heading)}</th>" for name, heading in shown.items())
    body = "".join(_table_row(row, shown, colour) for row, colour in zip(rows(runs), colours, strict=True))
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _table_row(row: Row, shown: Iterable[str], colour: str) -> str:
    marks = {"equal": "✓ equal to clean", "differ": "differ", "reference": "reference"}
    defence = "" if row.defence == "none" else f"<small>{escape(row.defence)}</small>"
    cells = [f'<td><i class="swatch {colour}"></i>{escape(row.label)}{defence}</td>']
    for name in list(shown)[1:]:
        value = escape(content(row, name))
        if name == "weights":
            digest = f"<code>{escape(row.digest)}</code>" if row.digest else ""
            cells.append(f'<td class="weights {value if value in marks else "other"}">{marks.get(value, value)}{digest}</td>')
        else:
            cells.append(f"<td>{value}</td>" if name == "remedy" else f'<td class="num">{value}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _pipeline_section(runs: Sequence[RunRecord]) -> list[str]:
    drawn = next((run for run in reversed(runs) if run.defence != "none"), runs[-1] if runs else None)
    if drawn is None or drawn.stages < 1:
        return []
    note = f"As the run “{drawn.label}” began. Solid: tensors forward and backward. "
    if drawn.defence.startswith("duplicate"):
        note += "Dashed: the jumping connection, from which each shadow recomputes the stage before its own."
    return [_section("Pipeline", f'<div class="wide">{pipeline_drawing(drawn)}</div>', note)]


def _caught_sections(runs: Sequence[RunRecord]) -> list[str]:
    found = []
    for run in runs:
        drawn = timeline(run)
        if drawn:
            told = f'{legend(run)}<div class="wide">{drawn}</div>{_catches(run)}{_account(run)}'
            found.append(_section(f"{_question(run)}, and when: {run.label}", told))
    return found


def _question(run: RunRecord) -> str:
    if run.of("Alert", "Ruling"):
        return "Who was caught"
    return "Who was lost" if run.of("WorkerLost") else "What changed"


def _account(run: RunRecord) -> str:
    sentences = account(run)
    shown = [
        *sentences[:MOST_SENTENCES],
        *([f"And {len(sentences) - MOST_SENTENCES} more."] * (len(sentences) > MOST_SENTENCES)),
    ]
    items = "".join(f"<li>{escape(printable(sentence))}</li>" for sentence in shown)
    return f'<ul class="account">{items}</ul>' if items else ""


def _catches(run: RunRecord) -> str:
    if not run.catches:
        return f'<p class="note words">{escape(verdict(run))}</p>'
    body = "".join(
        f"<tr><td><code>{escape(catch.worker)}</code></td><td class=num>{catch.stage}</td><td class=num>{catch.lies}</td>"
        f"<td class=num>{catch.first_step}</td><td class=num>{catch.first_seconds:.2f}</td>"
        f"<td class=num>{catch.last_step}</td></tr>"
        for catch in run.catches
    )
    names = ("stage", "proven lies", "first caught in step", f"at {escape(run.clock)} s", "last in step")
    heads = "<th>worker</th>" + "".join(f"<th class=num>{name}</th>" for name in names)
    return f'<div class="wide"><table class="narrow"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _repeat(runs: Sequence[RunRecord]) -> str:
    if not runs:
        return ""
    started = runs[-1].started
    command = shlex.join(started.get("command", ()))
    parts = [f"<pre>{escape(command)}</pre>"] if command else []
    environment = started.get("environment", {})
    if environment:
        entries = "".join(
            f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd></div>" for key, value in environment.items()
        )
        parts.append(f"<dl>{entries}</dl>")
    parts += [
        f"<details><summary>Settings of {escape(run.label)}</summary><pre>{_settings(run.config)}</pre></details>"
        for run in runs
    ]
    return "".join(parts)


def _settings(config: Mapping[str, Any]) -> str:
    lines: list[str] = []
    for name, value in config.items():
        for table in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(table, Mapping):
                lines.append(f"[{name}]")
                lines += [f"{key} = {setting!r}" for key, setting in table.items() if setting is not None]
            else:
                lines.append(f"{name} = {table!r}")
    return escape("\n".join(lines))


def _section(name: str, content: str, note: str = "") -> str:
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(name)}</h2>{told}{content}</section>"
