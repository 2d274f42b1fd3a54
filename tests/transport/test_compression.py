"""Expansion makes the announced bytes or refuses, and never more than that."""

import tracemalloc
import zlib

import pytest
import torch

from holdfast.errors import ProtocolError
from holdfast.transport.compression import LEAST_BYTES, compress, expand

PLAIN = b"holdfast" * 1000
PACKED = zlib.compress(PLAIN)


def test_what_gets_smaller_comes_back():
    codec, pieces, size = compress("zlib", [memoryview(PLAIN[:3000]), memoryview(PLAIN[3000:])], len(PLAIN))
    assert codec == "zlib"
    assert size == sum(map(len, pieces)) < len(PLAIN)
    assert bytes(expand(codec, pieces[0], len(PLAIN))) == PLAIN


def test_noise_short_frames_and_unasked_ones_are_left_as_they_are():
    noise = torch.randint(0, 256, (10_000,), dtype=torch.uint8).numpy().data
    for codec, content in (("zlib", noise), ("zlib", memoryview(PLAIN)[: LEAST_BYTES - 1]), (None, memoryview(PLAIN))):
        pieces = [content]
        assert compress(codec, pieces, len(content)) == ("", pieces, len(content))


BAD = {
    "longer than announced": ("zlib", PACKED, len(PLAIN) - 1),
    "shorter than announced": ("zlib", PACKED, len(PLAIN) + 1),
    "cut off": ("zlib", PACKED[:-1], len(PLAIN)),
    "more behind": ("zlib", PACKED + b"x", len(PLAIN)),
    "no stream": ("zlib", b"x" * 40, 40),
    "plain, but of another length": ("", PLAIN, len(PLAIN) + 1),
}


@pytest.mark.parametrize(("codec", "octets", "size"), BAD.values(), ids=BAD)
def test_what_is_not_exactly_as_announced_is_refused(codec, octets, size):
    with pytest.raises(ProtocolError):
        expand(codec, memoryview(octets), size)


def test_a_bomb_makes_no_more_than_was_announced():
    bomb = memoryview(zlib.compress(bytes(64 << 20)))
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        expand("zlib", bomb, 10_000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
