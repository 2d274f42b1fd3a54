"""The cells of a table brought together: means over seeds with 95 % intervals (Student's t), and what they say in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.bench.paper.columns import BEFORE, CLEAN, DEPTH, DROPOUT, Column
from holdfast.bench.paper.figures import printed
from holdfast.bench.paper.grid import Question
from holdfast.bench.paper.scale import PAPER_RATE
from holdfast.bench.writing import ends
from holdfast.sweep.frame import mean
from holdfast.sweep.record import Record

HONEST = "nobody lies"


@dataclass(frozen=True)
class Summary:
    """Perplexities of the seeds: their mean, and half the width of its interval (None for a single seed)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def half(self) -> float | None:
        """
        >>> round(Summary((1.0, 2.0, 3.0)).half, 3)
        2.484
        """
        if len(self.values) < 2 or not math.isfinite(self.mean):
            return None
        found = mean(self.values)
        return (found.high - found.low) / 2

    def __str__(self) -> str:
        """
        >>> str(Summary((99.0, 101.0))), str(Summary((7.25,)))
        ('100.0 ± 12.7', '7.2')
        """
        half = self.half
        return f"{self.mean:,.1f}" + (f" ± {half:,.1f}" if half is not None else "")


@dataclass(frozen=True)
class Section:
    """Columns that are read side by side, under the names that they have there."""

    title: str
    columns: Mapping[str, str]


class Results:
    """The records of a question by row, column and seed; cells that failed are left out."""

    def __init__(self, question: Question, records: Sequence[Record]) -> None:
        self.question = question
        self.records = list(records)
        self._found = {(r.axes["model"], r.axes["data"], r.axes["column"], r.axes["seed"]): r for r in records if r.ok}

    @property
    def rows(self) -> list[tuple[str, str]]:
        return self.question.rows

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if not record.ok]

    def value(self, row: tuple[str, str], column: str, seed: int, name: str) -> Any:
        record = self._found.get((*row, column, 0 if column == BEFORE else seed))
        return None if record is None else (record.result or {}).get(name)

    def summary(self, row: tuple[str, str], column: str) -> Summary | None:
        """The perplexities of a cell of the table; what is not finite (a poisoned run) counts as infinite."""
        seeds = list(self.question.seeds)[:1] if column == BEFORE else self.question.seeds
        there = [seed for seed in seeds if self.value(row, column, seed, "run_id") is not None]
        values = [self.value(row, column, seed, "validation_perplexity") for seed in there]
        return Summary(tuple(math.inf if value is None else value for value in values)) if values else None

    def equal(self, column: str, reference: str) -> tuple[int, int]:
        """In how many pairs of runs (of all) `column` ended with the same weights as `reference`, byte for byte."""
        pairs = [
            (self.value(row, column, seed, "weights_digest"), self.value(row, reference, seed, "weights_digest"))
            for row in self.rows
            for seed in self.question.seeds
        ]
        known = [pair for pair in pairs if None not in pair]
        return sum(one == other for one, other in known), len(known)

    def total(self, columns: Sequence[Column], name: str) -> int:
        return sum(
            self.value(row, column.name, seed, name) or 0
            for column in columns
            for row in self.rows
            for seed in self.question.seeds
        )


def sections(question: Question) -> list[Section]:
    """What is read together: the runs in which nobody lies, then each attack with what is done about it."""
    honest = [column.name for column in question.columns if not column.attack]
    attacks = dict.fromkeys(column.attack for column in question.columns if column.attack)
    if question.table == "table1":
        return [Section("", {column.name: column.name for column in question.columns})]
    found = [Section(HONEST, {name: name for name in honest})]
    for attack in attacks:
        struck = [column for column in question.columns if column.attack == attack]
        names = {column.name: column.remedy or "attacked" for column in struck}
        found.append(Section(struck[0].name, {CLEAN: CLEAN, **names}))
    return found


def grid(results: Results, section: Section) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of a section; at the paper's own scale its figures stand in brackets."""
    lines = []
    for row in results.rows:
        told = printed(results.question.table, *row) if results.question.scale.name == "paper" else {}
        cells = []
        for column in section.columns:
            found = results.summary(row, column)
            mine = "–" if found is None else str(found)
            cells.append(mine + (f" [paper: {told[column]:g}]" if column in told else ""))
        lines.append([*row, *cells])
    return ["model", "data", *section.columns.values()], lines


def words(results: Results) -> list[str]:
    """What the table shows, one line each."""
    tell: list[Callable[[Results], list[str]]] = [
        _settings,
        _clean,
        _overfitting,
        _attacked,
        _bits,
        _regularisation,
        _alarms,
        _failures,
    ]
    return [line for each in tell for line in each(results)]


def broken_promises(results: Results) -> list[str]:
    """Runs that were defended by `replace` or `restart` and have other weights than the clean one of their seed."""
    found = []
    for column in results.question.columns:
        if column.remedy in ("replace", "restart"):
            equal, all_of_them = results.equal(column.name, CLEAN)
            if equal < all_of_them:
                found.append(
                    f"{column.name}: {all_of_them - equal} of {all_of_them} runs have other weights than the clean run"
                )
    return found


def _settings(results: Results) -> list[str]:
    question = results.question
    optimizer, training = question.scale.tables["optimizer"], question.scale.tables["training"]
    steps = training["steps"] if question.steps is None else question.steps
    rate = optimizer["learning_rate"]
    told = f"Scale {question.scale.name}: {steps} steps at learning rate {rate:g}"
    if question.overfit:
        told += f", on {question.scale.tables['data']['train_tokens']:,} tokens, read over and over"
    if rate != PAPER_RATE:
        told += f", {rate / PAPER_RATE:.0f} times the paper's {PAPER_RATE:g}, which would barely move models of this size"
    if question.assignments:
        told += f"; with {', '.join(question.assignments)}"
    seeds = f"{len(question.seeds)} seed{'s' if len(question.seeds) > 1 else ''}"
    return [f"{told}. Validation perplexity, mean of {seeds}" + (" ± 95 % interval." if len(question.seeds) > 1 else ".")]


def _clean(results: Results) -> list[str]:
    ratios = _ratios(results, CLEAN, BEFORE)
    better = sum(ratio < 1 for ratio in ratios)
    if not ratios:
        return []
    of = f"{better} of {len(ratios)} rows"
    return [f"Clean fine-tuning improves on the starting model in {of} ({ends(ratios, ',.2f')} times before)."]


def _overfitting(results: Results) -> list[str]:
    """What the clean runs were worth at their best, where that was looked at on the way."""
    ratios, steps = [], []
    for row in results.rows:
        for seed in results.question.seeds:
            names = ("best_perplexity", "best_step", "validation_perplexity")
            best, step, end = (results.value(row, CLEAN, seed, name) for name in names)
            if best and end:
                ratios.append(end / best)
                steps.append(float(step))
    if not ratios:
        return []
    worse = sum(ratio > 1 for ratio in ratios)
    return [
        f"Overfitting: {worse} of {len(ratios)} clean runs end worse than they had been: {ends(ratios, ',.2f')} times their "
        f"own best, which was after step {ends(steps, '.0f')}."
    ]


def _attacked(results: Results) -> list[str]:
    lines = []
    for column in results.question.columns:
        ratios = _ratios(results, column.name, CLEAN)
        if not column.attack or column.remedy or not ratios:
            continue
        line = f"{column.name}, undefended: {ends(ratios, ',.2f')} times clean"
        pairs = [(results.summary(row, column.name), results.summary(row, CLEAN)) for row in results.rows]
        known = [(struck, clean) for struck, clean in pairs if struck is not None and clean is not None]
        if len(results.question.seeds) > 1:
            apart = sum(min(struck.values) > max(clean.values) for struck, clean in known)
            multiples = [_multiple(struck, clean) for struck, clean in known]
            line += (
                f"; in {apart} of {len(known)} rows every attacked run is worse than every clean one, and the means are "
                f"{ends(multiples, ',.2f')} standard deviations of the clean seeds apart; {_paired(results, column.name)}"
            )
        lines.append(line + ".")
    return lines


def _bits(results: Results) -> list[str]:
    lines = []
    for remedy in ("replace", "restart"):
        counts = [results.equal(c.name, CLEAN) for c in results.question.columns if c.remedy == remedy]
        equal, of = (sum(part) for part in zip(*counts, strict=True)) if counts else (0, 0)
        if of:
            lines.append(f"Defended by {remedy}: {equal} of {of} runs end with the weights of the clean run, bit for bit.")
    return lines


def _regularisation(results: Results) -> list[str]:
    skips = [column.name for column in results.question.columns if column.remedy == "skip"]
    if not skips:
        return []
    counts = [results.equal(name, DEPTH) for name in skips]
    equal, of = (sum(part) for part in zip(*counts, strict=True))
    parts = {"skip": skips, "the same stages left out without an attacker": [DEPTH], "dropout": [DROPOUT]}
    told = []
    for name, columns in parts.items():
        ratios = [ratio for column in columns for ratio in _ratios(results, column, CLEAN)]
        if ratios:
            apart = f" ({_paired(results, columns[0])})" if len(results.question.seeds) > 1 else ""
            told.append(f"{name} {ends(ratios, ',.2f')}{apart}")
    line = f"Against clean: {'; '.join(told)}. {equal} of {of} runs with skip end with the bits of that control"
    if equal == of:
        line += ": what skip gains or loses against clean is stochastic depth alone"
    return [line + "."]


def _alarms(results: Results) -> list[str]:
    defended = [column for column in results.question.columns if column.remedy]
    numbers = {name: results.total(defended, name) for name in ("attacked_claims", "detected", "missed", "false_alarms")}
    return [
        f"Defended runs: {numbers['attacked_claims']:,} forged claims, {numbers['detected']:,} caught, "
        f"{numbers['missed']:,} missed (the others were dropped with their step before anybody had to rule), "
        f"{numbers['false_alarms']:,} false alarms."
    ]


def _failures(results: Results) -> list[str]:
    return [f"FAILED: {' '.join(map(str, record.axes.values()))}: {record.error}" for record in results.failed]


def _ratios(results: Results, column: str, reference: str) -> list[float]:
    pairs = [(results.summary(row, column), results.summary(row, reference)) for row in results.rows]
    return [one.mean / other.mean for one, other in pairs if one is not None and other is not None]


def _paired(results: Results, column: str) -> str:
    """The ratio to the clean run of the same seed, geometric mean over rows, with its interval over seeds."""
    ratios = []
    for seed in results.question.seeds:
        pairs = [[results.value(row, name, seed, "validation_perplexity") for name in (column, CLEAN)] for row in results.rows]
        known = [struck / clean for struck, clean in pairs if struck and clean]
        if known:
            ratios.append(statistics.geometric_mean(known))
    found = mean(ratios, geometric=True)
    if found.n < 2:
        return "no finite pairs of runs for an interval"
    return f"seed by seed {found.mean:,.2f} times clean, 95 % interval {found.low:,.2f} to {found.high:,.2f}"


def _multiple(struck: Summary, clean: Summary) -> float:
    spread = statistics.stdev(clean.values) if len(clean.values) > 1 else 0.0
    return (struck.mean - clean.mean) / spread if spread else math.inf
