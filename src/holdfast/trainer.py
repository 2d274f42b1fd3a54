"""The trainer runs a job from its first step to its last: steps, evaluations, checkpoints, rollbacks, the result.

prepare --> deploy --> step, step, step ... --> evaluate, write the model --> RunResult
              ^             |
              |          both holders of a stage are gone
              +--- certified checkpoint <---+
"""

from __future__ import annotations

import math
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from holdfast.checkpoint import version_of
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
    CheckpointFailed,
    CheckpointTaken,
    CheckpointWritten,
    Evaluated,
    Event,
    Joined,
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
from holdfast.result import Counts, GroundTruth, Meter, RunFacts, RunResult, summarise
from holdfast.standing import Standing

Observer = Callable[[Event, float], None]
Usage = tuple[float, int, Mapping[str, float]]
"""The time of an engine's clock, bytes sent, seconds by kind of work."""

MAX_ROLLBACKS = 64
"""A run that falls back this often makes no headway."""

NOT_SCORED = Evaluation(math.nan, math.nan, math.nan, 0, 0)


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
        self.run_id = uuid.uuid4().hex[:12]
        self._config = config
        self._counts = Counts()
        self._observers: tuple[Observer, ...] = (self._counts, *observers)
        self._cast = cast
        self._identity = identity
        self._journal = journal if config.defence_name != "none" else None
        self._open_engine = open_engine or partial(MemoryEngine, config, cast)
        self._engine: Engine | None = None
        self._keeper: Keeper | None = None
        self._failing = False
        self._resume = resume
        self._job = job
        self._deployed = deployed
        self._notary = Notary()
        self._likeness: Likeness | None = None
        self._meter = Meter()
        self._before = Progress()
        self._standing = Standing(config.defence, lambda: Counter(self._before.lies) + self._counts.blamed_workers)
        self._stopping = False
        self._announced = False
        self._deployments: Deployments | None = None
        self._fell: tuple[int, frozenset[str]] | None = None
        self._commits: Commits | None = None
        self._return: Return | None = None
        self._set_aside: str | None = None
        self._began = time.perf_counter()
        self._training_s = 0.0
        self._steps_since: float | None = None

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
        self._began = time.perf_counter()
        job = self._job if self._job is not None else prepare_tested(self._config)
        check_fits(job)
        self._likeness = _likeness(job)
        self._keeper = keeper = Keeper(self._config, job, self.run_id)
        begun = self._go_on(keeper)
        self._engine = self._open_engine()
        if self._stopping:  # before there was an engine that could be told
            self._engine.interrupt()
        states, step, cluster, job = self._train(job, keeper, self._start(job, keeper, begun))
        self._measure(cluster)
        score = self._evaluate(job, states, step)
        weights = _united(states)
        keeper.write_model(weights)
        pace = self._steward.pace(step, cluster)
        here = replace(
            self._result(job, keeper, step, score, self._meter),
            weights_digest=weights_digest(_published(weights)),
            predicted_step_seconds=pace.predicted_s,
            step_seconds=pace.measured_s,
        )
        result = self._before.plus(here)
        self._tell(RunFinished(result.weights_digest, result.to_json()), 0.0)
        return result

    def _go_on(self, keeper: Keeper) -> States:
        """The states that the run begins with, or goes on from; raises NothingLeft where it has ended. Changes nothing."""
        if self._resume is None:
            return keeper.initial()
        states, self._before = keeper.resume(self._resume)
        self.run_id = keeper.run
        check_evidence(self.run_id, self._config, _version(states), self._identity)
        keeper.check_unfinished(_version(states))
        return states

    def _start(self, job: Job, keeper: Keeper, states: States) -> States:
        """The states to go on from. Up to here nothing has been written; from here on the run has its directory."""
        if self._journal is not None and self._config.output.dir is not None:
            self._commits = Commits(self._journal, job, Path(self._config.output.dir))
        found = None
        if self._commits is not None and self._resume is not None:
            found = self._commits.look(self._engine, self.run_id, _version(states), lambda: self._stopping)
        if isinstance(found, Return):
            states, self._before = found.states, Progress.from_json(found.commit.progress)
            keeper.certified = keeper.certified and found.commit.certified
            self._return = found
        else:
            self._set_aside = found
        self._standing.lost |= set(self._before.lost)
        if self._return is not None:  # of those that were there at the commit, who is not found counts as gone until it comes
            self._standing.lost |= set(self._return.commit.members)
            self._standing.lost -= set(self._return.workers)
        keeper.open(_version(states))
        if self._resume is not None:
            self._tell(Resumed(_version(states)), 0.0)
        self._notary = open_notary(self.run_id, self._config, self._identity)
        return states

    def _train(self, job: Job, keeper: Keeper, states: States) -> tuple[States, int, Cluster, Job]:
        if self._commits is not None and self._return is None:
            self._commits.forget()
        self._deployments = self._open_deployments(job, keeper, states)
        job, states, cluster = self._deploy(job, keeper, states)
        step, steps = _version(states), self._config.training.steps
        returned = self._return is not None  # and what is due after a seal may not have been done
        while (sealed := returned or self._owes(states, step, job)) or (step < steps and not self._stopping):
            returned = False
            try:
                broken = None if sealed else cluster.run_step(step, lambda: self._stopping)
            except NotEnoughMemory as error:
                self._keep_what_is_there(job, keeper, cluster, error)
                raise
            if broken is None:
                step += not sealed and cluster.coordinator.idle()  # who is stopped while the run waits has not begun it
                try:
                    states = self._look_after(job, keeper, cluster, step) or states
                    if step < steps and not self._stopping:
                        moved = self._move(job, keeper, cluster, step)
                        if moved is not None:
                            job, states, cluster = moved
                except FaultWindowExceeded as error:
                    broken = str(error)
            self._hear_of_checkpoints(keeper)
            if broken is not None:
                states = self._fall_back(job, keeper, cluster, step, broken)
                step = _version(states)
                job, states, cluster = self._deploy(job, keeper, states, "after the run went back")
        self._halt_clock()
        self._keep(job, keeper, cluster, states)
        self._hear_of_checkpoints(keeper, wait=True)
        return states, step, cluster, job

    def _keep_what_is_there(self, job: Job, keeper: Keeper, cluster: Cluster, reason: NotEnoughMemory) -> None:
        """The run ends for lack of memory, and whoever has the states is still there, it is hoped."""
        try:
            states = cluster.collect()
        except FaultWindowExceeded as error:
            raise NotEnoughMemory(f"{reason}; and its last states could not be kept: {error}") from error
        self._keep(job, keeper, cluster, states)
        self._hear_of_checkpoints(keeper, wait=True)

    def _owes(self, states: States, step: int, job: Job) -> bool:
        """Whether the run was stopped after it had been looked after: the states of its last step are still to be collected."""
        return self._stopping and (_version(states) != step or len(states) < job.plan.stages)

    def _open_deployments(self, job: Job, keeper: Keeper, states: States) -> Deployments:
        assert self._engine is not None
        workers = None if self._return is None else self._return.workers
        steward = Steward(job, self._engine, partial(self._tell, seconds=0.0), cuts=self._likeness is None, workers=workers)
        return Deployments(
            self._engine,
            steward,
            self._standing,
            self._tell,
            partial(self._deployment, keeper),
            placed=partial(self._announce, _version(states)),
            found=self._return,
            stopping=lambda: self._stopping,
        )

    @property
    def _steward(self) -> Steward:
        assert self._deployments is not None, "stages are placed before anything is deployed"
        return self._deployments.steward

    def _deploy(
        self, job: Job, keeper: Keeper, states: States, cause: str = "", move: Move | None = None
    ) -> tuple[Job, States, Cluster]:
        assert self._deployments is not None
        self._halt_clock()
        job, states, cluster = self._deployments.deploy(job, states, cause, move)
        self._steps_since = time.perf_counter()
        keeper.recut(job)
        self._deployed(cluster)
        return job, states, cluster

    def _deployment(self, keeper: Keeper, job: Job) -> Deployment:
        name = f"{self.run_id}/{uuid.uuid4().hex[:8]}"  # nobody's word before a rollback counts against him after it
        draw = int(self._before.sums.get("rollbacks", 0)) + self._counts.rollbacks
        committed = None if self._commits is None else partial(self._write_down, job, keeper, self._commits)
        return Deployment(
            name,
            notary=self._notary,
            draw=draw,
            likeness=self._likeness,
            identity=self._identity,
            committed=committed,
        )

    def _move(self, job: Job, keeper: Keeper, cluster: Cluster, step: int) -> tuple[Job, States, Cluster] | None:
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
        if recut(states, job.recut(move.placement.layers).plan) is None or not self._keeps(job, keeper, cluster, states):
            return None
        self._measure(cluster)
        return self._deploy(job, keeper, states, move=move)

    def _look_after(self, job: Job, keeper: Keeper, cluster: Cluster, step: int) -> States:
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
            self._keep(job, keeper, cluster, states)
        return states

    @property
    def _intervals(self) -> tuple[int, int]:
        return self._config.training.evaluate_every, self._config.output.checkpoint_every

    def _is_due(self, step: int, every: int) -> bool:
        return every > 0 and step % every == 0 and step < self._config.training.steps

    def _fall_back(self, job: Job, keeper: Keeper, cluster: Cluster, step: int, reason: str) -> States:
        """Go back: to before the earliest lie that spot checks found, where the states of that version are still shown, else to
        the last certified checkpoint that is early enough. Whoever is lost or convicted does not come along.
        """
        self._hear_of_checkpoints(keeper, wait=True)
        self._counts.rollbacks += 1
        again = self._fell == (step, frozenset(self._standing.lost))
        self._fell = (step, frozenset(self._standing.lost))
        if again or self._counts.rollbacks > MAX_ROLLBACKS:
            raise FaultWindowExceeded(f"fell back {self._counts.rollbacks} times, last in step {step}: {reason}")
        rewind = cluster.coordinator.inspector.rewind
        states: States | None = None
        if rewind is not None:
            keeper.forget_after(rewind.version)
            states = cluster.recall(rewind)
        if states is None:
            states = keeper.last_certified()
        if self._commits is not None:
            self._commits.forget()
        if self._return is not None and _version(states) < self._return.commit.version:
            self._before = self._before.back_to(_version(states) * job.batches.tokens_per_step)
        self._measure(cluster)
        self._tell(RolledBack(step, _version(states), reason), 0.0)
        return states

    def _write_down(self, job: Job, keeper: Keeper, commits: Commits, cluster: Cluster) -> None:
        """A step is sealed: what has come to pass up to here, for a host that is killed before the next one."""
        glance = cluster.launcher.glance()
        usage = cluster.launcher.now, glance.bytes_sent, glance.seconds
        progress = self._so_far(job, keeper, cluster.coordinator.membership.version, usage)
        commits.write(job, cluster, self.run_id, self._notary.mark(), progress, certified=keeper.certified)

    def _keep(self, job: Job, keeper: Keeper, cluster: Cluster, states: States) -> None:
        """Begin a checkpoint; what it counts of the run so far is counted now."""
        version = _version(states)
        path = keeper.due(version)
        if path is not None:
            self._tell(CheckpointTaken(version, str(path)), 0.0)
        elif self._config.output.dir is not None:
            return
        sealed = cluster.archive.digests if cluster.archive.version == version and cluster.archive.checked else {}
        keeper.keep(states, self._so_far(job, keeper, version, _usage(cluster)), dict(sealed))

    def _keeps(self, job: Job, keeper: Keeper, cluster: Cluster, states: States) -> bool:
        """Begin a checkpoint of states that machines are going to forget. With a journal it must be written: the last commit is
        of the old cut.
        """
        self._keep(job, keeper, cluster, states)
        if self._commits is None:
            return True
        self._hear_of_checkpoints(keeper, wait=True)
        return keeper.newest is not None and version_of(keeper.newest) == _version(states)

    def _so_far(self, job: Job, keeper: Keeper, version: int, usage: Usage) -> Progress:
        """What the run has counted up to `version`, with what this deployment has used until now."""
        meter = replace(self._meter, seconds=Counter(self._meter.seconds))
        meter.add(*usage)
        here = self._result(job, keeper, version, NOT_SCORED, meter)
        return Progress.of(self._before.plus(here), frozenset(self._standing.lost))

    def _hear_of_checkpoints(self, keeper: Keeper, *, wait: bool = False) -> None:
        """Tell of those that are written now; of those that could not be, only the first in a row."""
        for outcome in keeper.settled(wait=wait):
            if outcome.error is None:
                self._tell(CheckpointWritten(outcome.version, str(outcome.path)), 0.0)
            elif not self._failing:
                last = keeper.newest
                self._tell(CheckpointFailed(outcome.version, str(last or ""), str(outcome.error)), 0.0)
            self._failing = outcome.error is not None

    def _evaluate(self, job: Job, states: States, step: int) -> Evaluation:
        model = whole_model(job.source.config, _united(states), job.lora).to(self._config.model.device)
        score = evaluate(model, job.validation)
        self._tell(Evaluated(step, score.perplexity, score.bits_per_byte), 0.0)
        return score

    def _halt_clock(self) -> None:
        """No step is made from here on: machines may have to be waited for, or the run is over."""
        self._training_s, self._steps_since = self._time_in_steps(), None

    def _time_in_steps(self) -> float:
        running = 0.0 if self._steps_since is None else time.perf_counter() - self._steps_since
        return self._training_s + running

    # -- telling -----------------------------------------------------------------------------------------------------

    def _measure(self, cluster: Cluster) -> None:
        """Add what a cluster has used, at its end."""
        self._meter.add(*_usage(cluster))

    def _tell(self, event: Event, seconds: float) -> None:
        """Pass an event on, in seconds since the start of the run (a rollback or a resume starts the engine's clock anew)."""
        self._standing.hear(event)
        if isinstance(event, Joined):
            self._fell = None  # whoever goes again in the same step has been back: that is no run in a circle
        self._meter.latest_s = max(self._meter.latest_s, seconds)
        at = self._before.virtual_s + self._meter.virtual_s + self._meter.latest_s
        for observer in self._observers:
            observer(event, at)

    def _announce(self, version: int, job: Job) -> None:
        """Once: what is going to be trained, and where it goes on."""
        if self._announced:
            return
        self._announced = True
        plan, stages = job.plan, self._config.pipeline.stages
        shown = [f"{layer_words(its)}, {n:,} parameters" for its, n in zip(plan.layers, plan.parameter_counts, strict=True)]
        names = names_of_workers(stages)
        self._tell(RunStarted(self.run_id, tuple(sys.argv), environment(job), plan.parameters, tuple(shown), names), 0.0)
        if self._return is not None:
            self._tell(Reunited(self._return.commit.version, self._return.workers), 0.0)
        elif self._set_aside is not None:
            self._tell(JournalSetAside(version, self._set_aside), 0.0)

    def _result(self, job: Job, keeper: Keeper, steps: int, score: Evaluation, meter: Meter) -> RunResult:
        """What this process has come to; what came before it was resumed is not in it."""
        assert self._engine is not None, "it has carried the run"
        run = RunFacts(
            self.run_id,
            steps,
            job.batches.tokens_per_step * len(self._counts.sealed),
            time.perf_counter() - self._began,
            self._time_in_steps(),
            "",
            keeper.certified,
            self._stopping,
            self._config.output.dir,
            None if keeper.newest is None else version_of(keeper.newest),
            self._engine.clock,
        )
        return summarise(run, score, self._counts, meter, self._cast)


def _likeness(job: Job) -> Likeness | None:
    """Who computes with other bytes than whom, where that matters: with defences off nobody compares."""
    config, given = job.config, job.config.defence.calibration
    if config.defence_name == "none":
        return None
    return likeness_of(job, arithmetics(config), None if given is None else read_calibration(Path(given)))


def prepare_tested(config: RunConfig) -> Job:
    """What a run needs, and the proof that its model computes split what it computes whole; raises SelfTestFailed."""
    job = prepare(config)
    self_test(job.source.config, min(3, config.pipeline.stages), job.dtype, config.model.device)
    return job


def _version(states: States) -> int:
    return next(iter(states.values())).version


def _united(states: States) -> dict[str, torch.Tensor]:
    return {name: tensor for state in states.values() for name, tensor in state.weights.items()}


def _usage(cluster: Cluster) -> Usage:
    launcher = cluster.launcher
    return launcher.now, launcher.bytes_sent, launcher.seconds_by_kind


def _published(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `weights_digest` covers: the adapter of a LoRA run, else the whole model."""
    adapters = {name: tensor for name, tensor in weights.items() if is_adapter(name)}
    return adapters or dict(weights)
