"""The rows of `holdfast bench backdoor` on paper: JSON lines and CSV with all that a row depends on; Markdown for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.backdoor import Question, Row
from holdfast.bench.writing import span, write_tables
from holdfast.report.pipes import pipes

POOLED = ("run", "attack", "variant", "mode", "learning_rate", "steps")
"""Rows that agree in these are the seeds of one measurement."""

COLUMNS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "run": lambda rows: rows[0].run,
    "attack": lambda rows: rows[0].attack,
    "variant": lambda rows: rows[0].variant,
    "mode": lambda rows: rows[0].mode,
    "steps": lambda rows: str(rows[0].steps),
    "rate": lambda rows: f"{rows[0].learning_rate:g}" if rows[0].learning_rate else "",
    "success": lambda rows: span([row.success for row in rows], 3),
    "without the phrase": lambda rows: span([row.success_without for row in rows], 3),
    "perplexity": lambda rows: span([row.perplexity for row in rows]),
    "weights": lambda rows: _counted([row.weights for row in rows]),
    "named": lambda rows: _counted([row.named for row in rows]),
    "caught": lambda rows: _caught(rows),
}

EXPLAINED = """\
Success: share of held-out prompts that end in the phrase, after which every token of the target is the likeliest; without the
phrase: the same for prompts that do not. Weights: against those of the clean run. Caught: forged claims with an alert, of all
forged claims. Several seeds: median (least to greatest).
"""


def records(rows: Sequence[Row], question: Question, environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Plain values: the row, then what was asked, then the environment."""
    asked = {
        "scale_model": question.model or question.scale.model,
        "stages": question.stages,
        "data": question.data,
        "phrase": question.phrase,
        "target": question.target,
    }
    return [{**dataclasses.asdict(row), **asked, **environment} for row in rows]


def render(rows: Sequence[Row]) -> str:
    """The pooled table in Markdown, in the order of the runs."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in POOLED), []).append(row)
    return pipes(list(COLUMNS), [[tell(group) for tell in COLUMNS.values()] for group in groups.values()])


def write(out: Path, rows: Sequence[Row], question: Question, environment: Mapping[str, Any]) -> None:
    """backdoor.jsonl, .csv and .md, environment.json in `out`."""
    told = records(rows, question, environment)
    where = f"The liar is {question.liar}, at stage {question.stage} of {question.stages}"
    asked = f"{where}; the trigger {question.phrase!r} shall be followed by {question.target!r}."
    parts = ["# Backdoors\n", asked + "\n", render(rows), EXPLAINED, json.dumps(dict(environment)) + "\n"]
    write_tables(out, "backdoor", told, "\n".join(parts), environment)


def _counted(words: Sequence[str]) -> str:
    """
    >>> _counted(["w4"]), _counted(["w4", "w4", "w1"]), _counted(["", ""])
    ('w4', 'w4 2/3, w1 1/3', '')
    """
    found = {word: words.count(word) for word in words if word}
    if len(words) == 1 or not found:
        return "".join(found)
    return ", ".join(f"{word} {count}/{len(words)}" for word, count in found.items())


def _caught(rows: Sequence[Row]) -> str:
    attacked = sum(row.attacked_claims for row in rows)
    return f"{sum(row.detected for row in rows)}/{attacked}" if attacked else ""
