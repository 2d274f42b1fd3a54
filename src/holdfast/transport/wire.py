"""The wire: one message is one frame of a fixed schema and raw tensor bytes; no pickle, nothing that could run code.

    offset    0      4        6         8              12              16
              magic  version  reserved  header length  count of parts  header (msgpack)   part 0   part 1 ...

Header: `[kind, message, sender, recipient]`, the names null for a message without envelope. A tensor stands in it as an
extension `[dtype, shape, part]`; parts follow in that order, little-endian and row-major, each beginning at a multiple
of 64 bytes after zero padding. Nothing says where a part is: it follows from the sizes before it, so parts cannot overlap.

A frame is accepted only if it is the very one that `encode` makes of its message; all else is a ProtocolError. Decoded tensors
are fresh, contiguous and 64-byte aligned, because other alignment gave other bits in matrix products. Who owns a writable frame
that begins at such an address may give it away: its tensors are then views of it.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
import numpy as np
import torch
from torch import Tensor

from holdfast import message as messages
from holdfast.claim import Claim, StageState
from holdfast.errors import ProtocolError
from holdfast.message import Envelope, Message, Offer, StateTransfer, TiedGradient, TiedWeight

VERSION = 1
MAGIC = b"HFST"
ALIGNMENT = 64

KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(messages.Message)}
"""Every message there is, by the name that stands in its frame."""

WITH_TENSORS = frozenset({Claim, StateTransfer, Offer, TiedGradient, TiedWeight})
"""The kinds whose frames have parts; all others are control messages."""

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "int64": torch.int64,
    "int8": torch.int8,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_PREFIX = struct.Struct("<4sHHII")
_TENSOR = 1
_BROKEN = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError, MemoryError)
"""What msgspec raises for bytes that are no header, and for values that it cannot encode."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a frame may cost its reader; checked before anything is allocated."""

    max_frame_bytes: int = 4 << 30
    max_header_bytes: int = 1 << 20
    max_tensor_bytes: int = 1 << 30
    max_parts: int = 4096
    max_dims: int = 8


DEFAULT_LIMITS = Limits()


def encode(item: Message | Envelope, limits: Limits = DEFAULT_LIMITS) -> bytearray:
    """The frame of a message, with or without its envelope. Raises ProtocolError for what no frame can carry."""
    pieces, size = encode_pieces(item, limits)
    frame = bytearray(size)
    view = np.frombuffer(frame, dtype=np.uint8)
    end = 0
    for piece in pieces:
        view[end : end + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        end += len(piece)
    return frame


def encode_pieces(item: Message | Envelope, limits: Limits = DEFAULT_LIMITS) -> tuple[list[memoryview], int]:
    """The frame of a message as byte views in order, none of them empty, and its length in bytes; tensors are not copied.

    Contiguous tensors on the CPU must not change while the views are in use. Raises ProtocolError for what no frame can carry.
    """
    header, parts = _encode_header(item)
    size = _frame_bytes(len(header), (part.nbytes for part in parts)) if parts else _PREFIX.size + len(header)
    _check("frame bytes", size, limits.max_frame_bytes)
    _check("header bytes", len(header), limits.max_header_bytes)
    _check("parts", len(parts), limits.max_parts)
    pieces = [memoryview(_PREFIX.pack(MAGIC, VERSION, 0, len(header), len(parts)) + header)]
    end = len(pieces[0])
    for part in parts:
        _check("dimensions of a tensor", part.dim(), limits.max_dims)
        _check("bytes of a tensor", _extent(part.shape, part.dtype), limits.max_tensor_bytes)
        begin = _aligned(end)
        pieces.append(memoryview(bytes(begin - end)))
        pieces.append(_octets(part).data)
        end = begin + part.nbytes
    return [piece for piece in pieces if len(piece)], size


def empty_frame(size: int) -> memoryview:
    """`size` bytes that begin at a multiple of 64, for a frame that will be given away to `decode`; not yet in memory."""
    whole = np.empty(size + ALIGNMENT, dtype=np.uint8)
    begin = -whole.ctypes.data % ALIGNMENT
    return whole[begin : begin + size].data


def decode(
    frame: bytes | bytearray | memoryview, limits: Limits = DEFAULT_LIMITS, *, give_away: bool = False
) -> Message | Envelope:
    """The message of a frame, in its envelope if it came in one. Raises ProtocolError for every frame that is not well made.

    With `give_away` the caller will not touch the frame again, and tensors are views of it where it is writable and aligned.
    """
    header, count = _open(frame, limits)
    parts = _Parts(frame, _PREFIX.size + len(header), count, limits, give_away)
    try:
        kind, body, sender, recipient = _OUTER.decode(header)
        if kind not in KINDS:
            raise ProtocolError(f"a frame of unknown kind {kind[:80]!r}; this protocol knows {', '.join(KINDS)}")
        item: Message | Envelope = _decoder(KINDS[kind], parts).decode(body)
    except _BROKEN as error:
        raise ProtocolError(f"the header of a frame is malformed: {str(error)[:200]}") from None
    parts.check_end()
    _check_fields(item)
    if (sender is None) != (recipient is None):
        raise ProtocolError("a frame names only one of sender and recipient; an envelope has both, a bare message neither")
    if sender is not None and recipient is not None:
        item = Envelope(sender, recipient, item)  # type: ignore[arg-type]  # KINDS holds messages only
    if _encode_header(item)[0] != header:
        raise ProtocolError(f"a {kind} whose header is not in the one encoding that the protocol has")
    return item


def decode_envelope(
    frame: bytes | bytearray | memoryview, limits: Limits = DEFAULT_LIMITS, *, give_away: bool = False
) -> Envelope:
    """Like `decode`, for frames that must be envelopes."""
    item = decode(frame, limits, give_away=give_away)
    if not isinstance(item, Envelope):
        raise ProtocolError(f"got a bare {type(item).__name__}; expected it in an envelope with sender and recipient")
    return item


def wire_bytes(item: Message | Envelope) -> int:
    """The exact length of the frame, without making it."""
    header, parts = _encode_header(item)
    return _frame_bytes(len(header), (part.nbytes for part in parts)) if parts else _PREFIX.size + len(header)


# -- writing -------------------------------------------------------------------------------------------------------------


def _encode_header(item: Message | Envelope) -> tuple[bytes, list[Tensor]]:
    parts: list[Tensor] = []

    def hook(value: Any) -> Any:
        if isinstance(value, Tensor):
            parts.append(value)
            return msgspec.msgpack.Ext(_TENSOR, _PLAIN.encode([_dtype_name(value), tuple(value.shape), len(parts) - 1]))
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"cannot send a {type(value).__name__}; messages are made of plain values, digests and tensors")

    bare, names = (item.message, (item.sender, item.recipient)) if isinstance(item, Envelope) else (item, (None, None))
    kind = type(bare).__name__
    if KINDS.get(kind) is not type(bare):
        raise ProtocolError(f"cannot send a {kind}; the protocol knows {', '.join(KINDS)}")
    encoder = msgspec.msgpack.Encoder(enc_hook=hook) if type(bare) in WITH_TENSORS else _PLAIN
    try:
        return encoder.encode((kind, bare, *names)), parts
    except _BROKEN as error:
        raise ProtocolError(f"a {kind} that cannot be encoded: {error}") from None


def _dtype_name(tensor: Tensor) -> str:
    if tensor.dtype not in _DTYPE_NAMES or tensor.layout is not torch.strided:
        raise ProtocolError(f"cannot send a {tensor.layout} tensor of {tensor.dtype}; use a dense one of {', '.join(DTYPES)}")
    return _DTYPE_NAMES[tensor.dtype]


def _octets(tensor: Tensor) -> Any:
    """The bytes of a tensor, row-major, as a numpy array; shares the memory of a contiguous one on the CPU."""
    dense = tensor.detach().cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # a dimension of size 1 may keep an odd stride, which view() refuses
    return flat.view(torch.uint8).numpy()


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _frame_bytes(header_bytes: int, part_bytes: Any) -> int:
    end = _PREFIX.size + header_bytes
    for count in part_bytes:
        end = _aligned(end) + count
    return end


# -- reading -------------------------------------------------------------------------------------------------------------

_PLAIN = msgspec.msgpack.Encoder()
_OUTER = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw, str | None, str | None])
_META = msgspec.msgpack.Decoder(tuple[str, tuple[int, ...], int])


def _refuse_extension(code: int, _data: memoryview) -> Any:
    raise ProtocolError(f"extension {code} in a message that carries no tensors")


_DECODERS: dict[type, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind, ext_hook=_refuse_extension) for kind in KINDS.values()
}


def _decoder(kind: type, parts: _Parts) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind, ext_hook=parts.take) if kind in WITH_TENSORS else _DECODERS[kind]


class _Parts:
    """The tensors of one frame, taken in the order in which the header speaks of them."""

    def __init__(
        self, frame: bytes | bytearray | memoryview, begin: int, count: int, limits: Limits, give_away: bool = False
    ) -> None:
        self._octets = np.frombuffer(frame, dtype=np.uint8)
        self._views = give_away and self._octets.flags.writeable and self._octets.ctypes.data % ALIGNMENT == 0
        self._end = begin
        self._count = count
        self._taken = 0
        self._limits = limits

    def take(self, code: int, data: memoryview) -> Tensor:
        """Called by msgspec for each extension."""
        if code != _TENSOR:
            raise ProtocolError(f"unknown extension {code}; tensors have {_TENSOR}")
        name, shape, index = _META.decode(data)
        if index != self._taken or index >= self._count:
            raise ProtocolError(f"got part {index} of {self._count}, expected part {self._taken}: each is used once, in order")
        if name not in DTYPES:
            raise ProtocolError(f"a tensor of dtype {name[:80]!r}; allowed are {', '.join(DTYPES)}")
        _check("dimensions of a tensor", len(shape), self._limits.max_dims)
        if any(size < 0 for size in shape):
            raise ProtocolError(f"a tensor of negative shape {shape}")
        dtype = DTYPES[name]
        _check("bytes of a tensor", _extent(shape, dtype), self._limits.max_tensor_bytes)
        self._taken += 1
        return self._tensor(shape, dtype)

    def _tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        begin = _aligned(self._end)
        end = begin + math.prod(shape) * dtype.itemsize
        if end > len(self._octets):
            raise ProtocolError(f"a frame of {len(self._octets)} bytes is truncated: its parts need {end} at least")
        if self._octets[self._end : begin].any():
            raise ProtocolError("the padding before a part is not zero")
        self._end = end
        if self._views and begin < end:
            return torch.from_numpy(self._octets[begin:end]).view(dtype).view(shape)
        tensor = torch.empty(shape, dtype=dtype)
        assert tensor.data_ptr() % ALIGNMENT == 0, "torch no longer aligns its buffers to 64 bytes"
        _octets(tensor)[:] = self._octets[begin:end]
        return tensor

    def check_end(self) -> None:
        if self._taken != self._count:
            raise ProtocolError(f"a frame of {self._count} parts whose header speaks of {self._taken}")
        if self._end != len(self._octets):
            raise ProtocolError(f"{len(self._octets) - self._end} bytes behind the end of a frame")


def _open(frame: bytes | bytearray | memoryview, limits: Limits) -> tuple[bytes, int]:
    """Header and count of parts of a frame whose prefix is right."""
    size = memoryview(frame).nbytes
    _check("frame bytes", size, limits.max_frame_bytes)
    if size < _PREFIX.size:
        raise ProtocolError(f"a frame of {size} bytes; the shortest has {_PREFIX.size}")
    magic, version, reserved, length, count = _PREFIX.unpack_from(frame)
    if magic != MAGIC or reserved != 0:
        raise ProtocolError(f"not a frame: begins with {bytes(frame[:8])!r}, expected {MAGIC!r}, a version and two zeros")
    if version != VERSION:
        raise ProtocolError(f"a frame of protocol version {version}; this is version {VERSION}, install the same on both ends")
    _check("header bytes", length, limits.max_header_bytes)
    _check("parts", count, limits.max_parts)
    if _PREFIX.size + length > size:
        raise ProtocolError(f"a frame of {size} bytes is truncated: its header alone has {length}")
    return bytes(frame[_PREFIX.size : _PREFIX.size + length]), count


def _extent(shape: Iterable[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor, an empty dimension counted as one: strides are made even where there is nothing to stride over."""
    return math.prod(max(1, size) for size in shape) * dtype.itemsize


def _check(what: str, got: int, limit: int) -> None:
    if got > limit:
        raise ProtocolError(f"{got} {what}; the limit is {limit}")


def _check_fields(item: Any) -> None:
    """Fields of type Tensor are Any to the decoder; here each must be one."""
    match item:
        case Claim(tensor=tensor, origin=origin):
            found = [tensor] if origin is None else [tensor, origin]
        case TiedGradient(tensor=tensor) | TiedWeight(tensor=tensor):
            found = [tensor]
        case StateTransfer(state=StageState() as state) | Offer(state=StageState() as state):
            weights, moments = state.weights, state.moments
            found = [*weights.values(), *moments.values()]
        case _:
            return
    for value in found:
        if not isinstance(value, Tensor):
            raise ProtocolError(f"a {type(item).__name__} with a {type(value).__name__} where a tensor belongs")


assert all(dataclasses.is_dataclass(kind) for kind in KINDS.values())
