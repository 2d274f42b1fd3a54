"""Compression without loss, for frames that get smaller by it; reading never makes more bytes than were announced."""

from __future__ import annotations

import zlib
from typing import Literal, TypeAlias

from holdfast.errors import ProtocolError
from holdfast.transport.wire import empty_frame

Codec: TypeAlias = Literal["", "zlib"]

LEAST_BYTES = 4096
WORTH = 0.95
"""A frame is sent compressed if it is smaller than this share of itself."""


def compress(codec: Codec | None, pieces: list[memoryview], size: int) -> tuple[Codec, list[memoryview], int]:
    """Codec ("" if it did not help), views and length of what is sent for a frame in `pieces`."""
    if not codec or size < LEAST_BYTES:
        return "", pieces, size
    compressor = zlib.compressobj(1)
    packed = b"".join([*(compressor.compress(piece) for piece in pieces), compressor.flush()])
    if len(packed) >= WORTH * size:
        return "", pieces, size
    return codec, [memoryview(packed)], len(packed)


def expand(codec: Codec, octets: memoryview, size: int) -> memoryview:
    """The frame of `size` bytes that was compressed. Raises ProtocolError if it is not exactly that."""
    if not codec:
        if len(octets) != size:
            raise ProtocolError(f"a plain frame of {len(octets)} bytes announced as {size}")
        return octets
    expander = zlib.decompressobj()
    try:
        got = expander.decompress(octets, size + 1)
        frame = empty_frame(size)
    except (zlib.error, MemoryError) as error:
        raise ProtocolError(f"a frame that does not expand: {error}") from None
    if len(got) != size or not expander.eof or expander.unused_data:
        raise ProtocolError(f"a compressed frame of {len(got)} bytes or more announced as {size}")
    frame[:] = got
    return frame
