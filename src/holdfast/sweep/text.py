"""A table of results as text: Markdown, CSV of the runs and of the means, LaTeX for the package booktabs.

16.83 ± 0.41        mean and half of its 95 % interval        16.8 [15.9, 17.7]      a geometric mean
16.83               one run, or runs that all agree           3/3                    weights: equal, of how many
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from holdfast.report.pipes import NOTHING, cell, pipes
from holdfast.sweep.cell import shown
from holdfast.sweep.frame import SEED, frame
from holdfast.sweep.record import Record
from holdfast.sweep.table import PART, RATIO, WEIGHTS, Figure, Line, ResultTable, value_of


def plain_rows(table: ResultTable) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, ready to print."""
    headings = [*table.by, "runs", *(table.heading(value) for value in table.values)]
    return headings, [[*map(shown, line.place.values()), runs_of(line), *map(told, line.figures)] for line in table.lines]


def runs_of(line: Line) -> str:
    """How many runs a row has, and how many of them failed."""
    return f"{len(line.records)}" + (f" ({len(line.failed)} failed)" if line.failed else "")


def told(figure: Figure) -> str:
    """A figure for people: as many digits as its interval leaves any sense."""
    if figure.value == WEIGHTS:
        return NOTHING if figure.equal is None else f"{figure.equal[0]}/{figure.equal[1]}"
    found = figure.mean
    lost = f" ({found.lost} without)" if found.lost and found.n else ""
    if not found.n:
        return NOTHING
    half = (found.high - found.low) / 2
    if not math.isfinite(half) or half == 0:
        return digits(found.mean) + lost
    places = decimals(half)
    if abs(found.high - found.mean - half) > 1e-9 * half:  # not in the middle: a geometric mean
        return f"{found.mean:,.{places}f} [{found.low:,.{places}f}, {found.high:,.{places}f}]{lost}"
    return f"{found.mean:,.{places}f} ± {half:,.{places}f}{lost}"


def digits(value: float) -> str:
    """A single value: whole numbers whole, others with five digits.

    >>> digits(412.0), digits(16.8268947), digits(0.000123456), digits(123456.78)
    ('412', '16.827', '0.00012346', '123,457')
    """
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    size = math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, 4 - size)}f}" if -7 < size < 15 else f"{value:.4e}"


def decimals(half: float) -> int:
    """Decimals with which a half-width has two digits.

    >>> decimals(0.412), decimals(3.0), decimals(250.0)
    (2, 1, 0)
    """
    return min(10, max(0, 1 - math.floor(math.log10(half))))


def explanation(table: ResultTable) -> str:
    """What the numbers are, in a sentence or two."""
    words = ["Mean ± half of the 95 % interval (Student's t) over the runs of a row"]
    if table.geometric:
        names = _capital(", ".join(map(table.heading, table.geometric)))
        words = [f"{names}: geometric mean [95 % interval]; others: mean ± half of the interval"]
    if table.seeds == 1:
        words = ["One run a row, so no interval"]
    if table.pooled:
        words.append(f"a row pools runs that differ in {', '.join(table.pooled)}, and its interval is theirs together")
    if RATIO in table.values:
        words.append("× clean: perplexity against the same run, seed by seed, without attack and fault")
    if WEIGHTS in table.values:
        words.append("weights: runs whose final weights are, to the bit, those of the same run without attack and fault")
    return "; ".join(words) + "."


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def markdown(*tables: ResultTable) -> str:
    """The tables, what failed, and where each number comes from."""
    parts = [f"# {cell(tables[0].name)}\n"]
    for table in tables:
        headings, rows = plain_rows(table)
        parts += [f"## {cell(table.part)}\n"] if table.part else []
        parts += [pipes(headings, rows, left=len(table.by)), explanation(table) + "\n"]
    records = [record for table in tables for record in table.records]
    failed = [record for record in records if not record.ok]
    if failed:
        told_failures = "".join(f"- {cell(record.name)}: {cell(str(record.error))}\n" for record in failed)
        parts += ["## What failed\n", told_failures]
    environments = environments_of(records)
    axes = axes_of(records)
    told_runs = [[*(shown(record.axes.get(axis)) for axis in axes), *origin(record, environments)] for record in records]
    parts += ["## Where the numbers come from\n", pipes([*axes, *ORIGIN_HEADINGS], told_runs, left=len(axes) + 4)]
    parts += [f"Environment {letter}: {cell(environment)}\n" for environment, letter in environments.items()]
    commands = "\n".join(dict.fromkeys(f"{record.command}  # {record.key[:12]}" for record in records))
    parts += [f"Each run alone:\n\n```sh\n{commands}\n```\n"]
    return "\n".join(parts)


ORIGIN_HEADINGS = ("cell", "run", "commit", "started (UTC)", "s", "environment")


def origin(record: Record, environments: Mapping[str, str]) -> list[str]:
    """Where a run comes from, in the columns of ORIGIN_HEADINGS."""
    run = (record.result or {}).get("run_id") or NOTHING
    commit = record.environment.get("commit") or NOTHING
    started = record.started.removesuffix("+00:00").replace("T", " ") or NOTHING
    return [record.key[:12], str(run), str(commit), started, f"{record.seconds:.1f}", environments[environment_of(record)]]


def environments_of(records: Sequence[Record]) -> dict[str, str]:
    """Every environment that the runs had, in words, with a letter for each."""
    found = dict.fromkeys(environment_of(record) for record in records)
    return {told: _letter(index) for index, told in enumerate(found)}


def environment_of(record: Record) -> str:
    """Versions and machine, in words; command, commit and time stand elsewhere."""
    apart = ("command", "commit", "date")
    kept = {key: value for key, value in record.environment.items() if key not in apart and value is not None}
    return ", ".join(f"{key} {value}" for key, value in kept.items()) or "unknown"


def axes_of(records: Sequence[Record]) -> list[str]:
    """All axes of the runs, the seed last."""
    found = dict.fromkeys(axis for record in records for axis in record.axes)
    return [axis for axis in found if axis != SEED] + ([SEED] if SEED in found else [])


def csv_runs(*tables: ResultTable) -> str:
    """One line a run, unrounded, with all that it says and where it comes from."""
    parted = [
        replace(record, axes={PART: table.part, **record.axes}) if table.part else record
        for table in tables
        for record in table.records
    ]
    return str(frame(parted).to_csv(index=False, lineterminator="\n"))


def csv_means(*tables: ResultTable) -> str:
    """One line a row of each table: for each value V also V_std, V_n, V_low, V_high and V_lost; and the keys of its cells."""
    import pandas

    rows = []
    for table, line in [(each, line) for each in tables for line in each.lines]:
        part = {PART: table.part} if table.part else {}
        row: dict[str, object] = {**part, **line.place, "runs": len(line.records), "failed": len(line.failed)}
        for figure in line.figures:
            if figure.value == WEIGHTS:
                row |= dict(zip(("weights_equal", "weights_of"), figure.equal or (None, None), strict=True))
            else:
                row[figure.value] = figure.mean.mean
                row |= {f"{figure.value}_{part}": getattr(figure.mean, part) for part in ("std", "n", "low", "high", "lost")}
        row["cells"] = " ".join(record.key for record in line.records)
        rows.append(row)
    return str(pandas.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def latex(*tables: ResultTable) -> str:
    r"""A `tabular` for \usepackage{booktabs}, for each table; comments name the runs behind each row."""
    return "\n".join(map(_tabular, tables))


def _tabular(table: ResultTable) -> str:
    headings, rows = plain_rows(table)
    columns = "l" * len(table.by) + "r" * (len(headings) - len(table.by))
    environments = environments_of(table.records)
    named = table.name + (f", {table.part}" if table.part else "")
    lines = [f"% {_comment(named)}. Needs \\usepackage{{booktabs}}.", f"% {_comment(explanation(table))}"]
    lines += [f"% environment {letter}: {_comment(environment)}" for environment, letter in environments.items()]
    lines += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", " & ".join(map(escaped, headings)) + r" \\", "\\midrule"]
    for line, row in zip(table.lines, rows, strict=True):
        for record in line.records:
            seed = f"seed {record.axes[SEED]}, " if SEED in record.axes else ""
            key, run, commit, *_, environment = origin(record, environments)
            lines.append(_comment(f"% {seed}cell {key}, run {run}, commit {commit}, environment {environment}"))
        lines.append(" & ".join(map(escaped, row)) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "[": "{[}",
    "]": "{]}",
}


def escaped(text: str) -> str:
    r"""Text as LaTeX prints it, whatever is in it; brackets too, which after `\\` would be an argument.

    >>> escaped("lr_3 & 50 % ± 1")
    'lr\\_3 \\& 50 \\% $\\pm$ 1'
    """
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))


def of_run(record: Record, value: str, table: ResultTable) -> str:
    """One run's own value."""
    if not record.ok:
        return "failed"
    if value == WEIGHTS:
        return str((record.result or {}).get("weights_digest", NOTHING))[:12]
    found = value_of(record, value, table.clean)
    return digits(found) if math.isfinite(found) else "not finite"


def _comment(text: str) -> str:
    return " ".join(text.split())


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"A{index}"
