"""The trainer runs a job from its first step to its last: steps, evaluations, checkpoints, rollbacks, the result.

prepare --> deploy --> step, step, step ... --> evaluate, write the model --> RunResult
              ^             |
              |          both holders of a stage are gone
              +--- certified checkpoint <---+
"""

from __future__ import annotations

import platform
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from holdfast.checkpoint import Snapshot, latest_checkpoint, read_checkpoint, write_checkpoint
from holdfast.claim import StageState
from holdfast.cluster import Cluster, Company, names_of_workers
from holdfast.config import RunConfig, to_toml
from holdfast.digest import state_digest, weights_digest
from holdfast.errors import CheckpointError, ConfigError, FaultWindowExceeded
from holdfast.evaluate import Evaluation, evaluate
from holdfast.event import CheckpointWritten, Evaluated, Event, RolledBack, RunFinished, RunStarted, WorkerLost
from holdfast.job import Job, prepare
from holdfast.partition import is_adapter, save_adapter, save_model, whole_model
from holdfast.partition.memory import Batch, available_memory, check_memory, memory_per_worker
from holdfast.partition.selftest import self_test
from holdfast.result import Counts, GroundTruth, Meter, RunFacts, RunResult, summarise

Observer = Callable[[Event, float], None]
States = Mapping[int, StageState]

MAX_ROLLBACKS = 64
"""A run that falls back this often makes no headway."""


class Cast(Company, GroundTruth, Protocol):
    """Who plays the untrusted workers, and the truth about them; it comes from the edge."""


class Trainer:
    """One run. `observers` are called with every event and its virtual time, from the thread that runs.

    `cast` puts adversaries and faults around untrusted workers and knows afterwards what they forged; without one everybody
    is honest. `resume` is a run's directory, or one of its checkpoints.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        observers: Sequence[Observer] = (),
        cast: Cast | None = None,
        resume: Path | None = None,
    ) -> None:
        self.run_id = uuid.uuid4().hex[:12]
        self._config = config
        self._counts = Counts()
        self._observers: tuple[Observer, ...] = (self._counts, *observers)
        self._cast = cast
        self._resume = resume
        self._meter = Meter()
        self._lost: set[str] = set()
        self._stopping = False

    def stop(self) -> None:
        """Finish the step that is running, write a checkpoint and return; safe to call from a signal handler."""
        self._stopping = True

    def run(self) -> RunResult:
        """Train to the last step, or until `stop`.

        Raises a UsageError or SetupError before anything is written where the run cannot start, and FaultWindowExceeded
        where more is broken at once than can be carried.
        """
        torch.set_num_threads(1)
        began = time.perf_counter()
        job = prepare(self._config)
        self_test(job.source.config, min(3, self._config.pipeline.stages), job.dtype)
        self._check_memory(job)
        keeper = _Keeper(self._config, job, self.run_id)
        states = keeper.resume(self._resume) if self._resume is not None else keeper.initial()
        self._announce(job)
        states, step, cluster = self._train(job, keeper, states)
        self._measure(cluster)
        weights = {name: tensor for state in states.values() for name, tensor in state.weights.items()}
        score = self._evaluate(job, states, step)
        keeper.write_model(weights)
        result = self._result(job, weights, score, step, time.perf_counter() - began)
        self._tell(RunFinished(result.weights_digest, result.to_json()), 0.0)
        return result

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _train(self, job: Job, keeper: _Keeper, states: States) -> tuple[States, int, Cluster]:
        cluster = self._deploy(job, states)
        step = next(iter(states.values())).version
        while step < self._config.training.steps and not self._stopping:
            broken = cluster.run_step(step)
            if broken is not None:
                self._measure(cluster)
                states = self._fall_back(keeper, step, broken)
                step = next(iter(states.values())).version
                cluster = self._deploy(job, states)
                continue
            step += 1
            if self._is_due(step, self._config.output.checkpoint_every):
                self._keep(keeper, cluster.collect(), step)
            if self._is_due(step, self._config.training.evaluate_every):
                self._evaluate(job, cluster.collect(), step)
        states = cluster.collect()
        self._keep(keeper, states, step)
        return states, step, cluster

    def _deploy(self, job: Job, states: States) -> Cluster:
        cluster = Cluster(self.run_id, job, self._tell, self._cast, frozenset(self._lost))
        cluster.deploy(states, next(iter(states.values())).version)
        return cluster

    def _fall_back(self, keeper: _Keeper, step: int, reason: str) -> States:
        """Both holders of a stage are gone: go on from the last certified checkpoint, without those who are lost."""
        self._counts.rollbacks += 1
        if self._counts.rollbacks > MAX_ROLLBACKS:
            raise FaultWindowExceeded(f"fell back {MAX_ROLLBACKS} times, last in step {step}: {reason}")
        states = keeper.last_certified()
        self._tell(RolledBack(step, next(iter(states.values())).version, reason), 0.0)
        return states

    def _is_due(self, step: int, every: int) -> bool:
        return every > 0 and step % every == 0 and step < self._config.training.steps

    def _keep(self, keeper: _Keeper, states: States, step: int) -> None:
        path = keeper.keep(states)
        if path is not None:
            self._tell(CheckpointWritten(step, str(path)), 0.0)

    def _evaluate(self, job: Job, states: States, step: int) -> Evaluation:
        weights = {name: tensor for state in states.values() for name, tensor in state.weights.items()}
        model = whole_model(job.source.config, weights, job.lora).to(self._config.model.device)
        score = evaluate(model, job.validation)
        self._tell(Evaluated(step, score.perplexity, score.bits_per_byte), 0.0)
        return score

    # -- telling -----------------------------------------------------------------------------------------------------

    def _measure(self, cluster: Cluster) -> None:
        """Add what a cluster has used, at its end."""
        launcher = cluster.launcher
        self._meter.add(launcher.now, cluster.transport.traffic.bytes_sent, launcher.seconds_by_kind)

    def _tell(self, event: Event, seconds: float) -> None:
        """Pass an event on, in virtual time since the start of the run (a rollback starts a new clock)."""
        if isinstance(event, WorkerLost):
            self._lost.add(event.worker)
        self._meter.latest_s = max(self._meter.latest_s, seconds)
        at = self._meter.virtual_s + self._meter.latest_s
        for observer in self._observers:
            observer(event, at)

    def _announce(self, job: Job) -> None:
        plan, stages = job.plan, self._config.pipeline.stages
        shown = [
            f"layers {lo} to {hi - 1}, {n:,} parameters" for (lo, hi), n in zip(plan.layers, plan.parameter_counts, strict=True)
        ]
        names = names_of_workers(stages)
        self._tell(RunStarted(self.run_id, tuple(sys.argv), environment(job), plan.parameters, tuple(shown), names), 0.0)

    def _check_memory(self, job: Job) -> None:
        pipeline = self._config.pipeline
        batch = Batch(pipeline.micro_batches, pipeline.micro_batch_size, self._config.data.sequence_length, job.dtype)
        needs = memory_per_worker(job.plan, batch, shadows=self._config.defence_name != "none")
        check_memory(needs, worker_bytes=self._config.cluster.memory_bytes, machine_bytes=available_memory())

    def _result(
        self, job: Job, weights: Mapping[str, torch.Tensor], score: Evaluation, steps: int, seconds: float
    ) -> RunResult:
        run = RunFacts(
            self.run_id,
            steps,
            job.batches.tokens_per_step * len(self._counts.sealed),
            seconds,
            weights_digest(_published(weights)),
            self._config.defence_name != "none",
            self._stopping,
            self._config.output.dir,
        )
        return summarise(run, score, self._counts, self._meter, self._cast)


class _Keeper:
    """Checkpoints of a run: on disk where it has a directory, else the last one in memory."""

    def __init__(self, config: RunConfig, job: Job, run: str) -> None:
        self._config = config
        self._job = job
        self._run = run
        self._memory: States | None = None
        self._certified = config.defence_name != "none"
        self._out = Path(config.output.dir) if config.output.dir is not None else None

    def initial(self) -> dict[int, StageState]:
        return {stage: self._job.initial_state(stage) for stage in range(self._job.plan.stages)}

    def keep(self, states: States) -> Path | None:
        """Make `states` the newest checkpoint; gives its path where it was written."""
        if self._out is None:
            self._memory = states
            return None
        version = next(iter(states.values())).version
        snapshot = Snapshot(
            version,
            {name: tensor for state in states.values() for name, tensor in state.weights.items()},
            {name: tensor for state in states.values() for name, tensor in state.moments.items()},
            {name: state.updates for i, state in states.items() for name in self._job.plan.trainable_of(i)},
            {str(stage): state_digest(state).hex() for stage, state in states.items()},
            self._certified,
            self._run,
            to_toml(self._config),
        )
        return write_checkpoint(
            self._out / "checkpoints",
            snapshot,
            save_model=lambda path: self._save_model(path, snapshot.weights),
            config_toml=snapshot.config_toml,
            keep=self._config.output.keep,
        )

    def last_certified(self) -> States:
        """The newest certified checkpoint, or version 0, which is certified by how it was made."""
        if self._out is not None:
            path = latest_checkpoint(self._out / "checkpoints", certified=self._certified)
            if path is not None:
                return self._states(read_checkpoint(path))
        return self._memory or self.initial()

    def resume(self, source: Path) -> States:
        """The newest checkpoint of the run in `source`, or the checkpoint `source`; raises CheckpointError."""
        root = source / "checkpoints"
        path = latest_checkpoint(root) if root.is_dir() else source
        if path is None:
            return self.initial()
        snapshot = read_checkpoint(path)
        if snapshot.version > self._config.training.steps:
            raise ConfigError(f"{path} is at step {snapshot.version}, past the last of {self._config.training.steps} steps")
        return self._states(snapshot)

    def write_model(self, weights: Mapping[str, torch.Tensor]) -> None:
        """The finished model in Hugging Face form (with LoRA: a PEFT adapter), tokenizer beside it."""
        if self._out is not None:
            self._save_model(self._out / "model", weights)

    def _save_model(self, path: Path, weights: Mapping[str, torch.Tensor]) -> None:
        job = self._job
        if job.lora is None:
            save_model(path, job.source.config, weights, job.tokenizer)
            return
        adapters = {name: tensor for name, tensor in weights.items() if is_adapter(name)}
        save_adapter(path, job.lora, adapters, job.source.name)
        job.tokenizer.save_pretrained(path)

    def _states(self, snapshot: Snapshot) -> dict[int, StageState]:
        """Cut a snapshot into stages; it may come from another cut, since its names are those of the whole model."""
        plan, states = self._job.plan, {}
        for stage in range(plan.stages):
            names = plan.stage_parameters[stage]
            missing = [name for name in names if name not in snapshot.weights]
            if missing:
                raise CheckpointError(f"the checkpoint holds another model: it lacks {missing[0]!r}; give the run's own config")
            trainable = plan.trainable_of(stage)
            counts = {snapshot.updates.get(name, snapshot.version) for name in trainable}
            if len(counts) > 1:
                raise CheckpointError(
                    f"stage {stage} would unite parameters with {sorted(counts)} updates (stages were skipped); "
                    "resume with the cut that the run had"
                )
            kinds = ("exp_avg", "exp_avg_sq")
            moments = {f"{n}.{k}": snapshot.moments[f"{n}.{k}"] for n in trainable for k in kinds}
            weights = {name: snapshot.weights[name] for name in names}
            states[stage] = StageState(stage, snapshot.version, counts.pop() if counts else 0, weights, moments)
        return states


def _published(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `weights_digest` covers: the adapter of a LoRA run, else the whole model."""
    adapters = {name: tensor for name, tensor in weights.items() if is_adapter(name)}
    return adapters or dict(weights)


def environment(job: Job) -> dict[str, str]:
    """What besides the config could change bits: versions, machine, threads, and the text itself."""
    import transformers

    return {
        "holdfast": _version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "data": job.corpus.source,
        "data_sha256": job.corpus.sha256,
    }


def _version() -> str:
    from holdfast import __version__

    return __version__
