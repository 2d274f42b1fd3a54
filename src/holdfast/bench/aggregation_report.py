"""What is written of the experiment on aggregation: tidy tables with every column, a page for people, the figures.

aggregation.jsonl    every row of every table, with its `table`; a test's row has its ROC curve
aggregation.csv      the tests: direction, view, test, attack, how many lie -> rates with intervals
spread.csv  spread-steps.csv  cascade.csv  training.csv  replicas.csv  jump.csv  references.csv
aggregation.md  environment.json  aggregation.* roc.* variation.* (svg, pdf, png)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.bench.aggregated import NOTHING as UNTREATED
from holdfast.bench.aggregation import Findings
from holdfast.bench.carryover import GRID, HOW, ScoreRow, of_tests
from holdfast.bench.outliers import TESTS, VIEWS
from holdfast.bench.table import COLUMNS
from holdfast.bench.writing import ENVIRONMENT, as_csv, as_lines, put, span
from holdfast.report.pipes import NOTHING, pipes, told_pipes

KINDS = {"forward": "activations", "backward": "input gradients", "weight gradient": "weight gradients"}
INTRODUCTION = """\
Federated learning holds many gradients of the same weights against one another. A stage of a pipeline sees, for each
micro-batch, one activation and one input gradient, from one worker. What each figure means: docs/aggregation.md of Holdfast.
"""


def tables(findings: Findings) -> dict[str, list[dict[str, Any]]]:
    """Every table as plain records."""
    named: dict[str, Sequence[Any]] = {
        "tests": findings.tests,
        "spread": findings.spread,
        "spread-steps": findings.spread_steps,
        "cascade": findings.cascade,
        "training": findings.training,
        "replicas": findings.replicas,
        "jump": findings.jump,
    }
    found = {name: [dataclasses.asdict(row) for row in rows] for name, rows in named.items()}
    found["references"] = [
        {"seed": seed, "reference": "unigram", "perplexity": value} for seed, value in findings.unigram.items()
    ]
    return {name: rows for name, rows in found.items() if rows}


def summary(findings: Findings) -> dict[str, Any]:
    """The object of `--json`: the tables without single steps, and what surrounds them."""
    told = {name: rows for name, rows in tables(findings).items() if name != "spread-steps"}
    return {"seeds": list(findings.question.seeds), "failed": findings.failed, "roc_at": list(GRID), **told}


def write(findings: Findings, out: Path, environment: Mapping[str, Any]) -> None:
    """Every file in the directory `out`, which is made."""
    from holdfast.bench.aggregation_figure import draw

    found = tables(findings)
    put(out / "aggregation.jsonl", as_lines([{"table": name, **row} for name, rows in found.items() for row in rows]))
    for name, rows in found.items():
        flat = [{column: value for column, value in row.items() if column != "roc"} for row in rows]  # no cell holds a curve
        put(out / ("aggregation.csv" if name == "tests" else f"{name}.csv"), as_csv(flat))
    put(out / ENVIRONMENT, json.dumps(dict(environment), indent=2) + "\n")
    put(out / "aggregation.md", markdown(findings, environment))
    draw(findings, out)


def markdown(findings: Findings, environment: Mapping[str, Any]) -> str:
    """The page: one section for each question that was asked."""
    sections = ["# Do the defences of federated learning carry over?\n", INTRODUCTION, "\n".join(headlines(findings)) + "\n"]
    sections += [section for tell in (_spread, _tests, _cascade, _training, _replicas, _jump) if (section := tell(findings))]
    asked = dataclasses.asdict(findings.question) | {"seeds": list(findings.question.seeds)}
    return "\n".join([*sections, f"`{json.dumps(asked)}`\n", json.dumps(dict(environment)) + "\n"])


def headlines(findings: Findings) -> list[str]:
    """A sentence for each part, with its figure; for the terminal too."""
    told = []
    for kind, label in KINDS.items():
        spreads = [row for row in findings.spread if (row.kind, row.view, row.stage) == (kind, VIEWS[0], "all")]
        told += [
            f"- {label}: cosine between micro-batches {spread.cosine:.3f}, they differ by {spread.spread:.2f} of their mean, "
            f"signal to noise {spread.signal_to_noise:.3g} (medians)"
            for spread in spreads
        ]
    for row in _pooled(findings)[1:]:
        told.append(f"- honest training, {row['replaced']} by {row['aggregator']}: {row['ratio']} times the honest perplexity")
    return told


def best(findings: Findings) -> str:
    """The test that did best against each attack where all micro-batches are forged, chosen afterwards: a bound from above."""
    body = []
    for direction in ("forward", "backward"):
        tests = [row for row in findings.tests if (row.direction, row.how) == (direction, "all") and row.test != "voting"]
        for attack in dict.fromkeys(row.attack for row in tests):
            row = max((row for row in tests if row.attack == attack), key=lambda row: (row.best, row.auc))
            area = f"{row.auc:.3f} ({row.auc_low:.3f} to {row.auc_high:.3f})"
            found, alarms = _rate(row), _interval(row.fpr, row.fpr_low, row.fpr_high)
            body.append([KINDS[direction], attack, f"{row.test}, {row.view}", found, alarms, f"{100 * row.best:.1f}", area])
    head = ["traffic", "attack", "best test", "% found", "% false alarms", "% found at 1 % false alarms", "area (seeds)"]
    return pipes(head, body) if body else ""


def _tests(findings: Findings) -> str:
    """A table for each direction and number of lies: tests by attacks."""
    if not findings.tests:
        return ""
    parts = [
        "## Tests on values\n",
        "All micro-batches of a step forged; of eight tests and two views the one that did best, which is known afterwards. "
        "Chance finds 1 %, with an area of 0.5.\n",
        best(findings),
        "Percent of forged claims found [95 % interval], at the threshold that earlier honest steps gave for 1 % false alarms; "
        "and the false alarms that it did give in the tested steps.\n",
    ]
    for how, direction in ((how, direction) for how in HOW for direction in ("forward", "backward")):
        label = "one micro-batch of a step is forged" if how == "one" else "all micro-batches of a step are forged"
        rows = [row for row in findings.tests if (row.direction, row.how) == (direction, how)]
        attacks = list(dict.fromkeys(row.attack for row in rows))
        parts.append(f"### {KINDS[direction].capitalize()}, {label}\n")
        body = []
        for name in VIEWS:
            for test in TESTS:
                line = {row.attack: row for row in of_tests(rows, view=name, test=test)}
                first = next(iter(line.values()))
                alarms = _interval(first.fpr, first.fpr_low, first.fpr_high)
                body.append([name, test, alarms, *(_rate(line[attack]) for attack in attacks)])
        parts.append(pipes(["view", "test", "false alarms", *attacks], body))
    return "\n".join(parts)


def _spread(findings: Findings) -> str:
    if not findings.spread:
        return ""
    body = [
        [
            KINDS[row.kind],
            row.view,
            row.stage,
            f"{row.cosine:.3f} ({row.cosine_low:.3f} to {row.cosine_high:.3f})",
            f"{row.spread:.2f}",
            f"{row.signal_to_noise:.3g}",
        ]
        for row in findings.spread
    ]
    head = ["traffic", "view", "stage", "cosine between micro-batches (quartiles)", "spread", "signal to noise"]
    return "## How traffic varies with the data\n\n" + pipes(head, body)


def _cascade(findings: Findings) -> str:
    """Alarms of undefended runs, at the view of the whole tensor."""
    rows = [row for row in findings.cascade if row.view == VIEWS[0]]
    if not rows:
        return ""
    claims = list(dict.fromkeys(row.claims for row in findings.cascade))
    cells = {(row.attack, row.direction, row.test, row.claims): _interval(row.share, row.low, row.high) for row in rows}
    keys = dict.fromkeys(key[:3] for key in cells)
    body = [[*key, *(cells.get((*key, claim), NOTHING) for claim in claims)] for key in keys]
    head = ["attack", "direction", "test", *claims]
    told = "Undefended, rate 0.5: percent of claims with an alarm, the whole tensor. Only the first kind is a lie.\n\n"
    return "## Who is accused where lies are used\n\n" + told + pipes(head, body)


def _training(findings: Findings) -> str:
    if not findings.training:
        return ""
    unigram = span(list(findings.unigram.values()), 1)
    body = [list(row.values()) for row in _pooled(findings)]
    head = [
        "replaced",
        "aggregate",
        "training loss, nats",
        "perplexity of the weights",
        "of honest training's",
        "cosine with the honest weight gradient",
    ]
    told = (
        "Nobody lies. Median (least to greatest) over seeds. Who knows only how frequent tokens are has a perplexity of "
        f"{unigram}.\n\n"
    )
    return "## Honest training, aggregated\n\n" + told + pipes(head, body)


def _pooled(findings: Findings) -> list[dict[str, str]]:
    groups: dict[tuple[str, str], list[Any]] = {}
    honest = {row.seed: row.perplexity for row in findings.training if row.replaced == UNTREATED}
    for row in findings.training:
        groups.setdefault((row.replaced, row.aggregator), []).append(row)
    return [
        {
            "replaced": replaced,
            "aggregator": "nobody" if replaced == UNTREATED else aggregator,
            "loss": span([row.loss for row in group], 3),
            "perplexity": span([row.perplexity for row in group], 1),
            "ratio": span([row.perplexity / honest[row.seed] for row in group], 3),
            "cosine": span([row.cosine for row in group], 2),
        }
        for (replaced, aggregator), group in groups.items()
    ]


def _replicas(findings: Findings) -> str:
    if not findings.replicas:
        return ""
    body = [
        [
            row.machines,
            str(row.replicas),
            str(row.liars),
            f"{row.replicas}x",
            row.aggregator,
            f"{row.exact}/{row.outcomes} = {_interval(row.exact_share, row.exact_low, row.exact_high)}",
            str(row.undefined),
            NOTHING if row.error is None else f"{row.error:.2g}",
            NOTHING if row.worst is None else f"{row.worst:.2g}",
        ]
        for row in sorted(findings.replicas, key=lambda row: (row.machines, row.replicas, row.liars))
    ]
    head = ["machines", "replicas", "liars", "computing", "aggregator", "honest bytes", "no answer", "median error", "worst"]
    told = (
        f"The same micro-batch computed by several workers. A second computation gave the same bytes {findings.repeated_equal} "
        f"times of {findings.repeated}.\n\n"
    )
    return "## Replicas of one stage\n\n" + told + pipes(head, body)


def _jump(findings: Findings) -> str:
    if not findings.jump:
        return ""
    failed = "".join(f"\n- {line}" for line in findings.failed)
    told = "Columns: see docs/detection.md of Holdfast.\n\n"
    return "## What the jump is worth\n\n" + told + told_pipes(findings.jump, COLUMNS) + failed


def _rate(row: ScoreRow) -> str:
    return _interval(row.tpr, row.tpr_low, row.tpr_high)


def _interval(share: float, low: float, high: float) -> str:
    """
    >>> _interval(0.5, 0.118, 0.882), _interval(1.0, 0.99, 1.0)
    ('50.0 [11.8, 88.2]', '100.0 [99.0, 100.0]')
    """
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
