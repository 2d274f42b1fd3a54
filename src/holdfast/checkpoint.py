"""A checkpoint is a plain model directory with what a resumed run needs beside it, written whole or not at all.

    checkpoints/step-000050/
        config.json  model.safetensors  tokenizer.json ...   opened by AutoModelForCausalLM.from_pretrained
        weights.safetensors                                  only what the model's files do not hold under the same name
        optimizer.safetensors                                moments, by whole-model parameter name
        state.json                                           version, updates, sealed digests, certified, config
        manifest.json                                        size and sha256 of every file

Names are those of the whole model, never of a stage, so a run may resume with another cut.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from holdfast.atomic import MANIFEST, clear_leftovers, new_directory, remove_directory, verify_manifest, write_manifest
from holdfast.digest import same_bytes
from holdfast.errors import CheckpointError, ConfigError
from holdfast.plain import fits, from_own_json

SCHEMA = 1
STATE, OPTIMIZER, WEIGHTS = "state.json", "optimizer.safetensors", "weights.safetensors"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Snapshot:
    """A run after `version` sealed steps.

    `weights` by whole-model name (tied tensors once); `moments` holds NAME.exp_avg and NAME.exp_avg_sq; `updates` counts
    the optimizer steps that each parameter took; `digests` maps each stage to the hex digest that both holders sealed;
    `certified` says that every step up to here was checked; `progress` is what the trainer counted (plain values).
    """

    version: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    updates: Mapping[str, int]
    digests: Mapping[str, str]
    certified: bool
    run: str = ""
    config_toml: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(
    root: Path,
    snapshot: Snapshot,
    *,
    save_model: Callable[[Path], None],
    config_toml: str,
    keep: int,
) -> Path:
    """Write `root/step-NNNNNN` atomically, then remove all but the newest `keep`; returns the new directory.

    `save_model` writes the Hugging Face files (and an adapter's) into the directory it is given. The newest certified
    checkpoint is never removed. On a failed write (a full disk) raises CheckpointError, and what was there before still is.
    """
    target = checkpoint_path(root, snapshot.version)
    try:
        root.mkdir(parents=True, exist_ok=True)
        clear_leftovers(root)
        with new_directory(target, replace=True) as partial:
            save_model(partial)
            in_model = _write_tensors(partial, snapshot)
            _write_state(partial / STATE, snapshot, config_toml, in_model)
            write_manifest(partial)
        _prune(root, keep)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write the checkpoint {target}: {error}; earlier checkpoints are intact") from error
    return target


def latest_checkpoint(root: Path, *, certified: bool = False) -> Path | None:
    """The newest checkpoint in `root` (with `certified`, the newest certified one), or None; contents are not verified."""
    newest_first = reversed(_checkpoints(root))
    return next((path for path in newest_first if not certified or _is_certified(path)), None)


def checkpoint_path(root: Path, version: int) -> Path:
    return root / f"step-{version:06d}"


def earlier_checkpoints(path: Path) -> list[Path]:
    """The checkpoints beside `path` that are older, newest first; contents are not verified."""
    version = version_of(path)
    found = [other for other in _checkpoints(path.absolute().parent) if version is not None and version_of(other) < version]  # type: ignore[operator]
    return found[::-1]


def newest_whole(path: Path, *, certified: bool = False) -> Path | None:
    """The newest checkpoint beside `path`, and not that one, whose files are what was written; None where there is none."""
    for other in reversed(_checkpoints(path.absolute().parent)):
        if other.name == path.absolute().name or (certified and not _is_certified(other)):
            continue
        try:
            verify_manifest(other)
        except CheckpointError:
            continue
        return path.parent / other.name
    return None


def version_of(path: Path) -> int | None:
    """The version that the name of a checkpoint's directory says; None where it is none."""
    match = _NAME.fullmatch(path.absolute().name)
    return int(match[1]) if match else None


def drop_later(root: Path, version: int) -> None:
    """Settle what a killed write left in `root`, and remove checkpoints of steps that are going to be taken again."""
    if not root.is_dir():
        return
    clear_leftovers(root)
    for path in _checkpoints(root):
        if (version_of(path) or 0) > version:
            remove_directory(path)


def read_checkpoint(path: Path) -> Snapshot:
    """Verify every file against the manifest, then read; raises CheckpointError naming the file that is at fault."""
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}; give a directory such as RUN/checkpoints/step-000050")
    verify_manifest(path)
    state = _read_state(path / STATE)
    try:
        found = {name: tensor.clone() for _file, name, tensor in _model_tensors(path) if name in state["weights_in_model"]}
        weights = {**found, **_read_tensors(path / WEIGHTS)}
        moments = _read_tensors(path / OPTIMIZER)
    except SafetensorError as error:
        raise CheckpointError(f"{path} holds an unreadable safetensors file: {error}") from error
    missing = [name for name in state["weights_in_model"] if name not in found]
    if missing:
        raise CheckpointError(f"{path}: {STATE} counts on {missing[0]!r} in the model's files, which do not hold it")
    return Snapshot(
        version=state["version"],
        weights=weights,
        moments=moments,
        updates=state["updates"],
        digests=state["digests"],
        certified=state["certified"],
        run=state["run"],
        config_toml=state["config"],
        progress=state["progress"],
    )


def export_checkpoint(source: Path, to: Path, *, allow_uncertified: bool = False) -> Path:
    """Copy the model directory (no optimizer, no state) of a run's newest certified checkpoint, or of one checkpoint.

    Raises CheckpointError where there is none or it is damaged or uncertified, ConfigError where `to` has something in it.
    """
    checkpoint = _choose(source, allow_uncertified)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not empty; export into a new directory")
    try:
        verify_manifest(checkpoint)
    except CheckpointError as error:
        other = newest_whole(checkpoint, certified=not allow_uncertified)
        kind = "that is whole" if allow_uncertified else "certified one that is whole"
        advice = (
            f"No other {kind} is there: train the run again with another --out"
            if other is None
            else f"The newest {kind} is {other}: holdfast export {other} --to {to}"
        )
        raise CheckpointError(f"{error}. {advice}") from None
    if not allow_uncertified and not _is_certified(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is not certified: some of its steps were never checked; "
            "resume the run until they are, or allow an uncertified export"
        )
    own = {STATE, OPTIMIZER, WEIGHTS, MANIFEST}
    try:
        with new_directory(to.absolute()) as partial:
            shutil.copytree(checkpoint, partial, dirs_exist_ok=True, ignore=lambda _folder, names: own & set(names))
    except OSError as error:
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error  # of the first file: (from, to, why)
        raise CheckpointError(f"could not write {to}: {reason}; make room, nothing was left there") from error
    return to


def _choose(source: Path, allow_uncertified: bool) -> Path:
    if (source / STATE).exists() or (source / MANIFEST).exists():
        return source
    root = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    found = latest_checkpoint(root, certified=True)
    if found is None and (allow_uncertified or not _checkpoints(root)):
        found = latest_checkpoint(root)
    if found is None:
        what = "no certified checkpoint" if _checkpoints(root) else "no checkpoint"
        raise CheckpointError(f"{source} holds {what}; give a run's directory, or one of its checkpoints/step-NNNNNN")
    return found


def _checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first; leftovers of killed writes have other names."""
    if not root.is_dir():
        return []
    named = ((match, path) for path in root.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir())
    return [path for _version, path in sorted((int(match[1]), path) for match, path in named)]


def _prune(root: Path, keep: int) -> None:
    kept = set(_checkpoints(root)[-max(keep, 1) :])
    certified = latest_checkpoint(root, certified=True)
    for path in _checkpoints(root):
        if path not in kept and path != certified:
            remove_directory(path)


def _is_certified(path: Path) -> bool:
    """Whether its state says so; a checkpoint whose state cannot be read is certified by nobody."""
    try:
        return bool(_read_state(path / STATE)["certified"])
    except CheckpointError:
        return False


def _write_tensors(directory: Path, snapshot: Snapshot) -> list[str]:
    """Write what the model's own files lack; returns the names of the weights that they hold byte for byte."""
    weights = snapshot.weights
    in_model = {
        name for _file, name, tensor in _model_tensors(directory) if name in weights and same_bytes(tensor, weights[name])
    }
    rest = {name: tensor for name, tensor in weights.items() if name not in in_model}
    if rest:
        save_file({name: _own(tensor) for name, tensor in rest.items()}, str(directory / WEIGHTS))
    save_file({name: _own(tensor) for name, tensor in snapshot.moments.items()}, str(directory / OPTIMIZER))
    return sorted(in_model)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _model_tensors(directory: Path) -> Iterator[tuple[Path, str, Tensor]]:
    for path in sorted(directory.glob("*.safetensors")):
        if path.name not in (OPTIMIZER, WEIGHTS):
            yield from ((path, name, tensor) for name, tensor in _tensors(path))


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (the file is no mapping)
            yield name, file.get_tensor(name)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Clones: a tensor in a mapped file begins at any offset, and other alignment gives other bits in matrix products."""
    return {name: tensor.clone() for name, tensor in _tensors(path)} if path.exists() else {}


def _write_state(path: Path, snapshot: Snapshot, config_toml: str, in_model: list[str]) -> None:
    state = {
        "schema": SCHEMA,
        "run": snapshot.run,
        "version": snapshot.version,
        "certified": snapshot.certified,
        "updates": dict(snapshot.updates),
        "digests": dict(snapshot.digests),
        "config": config_toml,
        "config_sha256": hashlib.sha256(config_toml.encode()).hexdigest(),
        "weights_in_model": in_model,
        "progress": dict(snapshot.progress),
    }
    path.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


_FIELDS: dict[str, Any] = {
    "run": str,
    "version": int,
    "certified": bool,
    "updates": dict[str, int],
    "digests": dict[str, str],
    "config": str,
    "weights_in_model": list[str],
    "progress": dict[str, Any],
}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = from_own_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is unreadable: {error}") from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        got = state.get("schema") if isinstance(state, dict) else state
        raise CheckpointError(f"{path} has schema {got!r}, this version of Holdfast reads {SCHEMA}")
    for name, kind in _FIELDS.items():
        if not fits(state.get(name), kind):
            raise CheckpointError(f"{path}: {name} is {str(state.get(name))[:80]!r}, it must be of type {kind.__name__}")
    wrong = [name for name, count in state["updates"].items() if not 0 <= count <= state["version"]]
    if state["version"] < 0 or wrong:
        what = f"{state['updates'][wrong[0]]} updates of {wrong[0]!r}" if wrong else "that"
        raise CheckpointError(f"{path} is of version {state['version']}: {what} cannot be")
    return state
