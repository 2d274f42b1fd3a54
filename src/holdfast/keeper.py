"""The checkpoints of a run as states of its stages: on disk where the run has a directory, else the last one in memory.

states of all stages --> names of the whole model --> checkpoints/step-NNNNNN --> the same model --> states, any cut

They are written behind the run's back. A sealed state is never changed, so it need not be copied for that; if it were changed
nevertheless, its digest would tell, and the checkpoint would not come to be.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from holdfast.atomic import clear_leftovers, new_directory
from holdfast.behind import Behind, Outcome
from holdfast.checkpoint import (
    Snapshot,
    checkpoint_path,
    drop_later,
    earlier_checkpoints,
    latest_checkpoint,
    read_checkpoint,
    version_of,
    write_checkpoint,
)
from holdfast.claim import StageState, version_in
from holdfast.config import RunConfig
from holdfast.digest import state_digest
from holdfast.errors import CheckpointError, ConfigError, DataError, NothingLeft, SetupError
from holdfast.evidence.log import FILE, check_end
from holdfast.job import Job
from holdfast.partition import is_adapter, model_writer, save_adapter
from holdfast.partition.source import LocalFiles
from holdfast.placement.recut import recut
from holdfast.progress import Progress
from holdfast.report.jsonl import read_report
from holdfast.report.record import read_result
from holdfast.restore import advised, check_same_run, check_tokenizer, earlier_name, newest_in, read_or_advise, states_of
from holdfast.stage import INITIATOR
from holdfast.toml import to_toml

States = Mapping[int, StageState]

WRITTEN = ("holdfast.log", "run.json", "report.html")
"""What else a run writes, and nobody reads before it is written."""

BASE = "base"
"""In a run's directory, the model that was made from scratch and that the run's adapters are for."""

log = logging.getLogger("holdfast.checkpoints")


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
        self._behind = Behind()
        self._told: list[Outcome] = []

    # -- where a run begins ------------------------------------------------------------------------------------------

    def initial(self) -> dict[int, StageState]:
        return {stage: self._job.initial_state(stage) for stage in range(self._job.plan.stages)}

    def resume(self, source: Path) -> tuple[States, Progress]:
        """The newest checkpoint of the run in `source`, or the checkpoint `source`; a run that was killed before its first
        one begins anew. Raises CheckpointError; changes nothing.
        """
        path = newest_in(source)
        if path is None:
            self.run = earlier_name(source) or self.run
            return self.initial(), Progress()
        snapshot = read_or_advise(path)
        if snapshot.version > self._config.training.steps:
            raise ConfigError(
                f"{path} is at step {snapshot.version}, past the last of {self._config.training.steps} steps; "
                "give more --steps, or an older checkpoint"
            )
        check_same_run(snapshot, self._config, path)
        progress = Progress.from_json(snapshot.progress)
        if INITIATOR in progress.lost:
            raise CheckpointError(advised(f"{path} says that the {INITIATOR} itself was lost", path))
        check_tokenizer(path, self._job)
        states = states_of(snapshot, self._job, path)
        self._newest = snapshot.version, path
        self.certified = self.certified and snapshot.certified
        self.run = snapshot.run or self.run
        return states, progress

    def check_unfinished(self, version: int) -> None:
        """Raise NothingLeft where the run in this directory has come to its end with `version`. Changes nothing."""
        if self._out is None or version < self._config.training.steps or not (self._out / "model").is_dir():
            return
        try:
            result = read_result(self._out)
        except DataError:
            return  # its end was not written down; that is still to be done
        if result.run_id == self.run and result.steps == version and not result.interrupted:
            raise NothingLeft(
                f"nothing is left to do: the run in {self._out} has all its {version} steps, and nothing was changed; "
                f"--steps N with more than {version} makes it longer, and another run needs another --out"
            )

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
        for path in (out / name for name in WRITTEN):
            if path.is_dir():
                raise DataError(f"{path} is a folder, and the run writes a file of that name; move it away, and go on then")
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

    def due(self, version: int) -> Path | None:
        """Where a checkpoint of `version` would be written; None where it is written already, or nothing ever is.

        Waits for one of the same version that is being written: if that fails, it is due again.
        """
        if self._out is None:
            return None
        if self._behind.version == version:
            self._behind.wait()
            self._take_note(self._behind.settled())
        root = self._out / "checkpoints"
        if self._newest is not None and self._newest[0] == version and self._newest[1].parent.resolve() == root.resolve():
            return None
        return checkpoint_path(root, version)

    def keep(self, states: States, progress: Progress, sealed: Mapping[int, bytes]) -> None:
        """Make `states` the newest checkpoint: begin to write them where the run has a directory; `settled` tells of the end.

        `sealed` are the digests that both holders of a stage have signed, by stage, as far as there are any.
        """
        version = version_in(states)
        if self._out is None:
            self._memory, self._newest = states, None
            return
        path = checkpoint_path(self._out / "checkpoints", version)
        snapshot = Snapshot(
            version,
            {name: tensor.cpu() for state in states.values() for name, tensor in state.weights.items()},
            {name: tensor.cpu() for state in states.values() for name, tensor in state.moments.items()},
            {name: state.updates for i, state in states.items() for name in self._job.plan.trainable_of(i)},
            {},
            self.certified,
            self.run,
            to_toml(self._config),
            progress.to_json(),
        )
        save, keep = self._writer(snapshot.weights), self._config.output.keep

        def write() -> Path:
            digests = {str(stage): _digest(state, sealed.get(stage)) for stage, state in states.items()}
            whole = replace(snapshot, digests=digests)
            return write_checkpoint(path.parent, whole, save_model=save, config_toml=whole.config_toml, keep=keep)

        self._behind.begin(version, path, write)

    def settled(self, *, wait: bool = False) -> list[Outcome]:
        """The checkpoints that were written since this was last asked, or could not be; with `wait`, all that are begun."""
        if wait:
            self._behind.wait()
        self._take_note(self._behind.settled())
        told, self._told = self._told, []
        return told

    def _take_note(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.error is None:
                self._newest = outcome.version, outcome.path
        self._told += outcomes

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint that is written."""
        return None if self._newest is None else self._newest[1]

    def close(self) -> None:
        """Finish what is being written."""
        self._behind.close()

    def last_certified(self) -> States:
        """The newest checkpoint of this run that is whole, or version 0; as far as the run is certified, they are.

        Raises CheckpointError where there are some, and all are damaged.
        """
        if self._newest is None:
            return self._memory or self.initial()
        damage = None
        for path in (self._newest[1], *earlier_checkpoints(self._newest[1])):
            try:
                return states_of(read_checkpoint(path), self._job, path)
            except CheckpointError as error:
                log.warning("a checkpoint is damaged: %s", error)
                damage = damage or error
        assert damage is not None
        raise damage

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
                self._writer(weights)(partial)
        except OSError as error:
            raise CheckpointError(
                f"could not write {target}: {error}; make room and resume, from "
                + (f"the last good checkpoint, {self.newest}" if self.newest else "the beginning: there is no checkpoint")
            ) from error

    def _writer(self, weights: Mapping[str, Tensor]) -> Callable[[Path], None]:
        job = self._job
        if job.lora is None:
            return model_writer(job.source.config, weights, job.tokenizer)
        lora, base, write_base = job.lora, *self._base(weights)
        adapters = {name: tensor for name, tensor in weights.items() if is_adapter(name)}

        def write(path: Path) -> None:
            write_base()
            save_adapter(path, lora, adapters, base)
            job.tokenizer.save_pretrained(path)

        return write

    def _base(self, weights: Mapping[str, Tensor]) -> tuple[str, Callable[[], None]]:
        """What an adapter is for, by the name that `peft` takes, and what writes it down where it is nowhere else."""
        source = self._job.source
        if isinstance(source.files, LocalFiles):
            return str(source.files.directory.resolve()), lambda: None
        if source.files is not None or self._out is None:
            return source.name, lambda: None
        target = self._out / BASE
        if target.is_dir():
            return str(target.resolve()), lambda: None
        writer = model_writer(source.config, weights, self._job.tokenizer)

        def write() -> None:
            if not target.is_dir():
                with new_directory(target) as partial:
                    writer(partial)

        return str(target.resolve()), write


def _digest(state: StageState, sealed: bytes | None) -> str:
    """Raises CheckpointError where a state is not what was sealed: it must have changed in memory since."""
    found = state_digest(state)
    if sealed and found != sealed:
        raise CheckpointError(
            f"the state of stage {state.stage} is not the one that was sealed after {state.version} steps: it has changed in "
            "memory; check the machine's memory, and resume from the checkpoint before"
        )
    return found.hex()
