"""A checkpoint on the disk as states of a job's stages: found in a run, read, checked against the job, and cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from holdfast.atomic import MANIFEST
from holdfast.checkpoint import Snapshot, latest_checkpoint, newest_whole, read_checkpoint, version_of
from holdfast.claim import StageState
from holdfast.config import RunConfig, resolve
from holdfast.data import read_vocabulary
from holdfast.errors import CheckpointError, ConfigError, DataError, ProtocolError
from holdfast.evidence.log import FILE, read_line
from holdfast.evidence.record import Opening
from holdfast.job import Job
from holdfast.placement.recut import KINDS, UnlikeAge, staged
from holdfast.plain import from_toml


def read_or_advise(path: Path) -> Snapshot:
    """Read a checkpoint; where it is damaged, the error says which other one is whole, and what to do."""
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        if not path.is_dir():
            raise
        raise CheckpointError(advised(str(error), path)) from None


def advised(error: str, path: Path) -> str:
    """What is wrong with the checkpoint `path`, and what to go on from instead."""
    other = newest_whole(path)
    if other is None:
        return f"{error}. No other checkpoint of the run is whole: restore it from a copy, or train again with another --out"
    return f"{error}. The newest that is whole is {other}: go on with --resume {other}, or remove {path} and start again"


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


_OF_THE_RUN = {
    ("training", "seed"): "--seed",
    ("model", "lora_rank"): "--lora-rank",
    ("model", "lora_alpha"): "--lora-alpha",
    ("data", "sequence_length"): "--seq-length",
    ("data", "train_part"): "data.train_part",
    ("data", "train_tokens"): "data.train_tokens",
    ("pipeline", "micro_batches"): "--micro-batches",
    ("pipeline", "micro_batch_size"): "--micro-batch-size",
}
"""What says which text each step sees, what is trained, and the bits of all that is drawn: a run has one of each."""


def check_same_run(snapshot: Snapshot, config: RunConfig, path: Path) -> None:
    """Raise ConfigError where a setting differs that makes another run of it; a checkpoint may have none that can be read."""
    try:
        before = resolve(from_toml(snapshot.config_toml))
    except (ConfigError, ValueError):
        return
    for (section, key), option in _OF_THE_RUN.items():
        was, now = (getattr(getattr(each, section), key) for each in (before, config))
        if was != now:
            kind = "another seed" if key == "seed" else f"another {option}"
            raise ConfigError(
                f"{path} was written with {option} {was}, got {now}: {kind} is another run; leave it out to go on with this "
                "one, or begin another with another --out"
            )


def check_tokenizer(path: Path, job: Job) -> None:
    """A tokenizer trained on other text has other words under the same numbers, and nothing else would tell."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return
    try:
        vocabulary = read_vocabulary(file)
    except DataError as error:
        raise CheckpointError(advised(str(error), path)) from None
    if vocabulary != job.tokenizer.get_vocab():
        raise CheckpointError(
            f"{path} was written with another tokenizer than the one that --data or --tokenizer gives here; "
            "resume with the text and the tokenizer of the run"
        )
