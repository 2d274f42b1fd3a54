"""How far honest results of a training run are apart, against the probes behind their bounds: is the margin wide?"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict

from measure import show

from holdfast.bench.roc import ARITHMETICS
from holdfast.calibrate import Examiner, honest_probes
from holdfast.claim import Direction
from holdfast.config import resolve
from holdfast.errors import ConfigError
from holdfast.job import prepare
from holdfast.numerics import pinned, resolve_arithmetic
from holdfast.optimizer import learning_rate
from holdfast.rehearsal import Rehearsal
from holdfast.verify.calibration import FLOORS, MARGIN, ROUNDOFF, calibrate


def main() -> None:
    """Print a row for each direction: the largest distance, and the largest one divided by that of its pair's probes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="gpt2:layers=6,width=64,heads=4", help="a model from scratch")
    parser.add_argument("--dtype", default="float32", choices=ARITHMETICS, help="default: float32")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tables = {"model": {"name": given.model, "dtype": given.dtype}, "training": {"seed": given.seed}}
    job = prepare(resolve(tables))
    arithmetics = [resolve_arithmetic(name) for name in ARITHMETICS[given.dtype]]
    calibration, examiner = calibrate(honest_probes(job, arithmetics)), Examiner(job, arithmetics)
    found: dict[Direction, list[tuple[float, float, float, float]]] = defaultdict(list)
    with pinned("cpu"):
        rehearsal = Rehearsal(job, arithmetics)
        for step in range(given.steps):
            for accounts in rehearsal.step(step, learning_rate(job.config.optimizer, step, job.config.training.steps)):
                for pair in itertools.combinations(accounts.results, 2):
                    probe = examiner.probe(accounts, *pair)
                    probed = calibration.rows[probe.pairing].spread.largest
                    floor = [least * ROUNDOFF[given.dtype] / MARGIN for least in FLOORS[accounts.direction]]
                    overall = probe.distance.overall / max(probed.overall, floor[0])
                    row = probe.distance.worst_row / max(probed.worst_row, floor[1])
                    found[accounts.direction].append((probe.distance.overall, overall, probe.distance.worst_row, row))
    rows = []
    for direction, several in found.items():
        beyond = sum(overall > MARGIN or row > MARGIN for _, overall, _, row in several)
        largest = [f"{max(column):.2g}" for column in zip(*several, strict=True)]
        rows.append([str(direction), f"{len(several):,}", *largest, str(beyond)])
    header = ["direction", "checks", "overall", "times the probes", "worst row", "times the probes", f"above {MARGIN:g} times"]
    show(f"Honest spread of {given.model}, {given.dtype}, {given.steps} steps", header, rows)


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
