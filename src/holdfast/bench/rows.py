"""From outcomes to the tidy table: one row for each attack, stage, direction, rate and defence, pooled over the seeds.

Every share stands with what it is a share of, and with its 95 % interval; nothing is averaged that was not counted.
`docs/detection.md` defines each column.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from holdfast.bench.cell import Cell, Setup, config_of, is_lottery
from holdfast.bench.intervals import expected_share, proportion
from holdfast.bench.measure import Measurement
from holdfast.bench.workshop import Outcome


@dataclass(frozen=True, slots=True)
class Row:
    """None where there was nothing to count. `*_low` and `*_high` are the ends of the interval of the share before them."""

    attack: str
    direction: str
    stage: str
    rate: float
    defence: str
    runs: int
    stopped: int
    failed: int
    forged: int
    ruled: int
    detected: int
    tpr: float | None
    tpr_low: float | None
    tpr_high: float | None
    honest_checks: int
    false_alarms: int
    fpr: float | None
    fpr_low: float | None
    fpr_high: float | None
    runs_lied: int
    runs_detected: int
    caught: float | None
    caught_low: float | None
    caught_high: float | None
    caught_expected: float | None
    steps_to_alert: float | None
    suspects: float | None
    lies_alerted: int
    lies_named: int
    runs_innocent_named: int
    runs_named_rightly: int
    runs_clean: int
    runs_inside_window: int
    runs_inside_window_clean: int
    steps_lost: float | None
    rollbacks: int
    virtual_ratio: float | None
    wall_ratio: float | None
    bytes_ratio: float | None
    memory_ratio: float | None
    referee_passes: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class _Pair:
    """A run and the clean run that it is held against."""

    run: Measurement
    clean: Measurement

    @property
    def equal(self) -> bool:
        return self.run.digest == self.clean.digest


def rows_of(outcomes: Sequence[Outcome], setup: Setup, shown: Iterable[Cell] | None = None) -> list[Row]:
    """The table of the cells `shown` (all that stand in `outcomes`), in the order in which they first come."""
    known = {outcome.cell: outcome for outcome in outcomes}
    groups: dict[Cell, list[Cell]] = {}
    for cell in known if shown is None else shown:
        groups.setdefault(replace(cell, seed=0), []).append(cell)
    return [_row(group, cells, known, setup) for group, cells in groups.items()]


def _row(group: Cell, cells: Sequence[Cell], known: Mapping[Cell, Outcome], setup: Setup) -> Row:
    pairs, errors = _pairs(cells, known)
    stopped = sum(known[cell].stopped for cell in cells)
    runs = [pair.run for pair in pairs]
    detected, missed = sum(run.detected for run in runs), sum(run.missed for run in runs)
    checks, alarms = sum(run.honest_checks for run in runs), sum(run.false_alarms for run in runs)
    lied = [pair for pair in pairs if pair.run.detected + pair.run.missed]
    caught = [pair for pair in lied if pair.run.detected]
    inside = [pair for pair in caught if pair.run.inside_window and not pair.run.missed]
    tpr, fpr = _share(detected, detected + missed), _share(alarms, checks)
    by_run = _share(len(caught), len(lied))
    return Row(
        attack=group.attack,
        direction=group.direction,
        stage=group.stage,
        rate=group.rate,
        defence=group.defence,
        runs=len(pairs),
        stopped=stopped,
        failed=len(cells) - len(pairs) - stopped,
        forged=sum(run.forged for run in runs),
        ruled=detected + missed,
        detected=detected,
        tpr=tpr[0],
        tpr_low=tpr[1],
        tpr_high=tpr[2],
        honest_checks=checks,
        false_alarms=alarms,
        fpr=fpr[0],
        fpr_low=fpr[1],
        fpr_high=fpr[2],
        runs_lied=len(lied),
        runs_detected=len(caught),
        caught=by_run[0],
        caught_low=by_run[1],
        caught_high=by_run[2],
        caught_expected=_expected(group, cells, known, setup),
        steps_to_alert=_mean(run.alert_after for run in runs if run.alert_after is not None),
        suspects=_mean(chain.from_iterable(run.suspects for run in runs)),
        lies_alerted=sum(run.lies for run in runs),
        lies_named=sum(run.lies_named for run in runs),
        runs_innocent_named=sum(bool(run.innocents_named) for run in runs),
        runs_named_rightly=sum(pair.run.named_rightly for pair in caught),
        runs_clean=sum(pair.equal for pair in pairs),
        runs_inside_window=len(inside),
        runs_inside_window_clean=sum(pair.equal for pair in inside),
        steps_lost=_mean(run.steps_lost for run in runs),
        rollbacks=sum(run.rollbacks for run in runs),
        virtual_ratio=_median(pair.run.virtual_s / pair.clean.virtual_s for pair in pairs),
        wall_ratio=_median(pair.run.wall_s / pair.clean.wall_s for pair in pairs),
        bytes_ratio=_median(pair.run.bytes_sent / pair.clean.bytes_sent for pair in pairs),
        memory_ratio=_median(pair.run.memory_bytes / pair.clean.memory_bytes for pair in pairs),
        referee_passes=_mean(run.referee_passes for run in runs),
        error="; ".join(dict.fromkeys(errors)) or None,
    )


def _pairs(cells: Sequence[Cell], known: Mapping[Cell, Outcome]) -> tuple[list[_Pair], list[str]]:
    """The runs that ended, each with its clean one, and what became of the others."""
    pairs, errors = [], []
    for cell in cells:
        outcome, clean = known[cell], known.get(cell.clean())
        if outcome.measurement is None:
            errors.append(outcome.error or "no measurement")
        elif clean is None or clean.measurement is None:
            errors.append(f"its clean run failed: {clean.error if clean is not None else 'it was not run'}")
        else:
            pairs.append(_Pair(outcome.measurement, clean.measurement))
    return pairs, errors


def _expected(group: Cell, cells: Sequence[Cell], known: Mapping[Cell, Outcome], setup: Setup) -> float | None:
    """What a lottery of checks should catch, counted on the runs in which nobody stops the liars."""
    free = [known.get(cell.unhindered()) for cell in cells]
    runs = [outcome.measurement for outcome in free if outcome is not None and outcome.measurement is not None]
    drawable = [(run.drawable_claims, run.drawable_steps) for run in runs if run.forged]
    if not drawable:
        return None
    config = config_of(group, setup)
    return expected_share(config.defence.check_claims, config.check_steps, drawable) if is_lottery(config) else None


def _share(part: int, whole: int) -> tuple[float | None, float | None, float | None]:
    interval = proportion(part, whole)
    return (None, None, None) if interval is None else (part / whole, *interval)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None
