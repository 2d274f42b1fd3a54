"""A table on paper: Markdown, LaTeX (booktabs), CSV with one row a cell, a figure; and the cells with their whole origin."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from holdfast.atomic import write_file
from holdfast.bench.paper.columns import BEFORE, CLEAN
from holdfast.bench.paper.table import Results, grid, sections, words
from holdfast.report.pipes import pipes
from holdfast.sweep.draw import is_log
from holdfast.sweep.frame import frame
from holdfast.sweep.record import LINES, write_lines
from holdfast.sweep.style import BLUE, GREEN, GREY, PINK, STYLE, VERMILION, require_matplotlib, save
from holdfast.sweep.text import escaped

PALETTE = (BLUE, VERMILION, GREEN, PINK)
MARKS = ("o", "s", "^", "D")


def write(out: Path, results: Results, environment: Mapping[str, Any]) -> None:
    """NAME.md, .tex, .csv, the figure, and cells.jsonl in `out`."""
    name = results.question.table
    out.mkdir(parents=True, exist_ok=True)
    texts = {"md": markdown(results, environment), "tex": latex(results), "csv": frame(results.records).to_csv(index=False)}
    for form, text in texts.items():
        write_file(out / f"{name}.{form}", text.encode(), mode=0o644)
    write_lines(out / LINES, results.records)
    draw(out, results)


def markdown(results: Results, environment: Mapping[str, Any]) -> str:
    parts = [f"# {_title(results)}\n", "".join(f"- {line}\n" for line in words(results))]
    for section in sections(results.question):
        title = f"## {section.title}\n\n" if section.title else ""
        parts.append(title + pipes(*grid(results, section), left=2))
    parts.append("Where it was measured: " + json.dumps(dict(environment)) + "\n")
    return "\n".join(parts)


def latex(results: Results) -> str:
    """One `tabular` a section, for the package booktabs."""
    parts = [f"% {_title(results)}\n", *(f"% {line}\n" for line in words(results))]
    for section in sections(results.question):
        headings, lines = grid(results, section)
        body = [" & ".join(map(escaped, line)) + r" \\" for line in lines]
        parts += [
            f"% {section.title}\n" if section.title else "",
            rf"\begin{{tabular}}{{ll{'r' * (len(headings) - 2)}}}" + "\n",
            "\\toprule\n" + " & ".join(map(escaped, headings)) + " \\\\\n\\midrule\n",
            "\n".join(body) + "\n\\bottomrule\n\\end{tabular}\n",
        ]
    return "".join(parts)


def draw(out: Path, results: Results) -> list[Path]:
    """Every run against the mean clean run of its row, a dot each above its column's name; logarithmic if far apart."""
    matplotlib = require_matplotlib()
    from matplotlib import pyplot

    names = [column.name for column in results.question.columns if column.name not in (BEFORE,)]
    with matplotlib.rc_context(STYLE):
        drawn: list[float] = []
        figure, axes = pyplot.subplots(figsize=(2.2 + 0.75 * len(names), 4.2), layout="constrained")
        for index, row in enumerate(results.rows):
            clean = results.summary(row, CLEAN)
            if clean is None:
                continue
            model, data = (results.question.models.index(row[0]), results.question.data.index(row[1]))
            shift = 0.6 * ((index + 0.5) / len(results.rows) - 0.5)
            for x, name in enumerate(names):
                found = results.summary(row, name)
                values = [value / clean.mean for value in found.values] if found is not None else []
                drawn += [value for value in values if math.isfinite(value)]
                axes.plot([x + shift] * len(values), values, MARKS[data % 4], ms=4, color=PALETTE[model % 4], mew=0, alpha=0.8)
        axes.axhline(1.0, color=GREY, lw=0.7, zorder=0)
        if is_log(drawn):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], rotation=45, ha="right")
        axes.set_ylabel("perplexity against the clean run")
        axes.spines[["top", "right"]].set_visible(False)
        for color, name in zip(cycle(PALETTE), results.question.models, strict=False):
            axes.plot([], [], "o", color=color, label=name)
        for mark, name in zip(cycle(MARKS), results.question.data, strict=False):
            axes.plot([], [], mark, color=GREY, label=name)
        axes.legend(frameon=False, fontsize=8, ncols=2)
        axes.set_title(_title(results), loc="left", fontsize=9, fontweight="bold")
        paths = save(figure, out, results.question.table)
        pyplot.close(figure)
    return paths


def _title(results: Results) -> str:
    question = results.question
    return f"Table {question.table[-1]} at the scale {question.scale.name}, {len(question.seeds)} seed(s)"
