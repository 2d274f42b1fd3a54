import math

import pytest
import torch

from holdfast.attacks import Scene
from holdfast.attacks.sparse import BitFlip, NotANumber, OneRow
from holdfast.claim import ClaimKey, Direction
from holdfast.digest import same_bytes

HIDDEN = torch.arange(1.0, 25.0).reshape(2, 3, 4)
DTYPES = (torch.float32, torch.bfloat16)


def scene(seed=0):
    return Scene(ClaimKey(3, 0, Direction.FORWARD, 2, 1), "w2", (), torch.Generator().manual_seed(seed))


def flipped_bits(one, other):
    """How many bits differ in each entry."""
    words = torch.int32 if one.dtype is torch.float32 else torch.int16
    width = 32 if words is torch.int32 else 16
    apart = one.contiguous().view(words).long() ^ other.contiguous().view(words).long()
    return [(entry % 2**width).bit_count() for entry in apart.flatten().tolist()]


def test_not_a_number_poisons_the_share_that_was_asked_for():
    assert NotANumber(share=0.25).forge(HIDDEN, scene()).isnan().sum() == 6
    assert NotANumber(share=1e-9, infinity=True).forge(HIDDEN, scene()).isinf().sum() == 1


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(("row", "token", "where"), [(0, 0, (0, 0)), (1, 2, (1, 2)), (-1, -2, (1, 1)), (5, 7, (1, 1))])
def test_one_row_and_no_other(row, token, where, replace):
    forged = OneRow(row=row, token=token, replace=replace).forge(HIDDEN, scene())
    assert (forged != HIDDEN).any(-1).nonzero().tolist() == [list(where)]


def test_the_row_goes_as_far_as_was_asked_for():
    wanted = pytest.approx(0.25 * float(HIDDEN[0, 0].norm()), rel=1e-5)
    assert float((OneRow(size=0.25).forge(HIDDEN, scene()) - HIDDEN).norm()) == wanted
    assert float(OneRow(size=0.25, replace=True).forge(HIDDEN, scene())[0, 0].norm()) == wanted


def test_a_row_of_zeros_is_edited_too():
    assert OneRow().forge(torch.zeros(2, 3, 4), scene()).count_nonzero() == 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "count"), [(1, 1), (3, 2), (16, 5)])
def test_as_many_bits_of_as_many_entries(dtype, bits, count):
    honest = HIDDEN.to(dtype)
    flips = flipped_bits(honest, BitFlip(bits=bits, count=count).forge(honest, scene()))
    assert sorted(flips, reverse=True)[: count + 1] == [bits] * count + [0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_may_be_flipped_the_sign_too(dtype):
    honest = HIDDEN[:1, :1, :1].to(dtype)
    forged = {BitFlip().forge(honest, scene(seed)).item() for seed in range(400)}
    assert len(forged) >= 8 * honest.element_size()
    assert -1.0 in forged


def test_more_entries_than_there_are():
    assert flipped_bits(HIDDEN, BitFlip(count=1000).forge(HIDDEN, scene())) == [1] * 24


def test_low_bits_only():
    forged = BitFlip(count=1000, highest=4).forge(HIDDEN, scene())
    assert 0 < ((forged - HIDDEN) / HIDDEN).abs().max() < 2e-6


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_what_is_no_number_has_bits_as_well(value):
    honest = torch.full((2, 3, 4), value)
    for seed in range(40):
        assert not same_bytes(BitFlip().forge(honest, scene(seed)), honest)


def test_the_same_scene_flips_the_same_bits():
    assert same_bytes(BitFlip(count=3).forge(HIDDEN, scene(7)), BitFlip(count=3).forge(HIDDEN, scene(7)))
    assert not same_bytes(BitFlip(count=3).forge(HIDDEN, scene(7)), BitFlip(count=3).forge(HIDDEN, scene(8)))


def test_a_view_with_strides_of_its_own():
    forged = BitFlip().forge(HIDDEN.transpose(0, 1), scene())
    assert sum(flipped_bits(HIDDEN.transpose(0, 1), forged)) == 1
