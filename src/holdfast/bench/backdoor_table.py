"""The rows of `holdfast bench backdoor` on paper: JSON lines and CSV with all that a row depends on; Markdown for people."""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.backdoor import Question, Row

POOLED = ("run", "attack", "variant", "mode", "learning_rate", "steps")
"""Rows that agree in these are the seeds of one measurement."""

COLUMNS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "run": lambda rows: rows[0].run,
    "attack": lambda rows: rows[0].attack,
    "variant": lambda rows: rows[0].variant,
    "mode": lambda rows: rows[0].mode,
    "steps": lambda rows: str(rows[0].steps),
    "rate": lambda rows: f"{rows[0].learning_rate:g}" if rows[0].learning_rate else "",
    "success": lambda rows: _spread([row.success for row in rows]),
    "without the phrase": lambda rows: _spread([row.success_without for row in rows]),
    "perplexity": lambda rows: _spread([row.perplexity for row in rows], digits=2),
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
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(tell(group) for tell in COLUMNS.values()) + " |" for group in groups.values()]
    return "\n".join(lines) + "\n"


def write(out: Path, rows: Sequence[Row], question: Question, environment: Mapping[str, Any]) -> None:
    """backdoor.jsonl, backdoor.csv and backdoor.md in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    told = records(rows, question, environment)
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in told)
    (out / "backdoor.jsonl").write_text(lines, encoding="utf-8")
    with (out / "backdoor.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(told[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(told)
    where = f"The liar is {question.liar}, at stage {question.stage} of {question.stages}"
    asked = f"{where}; the trigger {question.phrase!r} shall be followed by {question.target!r}."
    parts = ["# Backdoors\n", asked + "\n", render(rows), EXPLAINED, json.dumps(dict(environment)) + "\n"]
    (out / "backdoor.md").write_text("\n".join(parts), encoding="utf-8")


def _spread(values: Sequence[float], digits: int = 3) -> str:
    """
    >>> _spread([0.5]), _spread([0.25, 1.0, 0.5])
    ('0.500', '0.500 (0.250 to 1.000)')
    """
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


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
