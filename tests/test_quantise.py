"""Packed tensors: how far off, the same bytes when packed again, and an outcome for every number and every byte."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from holdfast.digest import same_bytes
from holdfast.quantise import AS_COMPUTED, WIRE_DTYPES, Packing, pack, packed_shape, packing_of, unpack

MODELS = (torch.float32, torch.bfloat16)
NAN, INF = math.nan, math.inf
LEAST = 2.0**-149
"""The least float32 above 0."""


def rows_of(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Tensor]:
    """Tensors [1, S, 5] of float32."""
    row = st.lists(numbers, min_size=5, max_size=5)
    return st.lists(row, min_size=1, max_size=6).map(lambda rows: torch.tensor([rows], dtype=torch.float32))


ANY = rows_of(st.floats(width=32))
FINITE = rows_of(st.floats(width=32, allow_nan=False, allow_infinity=False))


def octets(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("wire", WIRE_DTYPES.values(), ids=WIRE_DTYPES)
@pytest.mark.parametrize("model", MODELS, ids=str)
@settings(max_examples=300, deadline=None)
@given(values=ANY)
def test_what_was_unpacked_is_packed_into_the_same_bytes(model: torch.dtype, wire: torch.dtype, values: Tensor) -> None:
    packing = Packing(model, wire)
    values = values.to(model)
    packed = packing.pack(values)
    assert (packed.dtype, tuple(packed.shape)) == (wire, packing.shape((1, values.shape[1], 5)))
    there = packing.unpack(packed)
    assert (there.dtype, there.shape) == (model, values.shape)
    assert same_bytes(packing.pack(there), packed)
    assert same_bytes(packing.unpack(packing.pack(there)), there)


def test_every_code_of_every_bfloat16_scale_is_packed_again_as_it_was() -> None:
    """The tightest place: a bfloat16 has eight significant bits, a code seven."""
    significands = torch.arange(128, 256, dtype=torch.float32).reshape(128, 1)
    greatest = torch.stack([significands, significands * 2.0**-133])  # down to the least normal one
    codes = torch.arange(-127, 128, dtype=torch.int8).expand(2, 128, 255)
    packed = torch.cat((codes, greatest.contiguous().view(torch.int8)), dim=-1)
    assert same_bytes(pack(unpack(packed, torch.bfloat16), torch.int8), packed)


def test_the_greatest_of_a_row_comes_back_whatever_its_last_bits() -> None:
    """127 m / 127 would be another number for one m in 129."""
    greatest = torch.arange(2**23, 2**24, 37, dtype=torch.float32).reshape(1, -1, 1)
    for size in (1.0, 2.0**100, 2.0**-100):
        assert torch.equal(unpack(pack(greatest * size, torch.int8), torch.float32), greatest * size)


@settings(max_examples=300, deadline=None)
@given(values=FINITE)
def test_int8_is_off_by_half_a_step_of_its_row_and_keeps_the_greatest(values: Tensor) -> None:
    greatest = values.double().abs().amax(-1, keepdim=True)
    there = unpack(pack(values, torch.int8), torch.float32)
    assert torch.equal(there.double().abs().amax(-1, keepdim=True), greatest)
    error = (there.double() - values.double()).abs()
    assert (error <= greatest / 254 * (1 + 1e-5) + LEAST).all()


@settings(max_examples=300, deadline=None)
@given(values=FINITE)
def test_bfloat16_is_rounded_to_the_nearest(values: Tensor) -> None:
    assert torch.equal(unpack(pack(values, torch.bfloat16), torch.float32), values.to(torch.bfloat16).float())
    normal = values[(values.abs() > 2.0**-120) & (values.abs() < 2.0**127)]
    assert ((unpack(pack(normal, torch.bfloat16), torch.float32) - normal).abs() <= normal.abs() * 2.0**-8).all()


def test_ties_are_rounded_to_even() -> None:
    assert unpack(pack(torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8]), torch.bfloat16), torch.float32).tolist() == [
        1.0,
        1 + 2.0**-6,
    ]
    assert pack(torch.tensor([[127.0, 0.5, 1.5, -2.5]]), torch.int8)[0, :4].tolist() == [127, 0, 2, -2]


def test_the_layout_of_int8() -> None:
    packed = pack(torch.tensor([[[2.0, -1.0, 0.0], [0.0, -0.5, 0.25]]]), torch.int8)
    assert packed[..., :3].tolist() == [[[127, -64, 0], [0, -127, 64]]]
    assert [bytes(octets(row)) for row in packed[0, :, 3:]] == [struct.pack("<f", 2.0), struct.pack("<f", 0.5)]


@pytest.mark.parametrize(
    ("row", "wire", "there"),
    [
        ([0.0, -0.0, 0.0], torch.int8, [0.0, 0.0, 0.0]),
        ([0.0, -0.0, 1.0], torch.bfloat16, [0.0, -0.0, 1.0]),
        ([NAN, 3.0, -1.0], torch.int8, [NAN, 0.0, 0.0]),
        ([NAN, 3.0, -1.0], torch.bfloat16, [NAN, 3.0, -1.0]),
        ([INF, -INF, 7.0], torch.int8, [INF, -INF, 0.0]),
        ([INF, -INF, 7.0], torch.bfloat16, [INF, -INF, 7.0]),
        ([NAN, -INF, -0.0], torch.int8, [NAN, -INF, 0.0]),
        ([3.4e38, 1.0, -3.4e38], torch.bfloat16, [INF, 1.0, -INF]),
        ([LEAST, 0.0, -LEAST], torch.int8, [LEAST, 0.0, -LEAST]),
    ],
)
@pytest.mark.parametrize("long", [1, 50])
def test_zeros_not_a_number_and_infinity(row: list[float], wire: torch.dtype, there: list[float], long: int) -> None:
    """In vectorised kernels (long rows) and in what is left over."""
    values = torch.tensor([[row * long, [1.0, 2.0, 4.0] * long]])
    found = unpack(pack(values, wire), torch.float32)
    want = torch.tensor([there * long])
    assert torch.equal(found[0, :1].nan_to_num(nan=123.0), want.nan_to_num(nan=123.0))
    assert torch.equal(found[0, :1].signbit() & ~want.isnan(), want.signbit() & ~want.isnan())
    assert found[0, 1, 2] == 4.0, "another row has nothing to do with it"


@pytest.mark.parametrize("wire", [torch.int8, torch.bfloat16], ids=str)
def test_every_nan_is_packed_alike(wire: torch.dtype) -> None:
    bits = torch.tensor([0x7FC00000, 0x7F800001, -1, -0x3FFFFF] * 25, dtype=torch.int32)
    packed = pack(bits.view(torch.float32).reshape(1, 1, 100), wire)[..., :100]
    found = packed if wire == torch.int8 else packed.view(torch.int16)
    assert found.unique().tolist() == [-128 if wire == torch.int8 else 0x7FC0]


@pytest.mark.parametrize("model", MODELS, ids=str)
@settings(max_examples=300, deadline=None)
@given(raw=st.binary(min_size=18, max_size=18))
def test_any_bytes_stand_for_some_numbers(model: torch.dtype, raw: bytes) -> None:
    """A scale that is negative, infinite or no number, codes that no packing makes: nothing breaks, and it comes out alike."""
    packed = torch.frombuffer(bytearray(raw), dtype=torch.int8).reshape(1, 2, 9)
    there = unpack(packed, model)
    assert (there.dtype, tuple(there.shape)) == (model, (1, 2, 5))
    assert same_bytes(there, unpack(packed.clone(), model))
    again = pack(there, torch.int8)
    assert same_bytes(pack(unpack(again, model), torch.int8), again)


@pytest.mark.parametrize("scale", [INF, -INF, NAN, -1.0, 2.0**127, LEAST])
def test_a_hostile_scale(scale: float) -> None:
    packed = torch.cat((torch.tensor([0, 1, 127, -128], dtype=torch.int8), torch.tensor([scale]).view(torch.int8)))
    zero, one, most, none = unpack(packed.reshape(1, 1, 8), torch.float32).flatten().tolist()
    assert (zero, math.isnan(none)) == (0.0, True)
    assert most == scale or math.isnan(scale)
    assert abs(one) <= abs(scale) or math.isnan(scale)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
def test_one_row_of_odd_width_at_an_odd_offset(width: int) -> None:
    values = torch.linspace(-1, 2, width).reshape(1, 1, width)
    packed = pack(values, torch.int8)
    moved = torch.cat((torch.zeros(3, dtype=torch.int8), packed.flatten()))[3:].reshape(packed.shape)
    assert same_bytes(unpack(moved, torch.float32), unpack(packed, torch.float32))


@pytest.mark.parametrize("wire", [torch.int8, torch.bfloat16], ids=str)
def test_strides_do_not_count(wire: torch.dtype) -> None:
    values = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))
    turned = values.transpose(0, 2).contiguous().transpose(0, 2)
    packed = pack(turned, wire)
    assert packed.is_contiguous()
    assert same_bytes(packed, pack(values, wire))
    there = unpack(packed.transpose(0, 1).contiguous().transpose(0, 1), torch.float32)
    assert there.is_contiguous()
    assert there.data_ptr() % 64 == 0


def test_the_models_own_dtype_is_sent_as_it_is() -> None:
    for model in MODELS:
        values = torch.tensor([[[NAN, -0.0, 1.0]]]).to(model)
        for packing in (packing_of(model, None), packing_of(model, str(model).removeprefix("torch.")), AS_COMPUTED):
            assert not packing.changes
            assert packing.pack(values) is values
            assert packing.unpack(values) is values
            assert packing.shape((1, 1, 3)) == (1, 1, 3)


def test_a_change_of_the_numbers_inside() -> None:
    packing = Packing(torch.float32, torch.int8)
    packed = packing.pack(torch.tensor([[[1.0, -2.0]]]))
    assert packing.unpack(packing.through(torch.neg, packed)).tolist() == (-packing.unpack(packed)).tolist()


def test_shapes() -> None:
    assert packed_shape((2, 3, 64), torch.int8) == (2, 3, 68)
    assert packed_shape((2, 3, 64), torch.bfloat16) == (2, 3, 64)
