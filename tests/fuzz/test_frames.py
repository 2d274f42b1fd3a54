"""Frames: whatever bytes come, they are refused with a ProtocolError, or are the very frame of the message that they give."""

from __future__ import annotations

import copy
import dataclasses
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from holdfast import message as messages
from holdfast.claim import Claim, StageState
from holdfast.errors import ProtocolError
from holdfast.message import Envelope, StateTransfer, TiedGradient, TiedWeight
from holdfast.testing.transport import same_message, sample_messages
from holdfast.transport import decode, encode

SAMPLES = sample_messages()
FRAMES = [bytes(encode(item)) for message in SAMPLES for item in (message, Envelope("w0", "wörker", message))]
KINDS = get_args(messages.Message)

frames = st.sampled_from(FRAMES)
ext = msgspec.msgpack.Ext


def read(raw: bytes) -> str:
    """Refused, or accepted as just what it is; whatever was taken for it was there in the frame."""
    try:
        item = decode(raw)
    except ProtocolError:
        return "refused"
    assert bytes(encode(item)) == raw, "a frame was accepted that is not the one its message has"
    found = list(tensors_of(item.message if isinstance(item, Envelope) else item))
    assert all(tensor.is_contiguous() and tensor.data_ptr() % 64 == 0 for tensor in found)
    assert sum(tensor.nbytes for tensor in found) <= len(raw)
    return "accepted"


def tensors_of(message: Any) -> list[Tensor]:
    match message:
        case Claim(_, tensor, origin):
            return [tensor] if origin is None else [tensor, origin]
        case TiedGradient(tensor=tensor) | TiedWeight(tensor=tensor):
            return [tensor]
        case StateTransfer(StageState(weights=weights, moments=moments)):
            return [*weights.values(), *moments.values()]
    return []


# -- bytes ---------------------------------------------------------------------------------------------------------------


def framed(header: bytes, parts: bytes = b"", count: int = 0, length: int | None = None) -> bytes:
    head = struct.pack("<4sHHII", b"HFST", 1, 0, len(header) if length is None else length, count) + header
    return head + (b"\0" * (-len(head) % 64) + parts if count else parts)


def test_random_bytes(hammer: Any) -> None:
    fronts = st.sampled_from([b"", b"HFST", b"HFST\x01\0\0\0"]) | frames.map(lambda frame: frame[:20])
    hammer(lambda front, rest: read(front + rest), fronts, st.binary(max_size=200))


def test_random_headers_behind_a_right_prefix(hammer: Any) -> None:
    kinds = st.sampled_from([b"", *(msgspec.msgpack.encode([kind.__name__])[1:] for kind in KINDS)])
    check = lambda kind, rest, count: read(framed(b"\x94" + kind + rest, count=count))  # noqa: E731
    hammer(check, kinds, st.binary(max_size=100), st.integers(0, 2))


def test_flipped_bits(hammer: Any) -> None:
    def check(frame: bytes, places: list[float], bits: list[int], near: int) -> str:
        bad = bytearray(frame)
        for place, bit in zip(places, bits, strict=False):
            bad[int(place * min(near, len(bad)))] ^= 1 << bit
        return read(bytes(bad))

    places = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5)
    hammer(check, frames, places, st.lists(st.integers(0, 7), min_size=1, max_size=5), st.sampled_from([16, 120, 10_000]))


def test_cuts_insertions_and_splices(hammer: Any) -> None:
    def check(one: bytes, other: bytes, cut: float, more: float, junk: bytes, keep: bool) -> str:
        here, there = int(cut * len(one)), int(more * len(other))
        return read(one[:here] + junk + (other[there:] if keep else one[here + int(more * 12) :]))

    ratio = st.floats(0, 1)
    hammer(check, frames, frames, ratio, ratio, st.just(b"") | st.binary(max_size=12), st.booleans())


def test_lengths_and_counts_that_are_not_so(hammer: Any) -> None:
    def check(frame: bytes, length: int | None, count: int | None) -> str:
        real = struct.unpack_from("<4sHHII", frame)[3:]
        sizes = [old if new is None else new for old, new in zip(real, (length, count), strict=True)]
        return read(frame[:8] + struct.pack("<II", *(size % 2**32 for size in sizes)) + frame[16:])

    sizes = st.none() | st.integers(0, 300) | st.integers(0, 2**32 - 1) | st.sampled_from([2**31, 2**32 - 1, 2**20 + 1])
    hammer(check, frames, sizes, sizes)


# -- headers -------------------------------------------------------------------------------------------------------------


@dataclass
class Pairs:
    """A map in which a key may stand twice, in any order."""

    items: list[tuple[Any, Any]]


@dataclass
class Raw:
    """Bytes put in the place of a value as they are."""

    octets: bytes


def packed(value: Any) -> bytes:
    """msgpack, for values that nobody honest would write."""
    match value:
        case Raw(octets):
            return octets
        case Pairs(items):
            front = bytes([0x80 | len(items)]) if len(items) < 16 else struct.pack(">BH", 0xDE, len(items))
            return front + b"".join(packed(each) for pair in items for each in pair)
        case list():
            front = bytes([0x90 | len(value)]) if len(value) < 16 else struct.pack(">BH", 0xDC, len(value))
            return front + b"".join(packed(each) for each in value)
        case _:
            return msgspec.msgpack.encode(value)


def loose(value: Any) -> Any:
    """A decoded header as values that can be taken apart."""
    if isinstance(value, dict):
        return Pairs([(key, loose(each)) for key, each in value.items()])
    return [loose(each) for each in value] if isinstance(value, list) else value


def tensor(dtype: Any, shape: Any, part: Any, code: int = 1) -> Any:
    return ext(code, msgspec.msgpack.encode([dtype, shape, part]))


NESTED = Raw(b"\x91" * 20_000 + b"\xc0")
junk = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2**63 - 1, 2**64 - 1, -(2**63), 1.5, float("nan"), float("inf"), -0.0),
        *("", "x" * 300, "\0", "forward", "primary", "wörker", b"", b"x" * 32, [], [[]], [None] * 20, Pairs([]), NESTED),
        *(ext(-1, b"\0" * 4), ext(-1, b"\xff" * 12), ext(-1, b""), ext(0, b""), ext(1, b""), ext(127, b"x" * 40)),
        *(Raw(b"\xca\x7f\xc0\0\1"), Raw(b"\xcf" + b"\0" * 7 + b"\1"), Raw(b"\xd9\x01a"), Raw(b"\xa2\xff\xfe"), Raw(b"\xc1")),
        *(
            Raw(b"\xdf\xff\xff\xff\xff"),
            Raw(b"\xdd\xff\xff\xff\xff"),
            Raw(b"\xc6\xff\xff\xff\xff"),
            Raw(b"\xdb\xff\xff\xff\xff"),
        ),
        *(Raw(b"\xa3\xed\xa0\x80"), Raw(b"\xcb\x7f\xf0\0\0\0\0\0\1"), Raw(b"\xcb\x7f\xf8\0\0\0\0\0\1"), Raw(b"")),
    ]
)
shapes = st.lists(st.integers(0, 3) | st.sampled_from([2**10, 2**20, 2**29, 2**30, 2**31, 2**62]), min_size=1, max_size=8)
"""Well-typed ones: the bytes that they need, if any at all, are a matter of arithmetic."""
sizes = st.integers(-1, 4) | st.sampled_from([2**20, 2**29, 2**30, 2**31, 2**40, 2**62, 2**63 - 1, 2**64 - 1, True, 1.0, "2"])
tensors = st.builds(
    tensor,
    st.sampled_from(["float32", "bfloat16", "int64", "complex64", "object", "", "float32\0", 1, None]),
    st.lists(sizes, max_size=9) | st.sampled_from([None, 3, "3", {}]),
    st.integers(-1, 3) | st.sampled_from([2**63, 2**64 - 1, None, True]),
    st.sampled_from([1, 1, 1, 1, 0, 2, -1]),
)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with every index into it."""
    found = []
    if isinstance(tree, Pairs):
        for index, (_, each) in enumerate(tree.items):
            found += [(tree, index), *places(each)]
    if isinstance(tree, list):
        for index, each in enumerate(tree):
            found += [(tree, index), *places(each)]
    return found


def change(tree: Any, where: float, how: str, value: Any) -> None:
    spots = places(tree)
    if not spots:
        return
    holder, index = spots[int(where * len(spots))]
    pairs = isinstance(holder, Pairs)
    inside, value = holder.items if pairs else holder, copy.deepcopy(value)
    match how:
        case "put":
            inside[index] = (inside[index][0], value) if pairs else value
        case "drop":
            del inside[index]
        case "repeat":
            inside.insert(index, copy.deepcopy(inside[index]))
        case "swap":
            inside[index], inside[-1] = inside[-1], inside[index]
        case "wrap":
            inside[index] = (inside[index][0], [inside[index][1]]) if pairs else [inside[index]]
        case "name":
            inside[index] = (value, inside[index][1]) if pairs else value
        case "add":
            inside.insert(index, ("extra", value) if pairs else value)


HOW = ("put", "put", "put", "drop", "repeat", "swap", "wrap", "name", "add")
changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(HOW), junk | tensors), min_size=1, max_size=3)


def parts_of(frame: bytes) -> tuple[bytes, bytes, int]:
    length, count = struct.unpack_from("<II", frame, 8)
    return frame[16 : 16 + length], frame[-(-(16 + length) // 64) * 64 :] if count else b"", count


def test_fields_of_every_message_corrupted(hammer: Any) -> None:
    def check(frame: bytes, todo: list[tuple[float, str, Any]], more: int) -> str:
        header, parts, count = parts_of(frame)
        tree = loose(msgspec.msgpack.decode(header))
        for where, how, value in todo:
            change(tree, where, how, value)
        return read(framed(packed(tree), parts, max(0, count + more)))

    hammer(check, frames, changes, st.sampled_from([0, 0, 0, 1, -1]))


def test_tensors_of_impossible_shapes(hammer: Any) -> None:
    """Also those of no bytes at all: empty in one dimension and beyond all bounds in another."""

    def check(one: Any, other: Any, octets: int, count: int, kind: str) -> str:
        weights = {"w": one, "v": other}
        state = {"stage": 1, "version": 0, "updates": 0, "weights": weights, "moments": {}}
        body = {"version": 1, "tensor": one} if kind == "TiedWeight" else {"state": state, "role": None}
        return read(framed(msgspec.msgpack.encode([kind, body, None, None]), b"\x01" * octets, count))

    first = st.builds(tensor, st.sampled_from(["float32", "bfloat16", "int64"]), shapes, st.just(0)) | tensors
    second = st.builds(tensor, st.just("float32"), shapes, st.just(1)) | tensors
    counts = st.sampled_from([1, 1, 2, 2, 0, 3])
    hammer(check, first, second, st.integers(0, 40), counts, st.sampled_from(["TiedWeight", "StateTransfer"]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_message_survives_and_no_bit_of_its_header_may_change(hammer: Any, speech: Callable[..., Any], kind: type) -> None:
    def check(message: Any, place: float, bit: int) -> str:
        try:
            frame = bytes(encode(message))
        except ProtocolError:
            return "not sent"  # an integer or a tensor that no frame can carry
        back = decode(frame)
        assert type(back) is kind
        assert bytes(encode(back)) == frame
        bad = bytearray(frame)
        bad[int(place * len(bad))] ^= 1 << bit
        return read(bytes(bad))

    hammer(check, speech(kind), st.floats(0, 1, exclude_max=True), st.integers(0, 7), quick=20)


def test_a_frame_is_read_as_no_other_message(hammer: Any, speech: Callable[..., Any]) -> None:
    """Two messages that differ in a bit have different frames, or one could be passed off as the other."""

    def check(one: Any, other: Any, place: int, near: bool) -> str:
        names = [field.name for field in dataclasses.fields(one)]
        if near and type(one) is type(other):  # all alike but for one field
            name = names[place % len(names)]
            other = dataclasses.replace(one, **{name: getattr(other, name)})
        try:
            same, alike = bytes(encode(one)) == bytes(encode(other)), same_message(one, other)
        except ProtocolError:
            return "not sent"  # or a state that has no digest
        assert same == alike
        return "equal" if same else "different"

    pairs = st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(speech(kind), speech(kind)))
    two = pairs | pairs | pairs | st.tuples(st.sampled_from(SAMPLES), st.sampled_from(SAMPLES))
    hammer(lambda both, *how: check(*both, *how), two, st.integers(0, 9), st.booleans())


def test_nothing_is_taken_for_a_tensor_without_its_bytes() -> None:
    """What the limits are for: a header of a hundred bytes cannot ask for a gigabyte."""
    for shape in ([2**28], [2**14, 2**14], [1, 2**27, 1]):
        header = msgspec.msgpack.encode(["TiedWeight", {"version": 0, "tensor": tensor("float32", shape, 0)}, None, None])
        with pytest.raises(ProtocolError, match=r"truncated|limit"):
            decode(framed(header, b"", 1))
    assert torch.equal(decode(encode(TiedWeight(0, torch.ones(2)))).tensor, torch.ones(2))
