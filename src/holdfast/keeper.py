"""The checkpoints of a run as states of its stages: on disk where the run has a directory, else the last one in memory.

states of all stages --> names of the whole model --> checkpoints/step-NNNNNN --> the same model --> states, any cut
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from holdfast.atomic import MANIFEST, clear_leftovers, new_directory
from holdfast.checkpoint import Snapshot, drop_later, latest_checkpoint, read_checkpoint, version_of, write_checkpoint
from holdfast.claim import StageState
from holdfast.config import RunConfig, to_toml
from holdfast.data import read_vocabulary
from holdfast.digest import state_digest
from holdfast.errors import CheckpointError, ConfigError, DataError, ProtocolError, SetupError
from holdfast.evidence.log import FILE, check_end, read_line
from holdfast.evidence.record import Opening
from holdfast.job import Job
from holdfast.partition import is_adapter, save_adapter, save_model
from holdfast.partition.source import LocalFiles
from holdfast.placement.recut import recut
from holdfast.progress import Progress
from holdfast.report.jsonl import read_report
from holdfast.stage import INITIATOR

States = Mapping[int, StageState]


class Keeper:
    """`run` is the run's id, which a resumed run keeps; `certified` says that every step so far was checked."""

    def __init__(self, config: RunConfig, job: Job, run: str) -> None:
        self.run = run
        self.certified = config.defence_name != "none"
        self._config = config
        self._job = job
        self._out = Path(config.output.dir) if config.output.dir is not None else None
        self._newest: tuple[int, Path] | None = None
        self._memory: States | None = None

    # -- where a run begins ------------------------------------------------------------------------------------------

    def initial(self) -> dict[int, StageState]:
        return {stage: self._job.initial_state(stage) for stage in range(self._job.plan.stages)}

    def resume(self, source: Path) -> tuple[States, Progress]:
        """The newest checkpoint of the run in `source`, or the checkpoint `source`; a run that was killed before its first
        one begins anew. Raises CheckpointError; changes nothing.
        """
        path = _checkpoint_in(source)
        if path is None:
            self.run = _earlier_name(source) or self.run
            return self.initial(), Progress()
        snapshot = read_checkpoint(path)
        if snapshot.version > self._config.training.steps:
            raise ConfigError(
                f"{path} is at step {snapshot.version}, past the last of {self._config.training.steps} steps; "
                "give more --steps, or an older checkpoint"
            )
        progress = Progress.from_json(snapshot.progress)
        if INITIATOR in progress.lost:
            raise CheckpointError(f"{path} says that the {INITIATOR} itself was lost; use an older checkpoint")
        _check_tokenizer(path, self._job)
        states = states_of(snapshot, self._job, path)
        self._newest = snapshot.version, path
        self.certified = self.certified and snapshot.certified
        self.run = snapshot.run or self.run
        return states, progress

    def open(self, version: int) -> None:
        """Make the run's directory ready for what comes after `version`.

        Raises SetupError where it cannot be written to, and DataError too where its records are none to go on with; then
        nothing has been changed.
        """
        if self._out is None:
            return
        self._check_records(self._out)
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            if not os.access(self._out, os.W_OK | os.X_OK):
                raise PermissionError("no permission to write there")
            clear_leftovers(self._out)
            drop_later(self._out / "checkpoints", version)
        except OSError as error:
            raise SetupError(
                f"cannot write to the directory {self._out}: {error.strerror or error}; choose another --out"
            ) from None

    def _check_records(self, out: Path) -> None:
        """What is going to be continued is read now: a checkpoint that has been given up for it does not come back."""
        report = out / "report.jsonl"
        if report.exists() or report.is_symlink():
            read_report(report)
        if self._config.defence_name != "none":
            check_end(out / FILE)

    def recut(self, job: Job) -> None:
        """Stages have other layers from now on; what is kept in memory is cut as they are."""
        self._job = job
        if self._memory is not None:
            self._memory = recut(self._memory, job.plan) or self._memory

    # -- while it goes on --------------------------------------------------------------------------------------------

    def keep(self, states: States, progress: Progress) -> Path | None:
        """Make `states` the newest checkpoint; gives its path where it was written now."""
        version = next(iter(states.values())).version
        if self._out is None:
            self._memory, self._newest = states, None
            return None
        root = self._out / "checkpoints"
        if self._newest is not None and self._newest[0] == version and self._newest[1].parent.resolve() == root.resolve():
            return None
        snapshot = Snapshot(
            version,
            {name: tensor for state in states.values() for name, tensor in state.weights.items()},
            {name: tensor for state in states.values() for name, tensor in state.moments.items()},
            {name: state.updates for i, state in states.items() for name in self._job.plan.trainable_of(i)},
            {str(stage): state_digest(state).hex() for stage, state in states.items()},
            self.certified,
            self.run,
            to_toml(self._config),
            progress.to_json(),
        )
        path = write_checkpoint(
            root,
            snapshot,
            save_model=lambda path: self._save_model(path, snapshot.weights),
            config_toml=snapshot.config_toml,
            keep=self._config.output.keep,
        )
        self._newest = version, path
        return path

    def last_certified(self) -> States:
        """The newest checkpoint of this run, or version 0; as far as the run is certified, they are."""
        if self._newest is not None:
            path = self._newest[1]
            return states_of(read_checkpoint(path), self._job, path)
        return self._memory or self.initial()

    def forget_after(self, version: int) -> None:
        """Checkpoints past `version` hold what is not believed any more: remove them."""
        if self._memory is not None and next(iter(self._memory.values())).version > version:
            self._memory = None
        if self._newest is None or self._newest[0] <= version:
            return
        self._newest = None
        if self._out is not None:
            root = self._out / "checkpoints"
            drop_later(root, version)
            path = latest_checkpoint(root)
            found = None if path is None else version_of(path)
            self._newest = (found, path) if path is not None and found is not None else None

    def write_model(self, weights: Mapping[str, Tensor]) -> None:
        """The finished model in Hugging Face form (with LoRA: a PEFT adapter), tokenizer beside it: whole or not at all."""
        if self._out is None:
            return
        target = self._out / "model"
        try:
            with new_directory(target, replace=True) as partial:
                self._save_model(partial, weights)
        except OSError as error:
            raise CheckpointError(
                f"could not write {target}: {error}; the checkpoints are intact, make room and resume"
            ) from error

    def _save_model(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        job = self._job
        if job.lora is None:
            save_model(path, job.source.config, weights, job.tokenizer)
            return
        files = job.source.files
        base = str(files.directory.resolve()) if isinstance(files, LocalFiles) else job.source.name
        save_adapter(path, job.lora, {name: tensor for name, tensor in weights.items() if is_adapter(name)}, base)
        job.tokenizer.save_pretrained(path)


def _checkpoint_in(source: Path) -> Path | None:
    """`source` itself, or the newest checkpoint of the run in it; None for a run that has none yet."""
    if version_of(source) is not None or (source / MANIFEST).is_file():
        return source
    root = source if source.name == "checkpoints" else source / "checkpoints"
    if not root.is_dir() and not (source / "config.toml").is_file():
        raise CheckpointError(
            f"{source} holds neither a run nor a checkpoint; give a run's directory or a checkpoints/step-NNNNNN"
        )
    return latest_checkpoint(root)


def _earlier_name(source: Path) -> str | None:
    """What a run without a checkpoint called itself; its evidence goes on only under the same name."""
    path = (source.parent if source.name == "checkpoints" else source) / FILE
    try:
        with path.open("rb") as lines:
            record = read_line(lines.readline().rstrip(b"\n")).record
    except (OSError, ProtocolError):
        return None
    return record.run if isinstance(record, Opening) else None


def states_of(snapshot: Snapshot, job: Job, path: Path) -> dict[int, StageState]:
    """Cut a snapshot into the stages of `job`; it may come from another cut, since its names are those of the whole model.

    Raises CheckpointError where it holds another model than the job's, or parameters of unlike age in one stage.
    """
    plan = job.plan
    moments = [f"{name}.{kind}" for name in plan.trainable for kind in ("exp_avg", "exp_avg_sq")]
    _check_same_model(path, plan.shapes, snapshot.weights, job)
    _check_same_model(path, {name: plan.shapes[name.rpartition(".")[0]] for name in moments}, snapshot.moments, job)
    states = {}
    for stage in range(plan.stages):
        trainable = plan.trainable_of(stage)
        counts = {snapshot.updates.get(name, snapshot.version) for name in trainable}
        if len(counts) > 1:
            raise CheckpointError(
                f"{path}: stage {stage} would unite parameters with {sorted(counts)} updates (stages were skipped); "
                "resume with the number of stages that the run had"
            )
        weights = {name: snapshot.weights[name] for name in plan.stage_parameters[stage]}
        own = {f"{n}.{k}": snapshot.moments[f"{n}.{k}"] for n in trainable for k in ("exp_avg", "exp_avg_sq")}
        states[stage] = StageState(stage, snapshot.version, counts.pop() if counts else 0, weights, own)
    return states


_OTHER = "it is of another model; give the settings of the run that wrote it"


def _check_same_model(path: Path, needed: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor], job: Job) -> None:
    for what, names in (("lacks", needed.keys() - found.keys()), ("holds an unknown", found.keys() - needed.keys())):
        if names:
            raise CheckpointError(f"the checkpoint {path} {what} {min(names)!r}: {_OTHER}")
    for name, shape in needed.items():
        tensor = found[name]
        if tuple(tensor.shape) != shape or tensor.dtype != job.dtype:
            got = f"{list(tensor.shape)} of {tensor.dtype}"
            raise CheckpointError(
                f"the checkpoint {path} has {name!r} as {got}, needed is {list(shape)} of {job.dtype}: {_OTHER}"
            )


def _check_tokenizer(path: Path, job: Job) -> None:
    """A tokenizer trained on other text has other words under the same numbers, and nothing else would tell."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return
    try:
        vocabulary = read_vocabulary(file)
    except DataError as error:
        raise CheckpointError(f"{error}; use an older checkpoint") from None
    if vocabulary != job.tokenizer.get_vocab():
        raise CheckpointError(
            f"{path} was written with another tokenizer than the one that --data or --tokenizer gives here; "
            "resume with the text and the tokenizer of the run"
        )
