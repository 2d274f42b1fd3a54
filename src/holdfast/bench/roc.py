"""What tolerance catches: honest checks on mixed arithmetic, which must raise no alarm, and forgeries of every size.

    calibrate (other text)  -->  rehearse the run's own steps  -->  every pair of accounts: honest checks
                                                               -->  one pair, forged in every kind and size: tampered ones

A forgery that is more than 3 times a limit away from the honest account must be beyond that limit, whatever the rounding, for
the honest account is within it. That is counted, not assumed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from holdfast import seeds
from holdfast.bench.forging import KINDS, OF_WEIGHTS, Forger
from holdfast.calibrate import Examiner, calibrate_job
from holdfast.claim import Direction
from holdfast.config import RunConfig, resolve
from holdfast.job import Job, prepare
from holdfast.numerics import Arithmetic, pinned, resolve_arithmetic
from holdfast.optimizer import learning_rate
from holdfast.rehearsal import Accounts, Rehearsal
from holdfast.verify.calibration import Calibration
from holdfast.verify.resync import ULPS, UpdateDistance, judge_update
from holdfast.verify.tolerance import EQUAL, Agreement, Bound, Distance, verdict

SIZES = tuple(10 ** (exponent / 4) for exponent in range(-32, 1))
"""Relative sizes of forgeries: 1e-8 to 1, four a decade."""
BEYOND = 3.0
ARITHMETICS = {
    "float32": ("native", "math-attention", "split-sums", "math-attention+split-sums", "fp64-accumulation"),
    "bfloat16": ("native", "no-onednn", "math-attention", "split-sums", "fp32-accumulation"),
}
"""Those that change bits in a dtype, see docs/design/tolerance.md; but `threads-2`, which is slow where cores are shared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`checks` is the least number of honest ones, over all dtypes together."""

    model: str = "gpt2:layers=6,width=64,heads=4"
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    checks: int = 10_000
    seed: int = 0
    stages: int = 6
    micro_batches: int = 4

    @property
    def share(self) -> int:
        """The least number of honest checks in each dtype."""
        return -(-self.checks // len(self.dtypes))


@dataclass(slots=True)
class Honest:
    """Honest checks of one pair of arithmetics in one direction; distances are the largest seen, `alarm` the lowest bound."""

    dtype: str
    direction: str
    one: str
    other: str
    checks: int = 0
    alarms: int = 0
    equal: int = 0
    overall: float = 0.0
    worst_row: float = 0.0
    alarm_overall: float = float("inf")
    alarm_row: float = float("inf")


@dataclass(slots=True)
class Tampered:
    """Forgeries of one kind and nominal size; `must` counts those above 3 times the alarm's limit, `must_convict` guilty's."""

    dtype: str
    direction: str
    kind: str
    size: float
    forgeries: int = 0
    detected: int = 0
    convicted: int = 0
    must: int = 0
    must_missed: int = 0
    must_convict: int = 0
    must_convict_missed: int = 0


@dataclass(slots=True)
class Roc:
    """The tidy tables of an experiment."""

    plan: Plan
    honest: list[Honest] = field(default_factory=list)
    tampered: list[Tampered] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)

    @property
    def checks(self) -> int:
        return sum(row.checks for row in self.honest)

    @property
    def false_alarms(self) -> int:
        return sum(row.alarms for row in self.honest)

    @property
    def missed(self) -> int:
        """Forgeries beyond 3 times a limit that were within it."""
        return sum(row.must_missed + row.must_convict_missed for row in self.tampered)

    @property
    def passed(self) -> bool:
        return self.checks >= self.plan.checks and self.false_alarms == 0 and self.missed == 0


def run_roc(plan: Plan) -> Roc:
    """The whole experiment. Raises ConfigError where two arithmetics are too far apart."""
    return joined(plan, [measure(plan, dtype) for dtype in plan.dtypes])


def joined(plan: Plan, parts: Iterable[Roc]) -> Roc:
    """One table of those of the dtypes."""
    roc = Roc(plan)
    for part in parts:
        roc.honest += part.honest
        roc.tampered += part.tampered
        roc.steps |= part.steps
    return roc


def measure(plan: Plan, dtype: str) -> Roc:
    """The part of one dtype: as many steps as it takes for its share of the checks. Raises ConfigError, see `run_roc`."""
    roc = Roc(plan)
    arithmetics = [resolve_arithmetic(name) for name in ARITHMETICS[dtype]]
    job = prepare(config_of(plan, dtype))
    table = _Table(roc, job, arithmetics, calibrate_job(job, arithmetics))
    with pinned(job.config.model.device):
        rehearsal = Rehearsal(job, arithmetics)
        for step in itertools.count():
            rate = learning_rate(job.config.optimizer, step, job.config.training.steps)
            for accounts in rehearsal.step(step, rate):
                table.add(accounts)
            if roc.checks >= plan.share:
                break
    roc.steps[dtype] = step + 1
    return roc


def config_of(plan: Plan, dtype: str) -> RunConfig:
    """The run whose steps are rehearsed."""
    return resolve(
        {
            "model": {"name": plan.model, "dtype": dtype},
            "pipeline": {"stages": plan.stages, "micro_batches": plan.micro_batches},
            "training": {"seed": plan.seed},
        }
    )


class _Table:
    """Files every account of one dtype under its rows."""

    def __init__(self, roc: Roc, job: Job, arithmetics: Sequence[Arithmetic], calibration: Calibration) -> None:
        self._dtype = job.config.model.dtype
        self._stages = job.plan.stages
        self._examiner = Examiner(job, arithmetics)
        self._calibration = calibration
        self._chance = random.Random(seeds.derive(roc.plan.seed, "pairs", self._dtype))
        self._forger = Forger(job.config.optimizer, seeds.derive(roc.plan.seed, "forgeries", self._dtype))
        self._roc = roc
        self._honest: dict[tuple[str, str, str], Honest] = {}
        self._tampered: dict[tuple[str, str, float], Tampered] = {}

    def add(self, accounts: Accounts) -> None:
        """Every pair is an honest check, in either order; one pair is forged. Of the updates of a step only one stage's is."""
        pairs = [self._chance.sample(pair, 2) for pair in itertools.combinations(accounts.results, 2)]
        for claimed, own in pairs:
            self._check(accounts, claimed, own)
        whole = accounts.direction in (Direction.GRADIENT, Direction.UPDATE)
        if whole and (accounts.direction is Direction.GRADIENT or accounts.stage != 1 + accounts.step % (self._stages - 2)):
            return
        claimed, own = self._chance.choice(pairs)
        kinds = (*KINDS, OF_WEIGHTS) if accounts.direction is Direction.UPDATE else KINDS
        for kind, size in itertools.product(kinds, SIZES):
            self._tamper(accounts, (claimed, own), kind, size)

    def _check(self, accounts: Accounts, claimed: str, own: str) -> None:
        one, other = sorted((claimed, own))
        key = (str(accounts.direction), one, other)
        if key not in self._honest:
            self._honest[key] = Honest(self._dtype, *key)
            self._roc.honest.append(self._honest[key])
        row, bound = self._honest[key], self._bound(accounts, claimed, own)
        found = self._examiner.measure(accounts, accounts.results[claimed], own)
        measured = _distance(found)
        row.checks += 1
        row.alarms += _judge(found, bound) is not Agreement.WITHIN
        row.equal += measured == EQUAL
        row.overall, row.worst_row = max(row.overall, measured.overall), max(row.worst_row, measured.worst_row)
        row.alarm_overall = min(row.alarm_overall, bound.alarm.overall)
        row.alarm_row = min(row.alarm_row, bound.alarm.worst_row)

    def _tamper(self, accounts: Accounts, pair: tuple[str, str], kind: str, size: float) -> None:
        key = (str(accounts.direction), kind, size)
        if key not in self._tampered:
            self._tampered[key] = Tampered(self._dtype, *key)
            self._roc.tampered.append(self._tampered[key])
        row, bound = self._tampered[key], self._bound(accounts, *pair)
        claimed, own = pair
        forged = self._forger.forge(accounts, accounts.results[claimed], kind, size)
        ruling = _judge(self._examiner.measure(accounts, forged, own), bound)
        moved = self._examiner.measure(accounts, forged, claimed)
        must, must_convict = (_is_beyond(moved, limit) for limit in (bound.alarm, bound.guilty))
        row.forgeries += 1
        row.detected += ruling is not Agreement.WITHIN
        row.convicted += ruling is Agreement.GUILTY
        row.must += must
        row.must_missed += must and ruling is Agreement.WITHIN
        row.must_convict += must_convict
        row.must_convict_missed += must_convict and ruling is not Agreement.GUILTY

    def _bound(self, accounts: Accounts, claimed: str, own: str) -> Bound:
        pairing = self._examiner.pairing(accounts, claimed, own)
        return self._calibration.bound_for(pairing.stage, pairing.dtype, *pairing.classes, pairing.direction)


def _distance(found: Distance | UpdateDistance) -> Distance:
    return found if isinstance(found, Distance) else found.gradient


def _judge(found: Distance | UpdateDistance, bound: Bound) -> Agreement:
    return verdict(found, bound) if isinstance(found, Distance) else judge_update(found, bound)


def _is_beyond(moved: Distance | UpdateDistance, limit: Distance) -> bool:
    """Whether a forgery is more than BEYOND limits away from the honest account that it was made from."""
    follows = isinstance(moved, Distance) or moved.ulps <= BEYOND * ULPS[moved.dtype]
    return not (follows and _distance(moved).fits(limit.times(BEYOND)))
