"""`holdfast doctor --numerics`: how far apart this machine's own arithmetics are, and the bounds that follow from it.

A row for each dtype, direction and pair of arithmetics, over all middle stages of the cut; the calibration file has each stage
by itself. It is a fact about a machine and a model, and nothing that could fail.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from holdfast.calibrate import honest_probes, why_it_jumps
from holdfast.claim import Direction
from holdfast.cli.options import require_known
from holdfast.config import resolve
from holdfast.errors import ConfigError
from holdfast.job import DTYPES, Job, check_device, prepare
from holdfast.numerics import ARITHMETICS, numerics_class
from holdfast.verify.calibration import MARGIN, Calibration, Measured, Pairing, Probe, bound_from, spread_of
from holdfast.verify.tolerance import Distance

IDLE = {"float32": "fp32-accumulation", "bfloat16": "fp64-accumulation"}
"""What changes nothing in a dtype, by definition."""
PROBED_MICRO_BATCHES = 2


@dataclass(frozen=True, slots=True)
class Row:
    """`alarm` and `guilty` are the widest of all stages, None where a stage has no bound; `refused` says why not."""

    dtype: str
    direction: str
    one: str
    other: str
    probes: int
    equal: int
    median: tuple[float, float]
    largest: tuple[float, float]
    alarm: tuple[float, float] | None
    guilty: tuple[float, float] | None
    refused: str | None


def show_numerics(
    model: str, dtype: str | None, stages: int, out: Path | None, *, device: str = "cpu", as_json: bool = False
) -> None:
    """Measure, print, and write the calibration to `out`, which must be a new file. Raises ConfigError, SetupError."""
    if dtype is not None:
        require_known("--dtype", dtype, DTYPES)
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists; choose another --out")
    check_device(device)
    rows: list[Row] = []
    table: dict[Pairing, Measured] = {}
    if not as_json:
        print(HEADINGS)
    for kind in (dtype,) if dtype is not None else tuple(DTYPES):
        job = _job(model, kind, stages, device)
        for row, measured in _measure(job):
            rows.append(row)
            table |= measured
            if not as_json:
                print(_line(row))
    if out is not None:
        if not table:
            raise ConfigError(f"no pair has a bound, so there is nothing to write to {out}: {rows[0].refused}")
        out.write_text(Calibration(MARGIN, table).to_toml(), encoding="utf-8")
    if as_json:
        print(json.dumps({"model": model, "device": device, "stages": stages, "rows": [asdict(row) for row in rows]}))
        return
    for reason in dict.fromkeys(row.refused for row in rows if row.refused is not None):
        print(f"\nno bound: {reason}")
    print("\nDistances are relative L2: overall / worst row. Within one class bytes are compared, and nothing else.")
    if out is not None:
        print(f"{len(table)} bounds written to {out}")


HEADINGS = f"{'dtype':<9} {'direction':<9} {'pair':<38} {'at 0':>9}  {'median':<17} {'largest':<17} {'alarm':<17} guilty"


def _job(model: str, dtype: str, stages: int, device: str) -> Job:
    pipeline = {"stages": stages, "micro_batches": PROBED_MICRO_BATCHES}
    return prepare(resolve({"model": {"name": model, "dtype": dtype, "device": device}, "pipeline": pipeline}))


def _measure(job: Job) -> Iterator[tuple[Row, dict[Pairing, Measured]]]:
    """The rows of one dtype, each with what it adds to the calibration."""
    dtype = job.config.model.dtype
    arithmetics = [each for name, each in ARITHMETICS.items() if name != IDLE[dtype]]
    names = {str(numerics_class(each, job.dtype, job.config.model.device)): each.name for each in arithmetics}
    jumps = why_it_jumps(job)
    found = sorted(honest_probes(job, arithmetics), key=lambda probe: _place(probe.pairing))
    for _, probes in itertools.groupby(found, key=lambda probe: _place(probe.pairing)):
        yield _row(list(probes), names, jumps)


def _place(pairing: Pairing) -> tuple[int, tuple[str, str]]:
    return list(Direction).index(pairing.direction), pairing.classes


def _row(probes: list[Probe], names: Mapping[str, str], jumps: str | None) -> tuple[Row, dict[Pairing, Measured]]:
    by_stage: dict[Pairing, list[Probe]] = {}
    for probe in probes:
        by_stage.setdefault(probe.pairing, []).append(probe)
    refused, table = jumps, {}
    try:
        table = {
            pairing: Measured(spread := spread_of(found), bound_from(spread, pairing)) for pairing, found in by_stage.items()
        }
    except ConfigError as error:
        refused = refused or str(error)
    if refused is not None:
        table = {}
    over_all, pairing = spread_of(probes), probes[0].pairing
    alarms, guilts = ([getattr(row.bound, limit) for row in table.values()] for limit in ("alarm", "guilty"))
    row = Row(
        dtype=pairing.dtype,
        direction=str(pairing.direction),
        one=names[pairing.classes[0]],
        other=names[pairing.classes[1]],
        probes=over_all.probes,
        equal=over_all.equal,
        median=_pair(over_all.median),
        largest=_pair(over_all.largest),
        alarm=_pair(Distance.largest(alarms)) if alarms else None,
        guilty=_pair(Distance.largest(guilts)) if guilts else None,
        refused=refused,
    )
    return row, table


def _pair(found: Distance) -> tuple[float, float]:
    return found.overall, found.worst_row


def _line(row: Row) -> str:
    figures = " ".join(f"{_told(pair):<17}" for pair in (row.median, row.largest, row.alarm, row.guilty))
    equal = f"{row.equal}/{row.probes}"
    return f"{row.dtype:<9} {row.direction:<9} {row.one + ', ' + row.other:<38} {equal:>9}  {figures}".rstrip()


def _told(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return "none"
    return "0" if pair == (0, 0) else f"{pair[0]:.1e} / {pair[1]:.1e}"
