"""A checkpoint survives kills, full disks and vandals, or says which file is at fault; a plain Auto class opens it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from holdfast import checkpoint as module
from holdfast.checkpoint import Snapshot, export_checkpoint, latest_checkpoint, read_checkpoint, write_checkpoint
from holdfast.digest import same_bytes
from holdfast.errors import CheckpointError, ConfigError


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=6, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).to(dtype)


def snapshot_of(model: GPT2LMHeadModel, version: int = 5, certified: bool = True) -> Snapshot:
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moments = {f"{name}.{kind}": torch.randn_like(w) for name, w in weights.items() for kind in ("exp_avg", "exp_avg_sq")}
    updates = {name: version - (".h.1." in name) for name in weights}
    return Snapshot(version, weights, moments, updates, {"0": "ab" * 32, "1": "cd" * 32}, certified, run="r1")


def write(root: Path, snapshot: Snapshot, keep: int = 3, save: Callable[[Path], Any] | None = None) -> Path:
    def save_model(directory: Path) -> None:
        model = tiny_model()
        model.load_state_dict({**snapshot.weights, "lm_head.weight": snapshot.weights["transformer.wte.weight"]})
        model.to(next(iter(snapshot.weights.values())).dtype).save_pretrained(directory)

    return write_checkpoint(root, snapshot, save_model=save or save_model, config_toml="[training]\nsteps = 9\n", keep=keep)


def write_small(root: Path, version: int, certified: bool = True, keep: int = 3) -> Path:
    weights = {"w": torch.full((3,), float(version))}
    snapshot = Snapshot(version, weights, {}, {"w": version}, {}, certified)
    return write_checkpoint(root, snapshot, save_model=lambda path: save_small(path, weights), config_toml="", keep=keep)


def save_small(directory: Path, weights: dict[str, torch.Tensor]) -> None:
    (directory / "config.json").write_text("{}")
    save_file(weights, directory / "model.safetensors")


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_back_to_the_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    snapshot = snapshot_of(tiny_model(dtype=dtype))
    path = write(tmp_path / "checkpoints", snapshot)
    assert path == tmp_path / "checkpoints" / "step-000005"
    assert names(path) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    found = read_checkpoint(path)
    for kind in ("weights", "moments"):
        written, read = getattr(snapshot, kind), getattr(found, kind)
        assert sorted(read) == sorted(written)
        assert all(same_bytes(read[name], written[name]) for name in written)
        assert all(tensor.data_ptr() % 64 == 0 for tensor in read.values())
    assert replace(found, weights={}, moments={}) == replace(
        snapshot, weights={}, moments={}, config_toml="[training]\nsteps = 9\n"
    )


def test_the_plain_auto_class_opens_it(tmp_path: Path) -> None:
    model = tiny_model()
    path = write(tmp_path, snapshot_of(model))
    opened = AutoModelForCausalLM.from_pretrained(path)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(opened(tokens).logits, model.eval()(tokens).logits)


def test_weights_that_the_model_files_lack_or_round_are_kept_beside_them(tmp_path: Path) -> None:
    """A library may store under other names, or an adapter's directory may leave the base out: nothing may be lost."""
    weights = {"a": torch.tensor([1.0]), "b": torch.tensor([0.1]), "c": torch.tensor([-0.0])}
    files = {"a": weights["a"], "b": weights["b"].to(torch.bfloat16), "c": torch.tensor([0.0]), "other": torch.ones(1)}
    snapshot = Snapshot(1, weights, {}, {}, {}, True)
    path = write(tmp_path, snapshot, save=lambda directory: save_small(directory, files))
    assert (path / "weights.safetensors").exists()
    found = read_checkpoint(path).weights
    assert sorted(found) == ["a", "b", "c"]
    assert all(same_bytes(found[name], weights[name]) for name in weights)


def alterations() -> dict[str, tuple[Callable[[Path], Any], str]]:
    def flip(path: Path) -> None:
        octets = bytearray(path.read_bytes())
        octets[-1] ^= 1
        path.write_bytes(octets)

    def truncate(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-3])

    model, state, manifest = "model.safetensors", "state.json", "manifest.json"
    return {
        "altered model": (lambda p: flip(p / model), r"altered: model\.safetensors no longer has the sha256"),
        "truncated model": (lambda p: truncate(p / model), r"torn: model\.safetensors has \d+ bytes where \d+"),
        "altered moments": (lambda p: flip(p / "optimizer.safetensors"), r"altered: optimizer\.safetensors"),
        "missing moments": (lambda p: (p / "optimizer.safetensors").unlink(), r"optimizer\.safetensors is missing"),
        "missing state": (lambda p: (p / state).unlink(), r"state\.json is missing"),
        "altered state": (
            lambda p: (p / state).write_text((p / state).read_text().replace("true", "alse")),
            r"altered: state\.json",
        ),
        "extra file": (lambda p: (p / "extra.bin").write_bytes(b"x"), r"extra\.bin is not in its manifest"),
        "extra folder": (lambda p: [(p / "d").mkdir(), (p / "d" / "x").touch()], r"d/x is not in its manifest"),
        "extra link": (lambda p: (p / "link").symlink_to(p), r"link is not in its manifest"),
        "missing manifest": (lambda p: (p / manifest).unlink(), r"manifest\.json is missing"),
        "torn manifest": (lambda p: truncate(p / manifest), r"manifest\.json is unreadable"),
        "strange manifest": (lambda p: (p / manifest).write_text('{"schema": 1, "files": 3}'), r"manifest\.json is unreadable"),
        "newer manifest": (lambda p: (p / manifest).write_text('{"schema": 2}'), r"manifest\.json has schema 2"),
        "no directory": (shutil.rmtree, "no checkpoint at"),
    }


@pytest.mark.parametrize("what", alterations())
def test_damage_is_named_before_anything_is_loaded(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_small(tmp_path, 1)
    alter, message = alterations()[what]
    alter(path)
    monkeypatch.setattr(module, "safe_open", lambda *_a, **_k: pytest.fail("opened a file before the manifest was checked"))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 7),
        ("certified", "yes"),
        ("updates", None),
        ("version", "x"),
        ("version", -1),
        ("weights_in_model", [["nested"]]),
        ("weights_in_model", [None]),
        ("updates", {"a": "many"}),
        ("updates", {"a": None}),
        ("digests", {"1": 7}),
    ],
)
def test_a_state_of_another_schema_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = write_small(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, field: value}))
    module.write_manifest(path)
    with pytest.raises(CheckpointError, match=rf"state\.json.*{field}"):
        read_checkpoint(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, "{", "\x00"])
@pytest.mark.parametrize("file", ["state.json", "manifest.json"])
def test_text_that_no_parser_likes_is_refused(tmp_path: Path, file: str, text: str) -> None:
    path = write_small(tmp_path, 1)
    (path / file).write_text(text)
    if file == "state.json":
        module.write_manifest(path)
    with pytest.raises(CheckpointError, match="unreadable"):
        read_checkpoint(path)


def test_only_the_newest_are_kept_and_the_last_certified_one(tmp_path: Path) -> None:
    for version, certified in [(1, True), (2, True), (3, False), (4, False), (5, False)]:
        write_small(tmp_path, version, certified, keep=2)
    assert names(tmp_path) == ["step-000002", "step-000004", "step-000005"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000005"
    assert latest_checkpoint(tmp_path, certified=True) == tmp_path / "step-000002"
    write_small(tmp_path, 6, True, keep=2)
    assert names(tmp_path) == ["step-000005", "step-000006"]


def test_the_order_is_that_of_numbers(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None
    for version in (999_999, 1_000_000, 7):
        write_small(tmp_path, version, keep=9)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"


def test_the_same_step_may_be_written_again(tmp_path: Path) -> None:
    write_small(tmp_path, 3, certified=False)
    (tmp_path / "step-000003" / "extra").touch()
    write_small(tmp_path, 3, certified=True)
    assert read_checkpoint(tmp_path / "step-000003").certified
    assert names(tmp_path) == ["step-000003"]


def full_disk(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_in_rust(*_args: Any, **_kwargs: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


_rename = os.replace


def full_disk_at_last(source: Path, target: Path) -> None:
    """The rename of the new directory fails, those of older ones do not."""
    full_disk() if ".tmp-" in str(source) else _rename(source, target)


@pytest.mark.parametrize("failing", ["save_file", "_write_state", "write_manifest", "fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path, 1)
    write_small(tmp_path, 2, certified=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for version in (2, 3):
        with monkeypatch.context() as patch:
            if failing in ("fsync", "replace"):
                patch.setattr(os, failing, full_disk if failing == "fsync" else full_disk_at_last)
            else:
                patch.setattr(module, failing, full_disk_in_rust if failing == "save_file" else full_disk)
            with pytest.raises(
                CheckpointError, match=r"could not write .*No space left on device.*earlier checkpoints are intact"
            ):
                write_small(tmp_path, version, keep=1)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    write_small(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step-000003"]


def test_a_failing_save_leaves_nothing_half_written(tmp_path: Path) -> None:
    def save(directory: Path) -> None:
        (directory / "config.json").write_text("{")
        raise KeyError("wte")

    with pytest.raises(KeyError):
        write(tmp_path, snapshot_of(tiny_model()), save=save)
    assert names(tmp_path) == []


@pytest.mark.parametrize("moment", ["save_model", "before rename", "between renames"])
def test_a_kill_at_any_point_leaves_the_old_ones_and_rubbish_that_goes(tmp_path: Path, moment: str) -> None:
    """A real kill -9 inside the write; the next write sweeps up."""
    write_small(tmp_path, 1)
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch, holdfast.atomic
from holdfast.checkpoint import Snapshot, write_checkpoint
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
rename = os.replace
def replace(source, target):
    if {moment!r} == "before rename" or ".tmp-" in str(source): die()
    rename(source, target)
os.replace = replace
def save(path):
    (path / "config.json").write_text("new")
    if {moment!r} == "save_model": die()
weights = {{"w": torch.zeros(3)}}
write_checkpoint(Path({str(tmp_path)!r}), Snapshot(1, weights, {{}}, {{}}, {{}}, True), save_model=save, config_toml="", keep=3)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == -9, result.stderr
    assert any(name.startswith(".") for name in names(tmp_path))
    if moment != "between renames":
        assert latest_checkpoint(tmp_path) == tmp_path / "step-000001"
    write_small(tmp_path, 2)
    assert names(tmp_path) == ["step-000001", "step-000002"]
    assert read_checkpoint(tmp_path / "step-000001").weights["w"].tolist() == [1.0] * 3


def test_export_gives_the_newest_certified_model_and_nothing_else(tmp_path: Path) -> None:
    model = tiny_model()
    write(tmp_path / "run" / "checkpoints", snapshot_of(model, 4))
    write(tmp_path / "run" / "checkpoints", snapshot_of(tiny_model(1), 5, certified=False))
    to = export_checkpoint(tmp_path / "run", tmp_path / "deep" / "exported")
    assert names(to) == ["config.json", "generation_config.json", "model.safetensors"]
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(AutoModelForCausalLM.from_pretrained(to)(tokens).logits, model.eval()(tokens).logits)
    (tmp_path / "empty").mkdir()
    export_checkpoint(tmp_path / "run" / "checkpoints" / "step-000004", tmp_path / "empty")
    assert names(tmp_path / "empty") == names(to)


def test_export_refuses_what_is_uncertified_unless_allowed(tmp_path: Path) -> None:
    path = write_small(tmp_path / "run" / "checkpoints", 5, certified=False)
    with pytest.raises(CheckpointError, match="holds no certified checkpoint"):
        export_checkpoint(tmp_path / "run", tmp_path / "to")
    with pytest.raises(CheckpointError, match="is not certified"):
        export_checkpoint(path, tmp_path / "to")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export_checkpoint(tmp_path, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    assert names(export_checkpoint(tmp_path / "run", tmp_path / "to", allow_uncertified=True)) == [
        "config.json",
        "model.safetensors",
    ]


def test_export_refuses_a_target_with_something_in_it_and_a_damaged_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_small(tmp_path / "checkpoints", 5)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine").touch()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_checkpoint(tmp_path, tmp_path / "to")
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copytree", full_disk)
        with pytest.raises(CheckpointError, match="nothing was left there"):
            export_checkpoint(tmp_path, tmp_path / "new")
    (path / "config.json").write_text("{ }")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        export_checkpoint(tmp_path, tmp_path / "new")
    assert names(tmp_path) == ["checkpoints", "to"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": True},
        {"version": -1},
        {"version": 10**30},
        {"updates": {"w": "5"}},
        {"updates": {"w": [5]}},
        {"updates": {"w": -1}},
        {"updates": {"w": 6}},
        {"updates": {"w": 2**80}},
        {"digests": {"0": None}},
        {"weights_in_model": [["w"]]},
        {"progress": {"sums": float("inf")}},
    ],
    ids=str,
)
def test_a_state_of_another_form_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """With a manifest that fits: it tells what was torn, not who wrote. Each of them was read, and the resumed run ended in a
    TypeError, or began before its first step.
    """
    path = write_small(tmp_path, 5)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, **change}))
    module.write_manifest(path)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_checkpoint(path)
    assert latest_checkpoint(tmp_path, certified=True) is None


@pytest.mark.parametrize("content", ["[" * 10_000, '{"schema": 1, "files": {"a": {"bytes": 1e999, "sha256": ""}}}'])
def test_a_manifest_beyond_all_bounds_is_unreadable(tmp_path: Path, content: str) -> None:
    path = write_small(tmp_path, 5)
    (path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"is torn: manifest\.json is unreadable"):
        read_checkpoint(path)
