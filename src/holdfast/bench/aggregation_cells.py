"""How the experiment on aggregation is measured: for each seed a watched run and the trainings, and the small runs of the jump.

watched     an honest run of the start, and lies in earnest     training    with aggregates in place of what is honest
jump        cells of the experiment on detection
"""

from __future__ import annotations

import math
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from holdfast.atomic import new_directory
from holdfast.bench import aggregation, workshop
from holdfast.bench.aggregated import Trained, train
from holdfast.bench.aggregation import IN_EARNEST, JUMP_DEFENCES, Findings, Question
from holdfast.bench.carryover import (
    Cascade,
    CascadeCount,
    Scoreboard,
    SeedScore,
    cascade_counts,
    cascade_rows,
    score_rows,
    seed_scores,
)
from holdfast.bench.cell import Setup
from holdfast.bench.replicas import Ballot, Committee, replica_rows
from holdfast.bench.rows import rows_of
from holdfast.bench.spread import Spread, spread_rows, spreads
from holdfast.bench.suites import Grid, Plan, plan
from holdfast.bench.traffic import Window, watch
from holdfast.experiment import Experiment
from holdfast.job import Job
from holdfast.sweep.cell import Cell
from holdfast.sweep.record import Record, telling_first
from holdfast.sweep.store import Store
from holdfast.sweep.study import Study
from holdfast.trainer import prepare_tested

WATCHED, TRAINING, JUMP = "watched", "training", "jump"
WATCHING = ("tests", "cascade")
"""Parts of the question that one watched run answers."""


def study_of(question: Question, directory: Path) -> Study:
    """The question as cells; models that are made on the way lie in `directory`."""
    runner = Measuring(question, directory)
    return Study("aggregation", cells_of(question), runner, runner.command)


def cells_of(question: Question) -> list[Cell]:
    """The watched runs of all seeds, then the trainings, then the jump."""
    scale = asdict(question.scale)
    parts = [part for part in WATCHING if part in question.parts]
    watched = {"scale": scale, "attacks": list(question.attacks), "parts": parts}
    found = [_cell(question, WATCHED, seed, watched) for seed in question.seeds if parts]
    found += [_cell(question, TRAINING, seed, {"scale": scale}) for seed in question.seeds if "training" in question.parts]
    if "jump" in question.parts:
        cells = workshop.study_of(_jump(question).cells, _setup(question)).cells
        found += [replace(cell, axes={"part": JUMP, **cell.axes}) for cell in cells]
    return found


@dataclass(frozen=True)
class Measuring:
    """Measures a cell. The start of a seed is made once and kept below `directory`."""

    question: Question
    directory: Path

    def __call__(self, cell: Cell) -> Mapping[str, Any]:
        if cell.axes["part"] == JUMP:
            return workshop.measure_cell(cell)
        seed = int(cell.axes["seed"] or 0)
        start = self.question.model or self._start(cell)
        job = prepare_tested(self.question.config(start, seed))
        measured = self._watched if cell.axes["part"] == WATCHED else self._trained
        return measured(start, seed, job)

    def command(self, cell: Cell) -> str:
        """The command line that measures the cell again, with as little else as can be."""
        question = self.question
        names = [name for name, scale in aggregation.SCALES.items() if scale == question.scale]
        words = ["holdfast", "bench", "aggregation", *(word for name in names for word in ("--scale", name))]
        parts = {WATCHED: WATCHING, TRAINING: (TRAINING,), JUMP: (JUMP,)}[str(cell.axes["part"])]
        words += [word for part in parts if part in question.parts for word in ("--part", part)]
        if cell.axes["part"] == WATCHED and question.attacks != aggregation.ATTACKS:
            words += [word for spec in question.attacks for word in ("--attack", spec)]
        given = {"--model": question.model, "--stages": question.stages, "--data": question.data}
        words += [str(word) for name, value in given.items() if value is not None for word in (name, value)]
        words += [word for text in question.assignments for word in ("--set", text)]
        return shlex.join([*words, "--seeds", "1", "--first-seed", str(cell.axes["seed"])])

    def _start(self, cell: Cell) -> str:
        """Pre-trained as the cell's own settings say."""
        path = self.directory / "models" / f"start-{Cell({}, cell.tables).key[:12]}"
        if not path.is_dir():
            with tempfile.TemporaryDirectory(prefix="holdfast-start-") as place:
                out = Path(place) / "start"
                Experiment(cell.config, output={"dir": str(out)}).run()
                try:
                    with new_directory(path) as made:
                        shutil.copytree(out / "model", made, dirs_exist_ok=True)
                except OSError:  # another process may have been first: the same command makes the same model
                    if not path.is_dir():
                        raise
        return str(path)

    def _watched(self, start: str, seed: int, job: Job) -> dict[str, Any]:
        question = self.question
        board, committee = Scoreboard(question.scale.steps), Committee()
        steps: list[Spread] = []

        def sink(window: Window) -> None:
            board.add(window)
            committee.add(window)
            steps.extend(spreads(window, seed))

        watch(question.config(start, seed), job, question.attacks, sink)
        committee.unlike(job)
        counts = [count for attack in self._in_earnest() for count in self._cascade(start, seed, job, attack, board)]
        found = seed_scores(board)
        return {
            "rows": _best(found),
            "scores": [asdict(score) for score in found],
            "spread": [asdict(step) for step in steps],
            "ballots": [asdict(ballot) for ballot in committee.ballots()],
            "cascade": [asdict(count) for count in counts],
            "repeated": committee.repeated,
            "equal": committee.equal,
        }

    def _in_earnest(self) -> Sequence[str]:
        return IN_EARNEST if "cascade" in self.question.parts else ()

    def _cascade(self, start: str, seed: int, job: Job, attack: str, board: Scoreboard) -> list[CascadeCount]:
        windows: list[Window] = []
        _, ledger = watch(self.question.config(start, seed, attack=attack), job, (), windows.append, weights=False)
        cascade = Cascade(attack, board)
        cascade.count(windows, ledger)
        return cascade_counts(cascade)

    def _trained(self, start: str, seed: int, job: Job) -> dict[str, Any]:
        question = self.question
        of_steps = replace(job, config=question.config(start, seed, question.scale.treated))
        pairs = question.scale.treatments
        rows = [replace(train(of_steps, replaced, by, question.middle), seed=seed) for replaced, by in pairs]
        told = ("perplexity", "loss", "cosine")
        return {"rows": [telling_first(asdict(row), told) for row in rows], "unigram": unigram_perplexity(job)}


def gather(question: Question, records: Sequence[Record]) -> Findings:
    """All tables, pooled over the seeds."""
    findings = Findings(question)
    whole = [(record.axes["part"], record.axes, record.result) for record in records if record.result is not None]
    watched = [result for part, _, result in whole if part == WATCHED]
    findings.tests = score_rows([[SeedScore(**_tuples(one)) for one in result["scores"]] for result in watched])
    findings.spread_steps = [Spread(**one) for result in watched for one in result["spread"]]
    findings.spread = spread_rows(findings.spread_steps)
    findings.cascade = cascade_rows(CascadeCount(**one) for result in watched for one in result["cascade"])
    findings.replicas = replica_rows(Ballot(**_tuples(one)) for result in watched for one in result["ballots"])
    findings.repeated = sum(result["repeated"] for result in watched)
    findings.repeated_equal = sum(result["equal"] for result in watched)
    for part, axes, result in whole:
        if part == TRAINING:
            findings.training += [Trained(**row) for row in result["rows"]]
            findings.unigram[int(axes["seed"] or 0)] = result["unigram"]
    if "jump" in question.parts:
        _add_jump(findings, [record for record in records if record.axes["part"] == JUMP])
    return findings


def run(question: Question) -> Findings:
    """The whole experiment, nothing kept."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        return gather(question, study_of(question, Path(directory)).run(Store(directory)))


def unigram_perplexity(job: Job) -> float:
    """The perplexity of one who knows how often each token is and nothing else, with one added to each count."""
    size = len(job.tokenizer)
    counts = torch.bincount(job.batches.tokens.flatten(), minlength=size).double() + 1
    nats = -(counts / counts.sum()).log()[job.validation.ids[:, 1:].flatten()]
    return math.exp(float(nats.mean()))


def _best(scores: Sequence[SeedScore]) -> list[dict[str, Any]]:
    """For each attack where all micro-batches are forged, the test that did best, chosen afterwards: a bound from above."""
    best: dict[tuple[str, str], SeedScore] = {}
    for score in scores:
        key = (score.direction, score.attack)
        if score.how == "all" and score.test != "voting" and (key not in best or score.auc > best[key].auc):
            best[key] = score
    return [
        {
            "direction": score.direction,
            "attack": score.attack,
            "best_area": score.auc,
            "found": score.detected / score.lies,
            "false_alarms": score.alarms / score.honest,
        }
        for score in best.values()
    ]


def _cell(question: Question, part: str, seed: int, more: Mapping[str, Any]) -> Cell:
    """Its settings are those of the run that makes the start; `more` says what is done with it."""
    config = question.config("", seed, question.scale.pretraining)
    told = {**more, "seed": seed, "middle": question.middle}
    return Cell({"part": part, "seed": seed}, config.model_dump(mode="json", exclude_none=True), f"aggregation: {part}", told)


def _setup(question: Question) -> Setup:
    return Setup("tiny", question.scale.jump[1])


def _jump(question: Question) -> Plan:
    seeds = range(question.seeds[0], question.seeds[0] + question.scale.jump[0])
    return plan(Grid(aggregation.JUMP_ATTACKS, JUMP_DEFENCES, rates=(1.0,), seeds=seeds), _setup(question))


def _add_jump(findings: Findings, records: Sequence[Record]) -> None:
    bare = [replace(record, axes={name: value for name, value in record.axes.items() if name != "part"}) for record in records]
    outcomes = [workshop.outcome_of(record) for record in bare]
    shown = [outcome.cell for outcome in outcomes if outcome.cell.defence in JUMP_DEFENCES]
    findings.jump = rows_of(outcomes, _setup(findings.question), shown)
    lost = [outcome for outcome in outcomes if outcome.measurement is None and not outcome.stopped]
    findings.failed = [f"{outcome.cell}: {outcome.error}" for outcome in lost]


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
