"""A checkpoint on the disk as states of a job's stages: found in a run, read, checked against the job, and cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from holdfast.atomic import MANIFEST, verify_manifest
from holdfast.checkpoint import Snapshot, earlier_checkpoints, latest_checkpoint, read_checkpoint, version_of
from holdfast.claim import StageState
from holdfast.data import read_vocabulary
from holdfast.errors import CheckpointError, DataError, ProtocolError
from holdfast.evidence.log import FILE, read_line
from holdfast.evidence.record import Opening
from holdfast.job import Job
from holdfast.placement.recut import KINDS, UnlikeAge, staged


def read_or_advise(path: Path, *, chosen: bool) -> Snapshot:
    """Read a checkpoint; where it is damaged and not `chosen` by hand, the error says how to go on from an older one."""
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        for older in () if chosen else earlier_checkpoints(path):
            try:
                verify_manifest(older)
            except CheckpointError:
                continue
            raise CheckpointError(
                f"{error}. The newest that is whole is {older}: go on with --resume {older}, or remove {path} and start again"
            ) from None
        raise


def newest_in(source: Path) -> Path | None:
    """`source` itself, or the newest checkpoint of the run in it; None for a run that has none yet."""
    if version_of(source) is not None or (source / MANIFEST).is_file():
        return source
    root = source if source.name == "checkpoints" else source / "checkpoints"
    if not root.is_dir() and not (source / "config.toml").is_file():
        raise CheckpointError(
            f"{source} holds neither a run nor a checkpoint; give a run's directory or a checkpoints/step-NNNNNN"
        )
    return latest_checkpoint(root)


def earlier_name(source: Path) -> str | None:
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
    trainable = sorted(plan.trainable)
    moments = [f"{name}.{kind}" for name in trainable for kind in KINDS]
    _check_same_model(path, plan.shapes, snapshot.weights, job)
    _check_same_model(path, {name: plan.shapes[name.rpartition(".")[0]] for name in moments}, snapshot.moments, job)
    updates = {name: snapshot.updates.get(name, snapshot.version) for name in trainable}
    try:
        return staged(plan, snapshot.version, snapshot.weights, snapshot.moments, updates)
    except UnlikeAge as error:
        raise CheckpointError(f"{path}: {error}; resume with the number of stages that the run had") from None


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


def check_tokenizer(path: Path, job: Job) -> None:
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
