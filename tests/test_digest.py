"""Digests count dtype, shape and every byte, and nothing else."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
import torch
from blake3 import blake3

from holdfast import digest
from holdfast.claim import StageState
from holdfast.digest import same_bytes, state_digest, tensor_digest, tensors_digest, weights_digest


def test_a_tensor_digest_is_the_documented_blake3() -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert tensor_digest(tensor) == blake3(b"float32\x002,3\0" + struct.pack("<6f", *range(6))).digest()
    assert tensor_digest(torch.tensor(1.0, dtype=torch.bfloat16)) == blake3(b"bfloat16\0\0\x80\x3f").digest()
    assert len(tensor_digest(torch.empty(0))) == 32


def test_a_weights_digest_is_the_documented_sha256_sorted_by_name() -> None:
    weights = {"b": torch.tensor([1], dtype=torch.int64), "a": torch.tensor([2.0])}
    text = b"a\0float32\x001\0" + struct.pack("<f", 2.0) + b"b\0int64\x001\0" + struct.pack("<q", 1)
    assert weights_digest(weights) == hashlib.sha256(text).hexdigest()
    assert weights_digest(dict(reversed(weights.items()))) == weights_digest(weights)
    assert tensors_digest(dict(reversed(weights.items()))) == blake3(text).digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (3, 5)])
def test_every_shape_and_dtype_has_a_digest_that_strides_do_not_change(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(15)[: torch.Size(shape).numel()].reshape(shape).to(dtype)
    strided = torch.stack([tensor, tensor], dim=-1)[..., 0]
    assert tensor_digest(tensor) == tensor_digest(strided)
    assert same_bytes(tensor, strided)


def test_dtype_shape_sign_of_zero_and_payload_of_nan_count() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    different = [zero, -zero, zero.to(torch.float64), zero.reshape(2, 1), one, one.to(torch.bfloat16)]
    assert len({tensor_digest(tensor) for tensor in different}) == len(different)
    for i, a in enumerate(different):
        assert [same_bytes(a, b) for b in different] == [i == j for j in range(len(different))]
    nan = torch.tensor([float("nan")])
    assert same_bytes(nan, nan.clone())
    assert not same_bytes(nan, -nan)


def test_a_gradient_requiring_tensor_is_hashed_in_place() -> None:
    tensor = torch.ones(3, requires_grad=True)
    assert tensor_digest(tensor) == tensor_digest(tensor.detach())


def test_tied_tensors_count_once_under_the_embedding_name() -> None:
    embedding, bias = torch.randn(4, 2), torch.zeros(2)
    saved = {"transformer.wte.weight": embedding, "bias": bias}
    assert weights_digest({"lm_head.weight": embedding, **saved}) == weights_digest(saved)
    assert weights_digest({"lm_head.weight": embedding.clone(), **saved}) != weights_digest(saved)
    assert weights_digest({"a": torch.empty(0), "b": torch.empty(0)}) != weights_digest({"b": torch.empty(0)})


def test_a_state_digest_counts_weights_moments_and_updates() -> None:
    state = StageState(1, 5, 4, {"w": torch.ones(2)}, {"w.exp_avg": torch.ones(2), "w.exp_avg_sq": torch.ones(2)})
    others = [
        replace(state, updates=5),
        replace(state, weights={"w": torch.zeros(2)}),
        replace(state, moments={**state.moments, "w.exp_avg": torch.zeros(2)}),
        replace(state, weights=state.moments, moments=state.weights),
    ]
    assert len({state_digest(each) for each in [state, *others]}) == 5
    assert state_digest(replace(state, version=6)) == state_digest(state)


@pytest.mark.parametrize("at_once", [1, 40, 2**26])
def test_what_leaves_a_gpu_in_few_copies_has_the_same_bytes(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "AT_ONCE", at_once)
    tensors = [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.tensor(3),
        torch.zeros(0, 4),
        torch.ones(5, dtype=torch.bfloat16)[::2],
        torch.tensor([True, False]),
    ]
    copied = list(digest._in_few_copies(tensors))
    assert len(copied) == len(tensors)
    assert all(torch.equal(one, digest._octets(other)) for one, other in zip(copied, tensors, strict=True))
