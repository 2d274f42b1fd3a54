"""Read one stage's tensors, and no others, out of a Hugging Face checkpoint in safetensors (one file, or shards and an index).

model.safetensors                        one file, or
model.safetensors.index.json             which names a shard for each tensor: only the shards that are needed are opened
SHA256SUMS                               optional; every file that is opened is checked against it
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from holdfast.errors import CheckpointError
from holdfast.plain import from_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SUMS = "SHA256SUMS"

_SHARD = re.compile(r"[\w][\w.\-]*\.safetensors")


class Files(Protocol):
    """Where a checkpoint's files come from. `find` gives a local path, or None where there is no such file."""

    @property
    def name(self) -> str: ...

    def find(self, filename: str) -> Path | None: ...


def read_tensors(
    files: Files, shapes: Mapping[str, Sequence[int]], *, prefix: str, aliases: Mapping[str, str], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors named in `shapes`, checked against these shapes and converted to `dtype`.

    A name may stand in the checkpoint without the base model's `prefix` (old GPT-2), under its tied name (`aliases`), or, for
    fused experts, as one tensor an expert. Raises CheckpointError naming the file and the tensor that is missing or wrong.
    """
    index = _index(files)
    with ExitStack() as stack:
        reader = _Reader(files, index, stack)
        found = {}
        for name, shape in shapes.items():
            tensor = _find(reader, name, prefix, aliases)
            if tuple(tensor.shape) != tuple(shape):
                raise CheckpointError(
                    f"{files.name}: tensor {name} has shape {list(tensor.shape)}, but the config asks for {list(shape)}; "
                    "config.json and weights do not belong together"
                )
            if not tensor.is_floating_point():
                raise CheckpointError(f"{files.name}: tensor {name} is {tensor.dtype}; quantised weights cannot be trained")
            # A copy in memory of torch's own, aligned: views into the file's mapping gave other bits (see DESIGN: alignment).
            found[name] = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return found


class _Reader:
    """Opens each shard once, when the first of its tensors is asked for."""

    def __init__(self, files: Files, index: Mapping[str, str], stack: ExitStack) -> None:
        self.files = files
        self.index = index
        self._stack = stack
        self._open: dict[str, Any] = {}
        self._sums = _sums(files)

    def __contains__(self, name: str) -> bool:
        return name in self.index

    def read(self, name: str) -> Tensor:
        from safetensors import SafetensorError

        shard = self.index[name]
        if shard not in self._open:
            self._open[shard] = self._open_shard(shard)
        try:
            tensor: Tensor = self._open[shard].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.files.name}/{shard}: no usable tensor {name}, though the index names it ({error})"
            ) from error
        return tensor

    def _open_shard(self, shard: str) -> Any:
        path = self.files.find(shard)
        if path is None:
            raise CheckpointError(
                f"{self.files.name}: the index names the shard {shard}, but there is no such file; fetch it again"
            )
        expected = self._sums.get(shard)
        if expected is not None and _sha256(path) != expected:
            raise CheckpointError(
                f"{path}: its sha256 is not the one in {SUMS}; the file is damaged or altered, fetch it again"
            )
        return self._stack.enter_context(open_safetensors(path))


def open_safetensors(path: Path) -> Any:
    """`safe_open`, with one clear error for a file that is torn or not safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is torn or not a safetensors file ({error}); fetch or write it again") from error


def _find(reader: _Reader, name: str, prefix: str, aliases: Mapping[str, str]) -> Tensor:
    for candidate in _spellings(name, prefix, aliases):
        if candidate in reader:
            return reader.read(candidate)
    for candidate in _spellings(name, prefix, {}):
        experts = _experts(reader, candidate)
        if experts is not None:
            return experts
    shards = sorted(set(reader.index.values()))
    where = shards[0] if len(shards) == 1 else f"{len(shards)} shards"
    raise CheckpointError(f"{reader.files.name}: tensor {name} is in none of its {len(reader.index)} entries ({where})")


_RENAMED = {".mlp.": ".block_sparse_moe.", "lm_head.": "embed_out."}
"""What the library calls otherwise than the checkpoints of Mixtral and GPT-NeoX."""


def _spellings(name: str, prefix: str, aliases: Mapping[str, str]) -> Iterator[str]:
    for spelling in (name, aliases.get(name)):
        if spelling is not None:
            yield spelling
            if spelling.startswith(f"{prefix}."):
                yield spelling.removeprefix(f"{prefix}.")
            for ours, theirs in _RENAMED.items():
                if ours in spelling:
                    yield spelling.replace(ours, theirs)


_FUSED: dict[str, Sequence[Sequence[str]]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}


def _experts(reader: _Reader, name: str) -> Tensor | None:
    """`...experts.gate_up_proj` [E, 2F, D] from `...experts.E.gate_proj.weight` and `.up_proj.weight` (or w1, w3)."""
    stem, dot, leaf = name.rpartition(".")
    if not dot or not stem.endswith(".experts") or leaf not in _FUSED:
        return None
    for names in _FUSED[leaf]:
        parts = [sorted(_numbered(reader.index, stem, part)) for part in names]
        if parts[0] and all([number for number, _ in part] == list(range(len(parts[0]))) for part in parts):
            stacked = [torch.stack([reader.read(entry) for _, entry in part]) for part in parts]
            return stacked[0] if len(stacked) == 1 else torch.cat(stacked, dim=1)
    return None


def _numbered(names: Iterable[str], stem: str, part: str) -> Iterator[tuple[int, str]]:
    pattern = re.compile(re.escape(stem) + r"\.(\d{1,5})\." + re.escape(part) + r"\.weight")
    for name in names:
        match = pattern.fullmatch(name)
        if match is not None:
            yield int(match[1]), name


def _index(files: Files) -> dict[str, str]:
    """Tensor name -> shard file name. File names with a path in them are refused."""
    single = files.find(SINGLE)
    if single is not None:
        with open_safetensors(single) as opened:
            return dict.fromkeys(opened.keys(), SINGLE)
    path = files.find(INDEX)
    if path is None:
        raise CheckpointError(
            f"{files.name} holds neither {SINGLE} nor {INDEX}; weights in other formats (pytorch_model.bin) are pickles and "
            "not read: convert them once, on a machine you can spare, with AutoModelForCausalLM.from_pretrained(DIR) and "
            "its save_pretrained(DIR)"
        )
    try:
        entries = from_json(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(str(name), str(shard)) for name, shard in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an index of shards: {error!r}") from error
    for name, shard in pairs:
        if not _SHARD.fullmatch(shard):
            raise CheckpointError(f"{path} names {shard!r} for tensor {name}; the plain name of a .safetensors file is needed")
    return dict(pairs)


def _sums(files: Files) -> dict[str, str]:
    path = files.find(SUMS)
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        raise CheckpointError(f"{path} is not a list of sums ({error}); fetch it again") from None
    pairs = (line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#"))
    return {name.lstrip("*"): digest.lower() for digest, name in (pair for pair in pairs if len(pair) == 2)}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(directory: Path) -> None:
    """Write `SHA256SUMS` (as the command sha256sum does) for the weight files of a directory."""
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(directory.glob("*.safetensors"))]
    (directory / SUMS).write_text("".join(lines), encoding="utf-8")
