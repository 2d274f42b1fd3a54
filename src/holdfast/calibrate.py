"""Calibration of a job: its own middle stages, on its own text, in every arithmetic that its cluster uses, by honest probes.

    rehearse STEPS steps at the full learning rate  -->  a probe for every claim and every pair  -->  Calibration

The text lies behind the last step of the run, so that a run never sees the probes' micro-batches in the order of the probes.
At the full rate from the first step on, activations move in a few steps as far as they would after a warm-up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from holdfast.errors import ConfigError
from holdfast.implied import implied_by
from holdfast.job import Job
from holdfast.likeness import refuse_packing
from holdfast.numerics import Arithmetic, numerics_class, pinned
from holdfast.partition.skeleton import skeleton
from holdfast.rehearsal import Accounts, Rehearsal, Result
from holdfast.verify.calibration import MARGIN, Calibration, Pairing, Probe, calibrate
from holdfast.verify.resync import Candidate, UpdateDistance, compare_updates
from holdfast.verify.tolerance import Distance, distance, distance_of_norms

STEPS = 4
"""Optimizer steps of a rehearsal."""

_KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Hardtanh, nn.Hardshrink, nn.Softshrink)
_ROUTED = ("num_experts", "num_local_experts", "n_routed_experts")


def calibrate_job(job: Job, arithmetics: Sequence[Arithmetic], *, steps: int = STEPS, margin: float = MARGIN) -> Calibration:
    """The bounds between every two of `arithmetics`, for every middle stage and direction of the job's plan.

    Raises ConfigError where there is nothing to compare, or where two arithmetics are too far apart to check one another,
    or where tensors are packed.
    """
    refuse_packing(job.packing)
    jumps = why_it_jumps(job)
    if jumps is not None:
        raise ConfigError(f"{jumps}. Give the two holders of each stage one numerics class")
    return calibrate(honest_probes(job, arithmetics, steps), margin)


def honest_probes(job: Job, arithmetics: Sequence[Arithmetic], steps: int = STEPS) -> Iterator[Probe]:
    """A probe for every claim of a rehearsal and every two arithmetics, as they are computed."""
    examiner = Examiner(job, arithmetics)
    with pinned(job.config.model.device):
        rehearsal = Rehearsal(job, arithmetics)
        for step in range(steps):
            for accounts in rehearsal.step(job.config.training.steps + step, job.config.optimizer.learning_rate):
                for claimed, own in itertools.combinations(accounts.results, 2):
                    yield examiner.probe(accounts, claimed, own)


class Examiner:
    """Holds the accounts of a rehearsal against one another, as the two holders of a stage would."""

    def __init__(self, job: Job, arithmetics: Sequence[Arithmetic]) -> None:
        self._job = job
        self._classes = {a.name: numerics_class(a, job.dtype, job.config.model.device) for a in arithmetics}

    def pairing(self, accounts: Accounts, claimed: str, own: str) -> Pairing:
        one, other = self._classes[claimed], self._classes[own]
        return Pairing.of(accounts.stage, one.dtype, str(one), str(other), accounts.direction)

    def probe(self, accounts: Accounts, claimed: str, own: str) -> Probe:
        """How far what arithmetic `claimed` made of a claim is from what `own` did."""
        found = self.measure(accounts, accounts.results[claimed], own)
        pairing = self.pairing(accounts, claimed, own)
        if isinstance(found, Distance):
            return Probe(pairing, found)
        if not found.follows:
            raise ConfigError(
                f"an honest {pairing} is {found.ulps:.1f} ulps off its own formula; these two cannot check one another"
            )
        return Probe(pairing, found.gradient, found.drift)

    def measure(self, accounts: Accounts, claimed: Result, own: str) -> Distance | UpdateDistance:
        """How far any result, an honest one or not, is from that of arithmetic `own`."""
        ours = accounts.results[own]
        if isinstance(ours, Candidate):
            assert isinstance(claimed, Candidate)
            assert accounts.before is not None
            formula = implied_by(self._job.config.optimizer, accounts.rate)
            return compare_updates(accounts.before, claimed.state, ours, formula)
        if isinstance(ours, Tensor):
            assert isinstance(claimed, Tensor)
            return distance(claimed, ours)
        assert isinstance(claimed, tuple)
        return distance_of_norms(claimed, ours, self._job.dtype)


def why_it_jumps(job: Job) -> str | None:
    """Why no bound holds for this model: it computes something that jumps, or whose derivative does. None: it does not.

    Where two machines see a number on different sides of a kink, their gradients differ by that number's whole share, however
    close they are otherwise: seldom, and by more than any bound.
    """
    model: Any = skeleton(job.source.config)
    kinked = next((type(module).__name__ for module in model.modules() if isinstance(module, _KINKED)), None)
    if kinked is not None:
        return f"{job.source.name} has {kinked} units, whose derivative jumps: no bound holds for its gradients across hardware"
    routed = next((key for key in _ROUTED if (getattr(job.source.config, key, None) or 0) > 1), None)
    if routed is not None:
        return f"{job.source.name} chooses among experts ({routed}): across hardware a near tie may fall either way"
    return None
