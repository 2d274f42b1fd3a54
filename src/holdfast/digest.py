"""Equality of tensors is equality of bytes: a digest of a tensor, of named tensors, of a stage's state and of a whole model.

    tensor      blake3( dtype \\0 shape \\0 bytes )                       shape "2,3"; bytes little-endian, row-major
    tensors     blake3( name \\0 dtype \\0 shape \\0 bytes, ... )         sorted by name
    state       blake3( tensors(weights), tensors(moments), updates )
    model       sha256( name \\0 dtype \\0 shape \\0 bytes, ... )         sorted by name

What every step hashes again and again is hashed by BLAKE3 (256 bits), several times as fast as sha256 on one core; the digest
of a run's final weights is one that any tool can check. NaN equals itself here, and -0.0 differs from 0.0. CPU tensors are
hashed in place, without a copy.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from blake3 import blake3
from torch import Tensor

from holdfast.claim import StageState
from holdfast.errors import ProtocolError

AT_ONCE = 2**26
"""Bytes that leave a GPU in one copy, unless one tensor has more."""


class _Hash(Protocol):
    def update(self, data: Any, /) -> object: ...


def tensor_digest(tensor: Tensor) -> bytes:
    """32 bytes that stand for the tensor in headers and on the claim board; strides and device do not count.

    >>> tensor_digest(torch.tensor([0.0])) == tensor_digest(torch.tensor([-0.0]))
    False
    >>> tensor_digest(torch.ones(2, 3)) == tensor_digest(torch.ones(3, 2).t())
    True
    """
    digest = blake3(_description(tensor))
    digest.update(_octets(tensor).numpy().data)
    return digest.digest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> bytes:
    """32 bytes for named tensors; the order of the mapping does not count."""
    digest = blake3()
    _take_in(tensors, digest)
    return digest.digest()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """The `weights_digest` of a run, in hex: sha256 over the named tensors of the whole model, tied ones once.

    Names of one memory are tied; the last of them in sorted order stands for all. That is the embedding, not the head, in
    every supported family, so a state dict with both names and a saved model with one have the same digest.
    """
    by_memory: dict[tuple[object, ...], str] = {}
    for name in sorted(weights):
        tensor = weights[name]
        memory = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        by_memory[memory if tensor.numel() else (name,)] = name
    digest = hashlib.sha256()
    _take_in({name: weights[name] for name in by_memory.values()}, digest)
    return digest.hexdigest()


def state_digest(state: StageState) -> bytes:
    """32 bytes for what both holders of a stage seal: weights, moments and the number of updates taken.

    Raises ProtocolError for a number of updates that no run can have taken.
    """
    if not 0 <= state.updates < 2**63:
        raise ProtocolError(f"a state of stage {state.stage} claims {state.updates} updates")
    digest = blake3(tensors_digest(state.weights))
    digest.update(tensors_digest(state.moments))
    digest.update(state.updates.to_bytes(8, "little"))
    return digest.digest()


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_octets(a), _octets(b))


def _take_in(tensors: Mapping[str, Tensor], digest: _Hash) -> None:
    names = sorted(tensors)
    for name, octets in zip(names, _octets_of_all([tensors[name] for name in names]), strict=True):
        digest.update(name.encode() + b"\0" + _description(tensors[name]))
        digest.update(octets.numpy().data)


def _description(tensor: Tensor) -> bytes:
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = ",".join(str(size) for size in tensor.shape)
    return f"{dtype}\0{shape}\0".encode()


def _octets_of_all(tensors: Sequence[Tensor]) -> Iterable[Tensor]:
    """What `_octets` gives of each."""
    if sys.byteorder == "little" and all(tensor.is_cuda for tensor in tensors):
        return _in_few_copies(tensors)
    return map(_octets, tensors)


def _in_few_copies(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """One at a time, each tensor of a GPU would wait for all that was asked of it before."""
    waiting: list[Tensor] = []
    size = 0
    for tensor in tensors:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if waiting and size + len(flat) > AT_ONCE:
            yield from _copied(waiting)
            waiting, size = [], 0
        waiting.append(flat)
        size += len(flat)
    yield from _copied(waiting)


def _copied(flat: list[Tensor]) -> Iterable[Tensor]:
    return torch.split(torch.cat(flat).cpu(), [len(each) for each in flat]) if flat else ()


def _octets(tensor: Tensor) -> Tensor:
    """The tensor's little-endian bytes, row-major, as uint8 on the CPU: a view where it is contiguous there already."""
    dense = tensor.detach().cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # a dimension of size 1 may keep an odd stride, which view() refuses
    octets = flat.view(torch.uint8)
    if sys.byteorder == "little":
        return octets
    return octets.reshape(-1, flat.element_size()).flip(1).reshape(-1)
