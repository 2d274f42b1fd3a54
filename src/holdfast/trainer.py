"""The trainer runs a job from its first step to its last: steps, evaluations, checkpoints, rollbacks, the result.

prepare --> deploy --> step, step, step ... --> evaluate, write the model --> RunResult
              ^             |
              |          both holders of a stage are gone
              +--- certified checkpoint <---+
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from holdfast.chronicle import Chronicle, Observer
from holdfast.claim import version_in
from holdfast.cluster import Cluster, Deployment, arithmetics, check_evidence, open_notary
from holdfast.comeback import Return
from holdfast.commits import Commits
from holdfast.config import RunConfig
from holdfast.deployments import Deployments
from holdfast.digest import weights_digest
from holdfast.engine import Company, Engine, MemoryEngine, names_of_workers
from holdfast.errors import FaultWindowExceeded, NotEnoughMemory
from holdfast.evaluate import Evaluation, evaluate
from holdfast.event import (
    Evaluated,
    JournalSetAside,
    Resumed,
    Reunited,
    RolledBack,
    RunFinished,
    RunStarted,
)
from holdfast.evidence.identity import Identity
from holdfast.evidence.notary import Notary
from holdfast.evidence.record import FINISHED
from holdfast.job import Job, check_fits, environment, prepare
from holdfast.journal import Journal
from holdfast.keeper import Keeper, States
from holdfast.likeness import Likeness, likeness_of, read_calibration
from holdfast.numerics import pinned
from holdfast.partition import is_adapter, whole_model
from holdfast.partition.plan import layer_words
from holdfast.partition.selftest import self_test
from holdfast.placement.recut import recut
from holdfast.placement.steward import Move, Steward
from holdfast.progress import Progress
from holdfast.result import GroundTruth, RunResult
from holdfast.safekeeping import Safekeeping

MAX_ROLLBACKS = 64
"""A run that falls back this often makes no headway."""


class Cast(Company, GroundTruth, Protocol):
    """Who plays the untrusted workers, and the truth about them; it comes from the edge."""


class Trainer:
    """One run. `observers` are called with every event and its time by the run's clock, from the thread that runs.

    `cast` puts adversaries and faults around untrusted workers and knows afterwards what they forged; without one everybody
    is honest. `resume` is a run's directory, or one of its checkpoints. `job` is the run's own, prepared and self-tested
    before (None: that is done here). `deployed` is called with each cluster, before its first step, to look at its traffic.
    `open_engine` opens what carries the run (None: in memory, with the cast); it is closed at the end. `identity` is the key of
    the trusted members where the workers have keys of their own (None: all follow from the seed). In `journal` each commit is
    written down, for an engine whose machines outlive this process (None: nowhere); a run that is resumed looks there first.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        observers: Sequence[Observer] = (),
        cast: Cast | None = None,
        resume: Path | None = None,
        job: Job | None = None,
        deployed: Callable[[Cluster], None] = lambda _cluster: None,
        open_engine: Callable[[], Engine] | None = None,
        identity: Identity | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._config = config
        self._chronicle = Chronicle(config, observers, cast)
        self._standing = self._chronicle.standing
        self._identity = identity
        self._journal = journal if config.defence_name != "none" else None
        self._open_engine = open_engine or partial(MemoryEngine, config, cast)
        self._engine: Engine | None = None
        self._keeper: Keeper | None = None
        self._resume = resume
        self._job = job
        self._deployed = deployed
        self._notary = Notary()
        self._likeness: Likeness | None = None
        self._stopping = False
        self._announced = False
        self._deployments: Deployments | None = None
        self._return: Return | None = None
        self._set_aside: str | None = None

    @property
    def run_id(self) -> str:
        return self._chronicle.run_id

    def stop(self) -> None:
        """Finish the step that is running, write a checkpoint and return; where machines are waited for, `run` raises
        StoppedWaiting instead. Safe to call from a signal handler.
        """
        self._stopping = True
        if self._engine is not None:
            self._engine.interrupt()

    def run(self) -> RunResult:
        """Train to the last step, or until `stop`. One torch thread, as long as it lasts: two would give other bits.

        Raises a UsageError or SetupError before anything is written where the run cannot start, and FaultWindowExceeded
        where more is broken at once than can be carried; StoppedWaiting where it is stopped while it waits for machines.
        """
        ended = "failed"
        try:
            with pinned(self._config.model.device):
                result = self._run()
            ended = "stopped" if self._stopping else FINISHED
            return result
        finally:
            if self._keeper is not None:
                self._keeper.close()
            if self._engine is not None:
                self._engine.close()
            self._notary.close(ended)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> RunResult:
        self._chronicle.begin()
        job = self._job if self._job is not None else prepare_tested(self._config)
        check_fits(job)
        self._likeness = _likeness(job)
        self._keeper = keeper = Keeper(self._config, job, self.run_id)
        begun = self._go_on(keeper)
        self._engine = self._open_engine()
        self._chronicle.clock = self._engine.clock
        if self._stopping:  # before there was an engine that could be told
            self._engine.interrupt()
        states, step, cluster, job = self._train(job, *self._start(job, keeper, begun))
        self._chronicle.measure(cluster)
        score = self._evaluate(job, states, step)
        weights = _united(states)
        keeper.write_model(weights)
        pace = self._steward.pace(step, cluster)
        here = replace(
            self._chronicle.result(job, keeper, step, score, interrupted=self._stopping),
            weights_digest=weights_digest(_published(weights)),
            predicted_step_seconds=pace.predicted_s,
            step_seconds=pace.measured_s,
        )
        result = self._chronicle.before.plus(here)
        self._chronicle.tell(RunFinished(result.weights_digest, result.to_json()))
        return result

    def _go_on(self, keeper: Keeper) -> States:
        """The states that the run begins with, or goes on from; raises NothingLeft where it has ended. Changes nothing."""
        if self._resume is None:
            return keeper.initial()
        states, self._chronicle.before = keeper.resume(self._resume)
        self._chronicle.run_id = keeper.run
        check_evidence(self.run_id, self._config, version_in(states), self._identity)
        keeper.check_unfinished(version_in(states))
        return states

    def _start(self, job: Job, keeper: Keeper, states: States) -> tuple[Safekeeping, States]:
        """The states to go on from. Up to here nothing has been written; from here on the run has its directory."""
        assert self._engine is not None
        out, chronicle = self._config.output.dir, self._chronicle
        commits = None if self._journal is None or out is None else Commits(self._journal, job, Path(out))
        found = None
        if commits is not None and self._resume is not None:
            found = commits.look(self._engine, self.run_id, version_in(states), lambda: self._stopping)
        if isinstance(found, Return):
            states, chronicle.before = found.states, Progress.from_json(found.commit.progress)
            keeper.certified = keeper.certified and found.commit.certified
            self._return = found
        else:
            self._set_aside = found
        self._standing.lost |= set(chronicle.before.lost)
        if self._return is not None:  # of those that were there at the commit, who is not found counts as gone until it comes
            self._standing.lost |= set(self._return.commit.members)
            self._standing.lost -= set(self._return.workers)
        keeper.open(version_in(states))
        if self._resume is not None:
            self._chronicle.tell(Resumed(version_in(states)))
        self._notary = open_notary(self.run_id, self._config, self._identity)
        return Safekeeping(keeper, chronicle, commits, on_disk=out is not None), states

    def _train(self, job: Job, safe: Safekeeping, states: States) -> tuple[States, int, Cluster, Job]:
        if self._return is None:
            safe.forget_commits()
        self._deployments = self._open_deployments(job, safe, states)
        job, states, cluster = self._deploy(job, safe, states)
        step, steps = version_in(states), self._config.training.steps
        returned = self._return is not None  # and what is due after a seal may not have been done
        while (sealed := returned or self._owes(states, step, job)) or (step < steps and not self._stopping):
            returned = False
            try:
                broken = None if sealed else cluster.run_step(step, lambda: self._stopping)
            except NotEnoughMemory as error:
                safe.keep_what_is_there(job, cluster, error)
                raise
            if broken is None:
                step += not sealed and cluster.coordinator.idle()  # who is stopped while the run waits has not begun it
                try:
                    states = self._look_after(job, safe, cluster, step) or states
                    if step < steps and not self._stopping:
                        moved = self._move(job, safe, cluster, step)
                        if moved is not None:
                            job, states, cluster = moved
                except FaultWindowExceeded as error:
                    broken = str(error)
            safe.hear()
            if broken is not None:
                states = self._fall_back(job, safe, cluster, step, broken)
                step = version_in(states)
                job, states, cluster = self._deploy(job, safe, states, "after the run went back")
        self._chronicle.halt_clock()
        safe.keep(job, cluster, states)
        safe.hear(wait=True)
        return states, step, cluster, job

    def _owes(self, states: States, step: int, job: Job) -> bool:
        """Whether the run was stopped after it had been looked after: the states of its last step are still to be collected."""
        return self._stopping and (version_in(states) != step or len(states) < job.plan.stages)

    def _look_after(self, job: Job, safe: Safekeeping, cluster: Cluster, step: int) -> States:
        """Evaluate and keep where that is due; in this order, so that a run that goes on from here has nothing to repeat.

        Gives the states where something was due, or where the run ends here.
        """
        evaluates, keeps = (self._is_due(step, every) for every in self._intervals)
        over = step == self._config.training.steps or self._stopping
        if not (evaluates or keeps or over):
            return {}
        broken = cluster.settle()
        if broken is not None:
            raise FaultWindowExceeded(broken)
        states = cluster.collect()
        if evaluates:
            self._evaluate(job, states, step)
        if keeps and not over:
            safe.keep(job, cluster, states)
        return states

    @property
    def _intervals(self) -> tuple[int, int]:
        return self._config.training.evaluate_every, self._config.output.checkpoint_every

    def _is_due(self, step: int, every: int) -> bool:
        return every > 0 and step % every == 0 and step < self._config.training.steps

    def _fall_back(self, job: Job, safe: Safekeeping, cluster: Cluster, step: int, reason: str) -> States:
        """Go back: to before the earliest lie that spot checks found, where the states of that version are still shown, else to
        the last certified checkpoint that is early enough. Whoever is lost or convicted does not come along.
        """
        safe.hear(wait=True)
        counts = self._chronicle.counts
        counts.rollbacks += 1
        if self._standing.falls(step) or counts.rollbacks > MAX_ROLLBACKS:
            raise FaultWindowExceeded(f"fell back {counts.rollbacks} times, last in step {step}: {reason}")
        rewind = cluster.coordinator.inspector.rewind
        states: States | None = None
        if rewind is not None:
            safe.keeper.forget_after(rewind.version)
            states = cluster.recall(rewind)
        if states is None:
            states = safe.keeper.last_certified()
        safe.forget_commits()
        if self._return is not None and version_in(states) < self._return.commit.version:
            self._chronicle.before = self._chronicle.before.back_to(version_in(states) * job.batches.tokens_per_step)
        self._chronicle.measure(cluster)
        self._chronicle.tell(RolledBack(step, version_in(states), reason))
        return states

    def _evaluate(self, job: Job, states: States, step: int) -> Evaluation:
        model = whole_model(job.source.config, _united(states), job.lora).to(self._config.model.device)
        score = evaluate(model, job.validation)
        self._chronicle.tell(Evaluated(step, score.perplexity, score.bits_per_byte))
        return score

    # -- deployments -------------------------------------------------------------------------------------------------

    def _open_deployments(self, job: Job, safe: Safekeeping, states: States) -> Deployments:
        assert self._engine is not None
        workers = None if self._return is None else self._return.workers
        steward = Steward(job, self._engine, self._chronicle.tell, cuts=self._likeness is None, workers=workers)
        return Deployments(
            self._engine,
            steward,
            self._standing,
            self._chronicle.tell,
            partial(self._deployment, safe),
            placed=partial(self._announce, version_in(states)),
            found=self._return,
            stopping=lambda: self._stopping,
        )

    @property
    def _steward(self) -> Steward:
        assert self._deployments is not None, "stages are placed before anything is deployed"
        return self._deployments.steward

    def _deploy(
        self, job: Job, safe: Safekeeping, states: States, cause: str = "", move: Move | None = None
    ) -> tuple[Job, States, Cluster]:
        assert self._deployments is not None
        self._chronicle.halt_clock()
        job, states, cluster = self._deployments.deploy(job, states, cause, move)
        self._chronicle.start_clock()
        safe.keeper.recut(job)
        self._deployed(cluster)
        return job, states, cluster

    def _deployment(self, safe: Safekeeping, job: Job) -> Deployment:
        return Deployment(
            f"{self.run_id}/{uuid.uuid4().hex[:8]}",  # nobody's word before a rollback counts against him after it
            notary=self._notary,
            draw=self._chronicle.rollbacks,
            likeness=self._likeness,
            identity=self._identity,
            committed=None if safe.commits is None else partial(safe.write_down, job, self._notary),
        )

    def _move(self, job: Job, safe: Safekeeping, cluster: Cluster, step: int) -> tuple[Job, States, Cluster] | None:
        """Where another placement is worth it: other seats from the next step on, or another cut from the newest sealed states.

        The answer is what goes on from here, where the cluster was deployed anew.
        """
        move = self._steward.review(step, cluster)
        if move is None:
            return None
        if move.placement.layers == job.plan.layers:
            self._steward.adopt(step, move)
            self._steward.announce(step, move.cause)
            cluster.coordinator.assign(move.placement.primaries)
            return None
        broken = cluster.settle()
        if broken is not None:
            raise FaultWindowExceeded(broken)
        states = cluster.collect()
        if recut(states, job.recut(move.placement.layers).plan) is None or not safe.keep_surely(job, cluster, states):
            return None
        self._chronicle.measure(cluster)
        return self._deploy(job, safe, states, move=move)

    # -- telling -----------------------------------------------------------------------------------------------------

    def _announce(self, version: int, job: Job) -> None:
        """Once: what is going to be trained, and where it goes on."""
        if self._announced:
            return
        self._announced = True
        plan, stages = job.plan, self._config.pipeline.stages
        shown = [f"{layer_words(its)}, {n:,} parameters" for its, n in zip(plan.layers, plan.parameter_counts, strict=True)]
        names = names_of_workers(stages)
        self._chronicle.tell(RunStarted(self.run_id, tuple(sys.argv), environment(job), plan.parameters, tuple(shown), names))
        if self._return is not None:
            self._chronicle.tell(Reunited(self._return.commit.version, self._return.workers))
        elif self._set_aside is not None:
            self._chronicle.tell(JournalSetAside(version, self._set_aside))


def _likeness(job: Job) -> Likeness | None:
    """Who computes with other bytes than whom, where that matters: with defences off nobody compares."""
    config, given = job.config, job.config.defence.calibration
    if config.defence_name == "none":
        return None
    return likeness_of(job, arithmetics(config), None if given is None else read_calibration(Path(given)))


def prepare_tested(config: RunConfig) -> Job:
    """What a run needs, and the proof that its model computes split what it computes whole; raises SelfTestFailed."""
    job = prepare(config)
    with pinned(config.model.device):  # as the run will be, whoever prepares it
        self_test(job.source.config, min(3, config.pipeline.stages), job.dtype, config.model.device)
    return job


def _united(states: States) -> dict[str, torch.Tensor]:
    return {name: tensor for state in states.values() for name, tensor in state.weights.items()}


def _published(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `weights_digest` covers: the adapter of a LoRA run, else the whole model."""
    adapters = {name: tensor for name, tensor in weights.items() if is_adapter(name)}
    return adapters or dict(weights)
