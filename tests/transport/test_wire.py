"""Frames: exact to the bit, aligned, limited; whatever is not a frame is a ProtocolError and nothing else."""

import dataclasses
import struct

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.errors import ProtocolError
from holdfast.message import Envelope, Loss, Seal, StateTransfer, TiedGradient, TiedWeight, Update
from holdfast.testing.transport import same_message, sample_messages
from holdfast.transport import Limits, decode, decode_envelope, encode, wire_bytes
from holdfast.transport.wire import DTYPES, KINDS, empty_frame, encode_pieces

SAMPLES = sample_messages()
FRAMES = [bytes(encode(message)) for message in SAMPLES] + [bytes(encode(Envelope("w0", "w1", m))) for m in SAMPLES]
HEADER = Header("r", ClaimKey(0, 0, Direction.FORWARD, 1, 0), 0, 0, "w", Role.PRIMARY, (), b"")


def frame(header, parts=b"", *, count=0, version=1, magic=b"HFST", reserved=0):
    """A frame by hand: `header` is any msgpack value or bytes."""
    encoded = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    head = struct.pack("<4sHHII", magic, version, reserved, len(encoded), count) + encoded
    return head + (b"\0" * (-len(head) % 64) + parts if count else parts)


def tied(meta, parts=b"\0" * 8, code=1, count=1):
    ext = msgspec.msgpack.Ext(code, msgspec.msgpack.encode(meta))
    return frame(["TiedWeight", {"version": 1, "tensor": ext}, None, None], parts, count=count)


def test_there_is_a_sample_of_every_kind():
    assert {type(message).__name__ for message in SAMPLES} == set(KINDS)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_every_kind_survives_bare_and_in_an_envelope(message):
    for item in (message, Envelope("w0", "wörker", message)):
        encoded = encode(item)
        assert wire_bytes(item) == len(encoded)
        for raw in (encoded, bytes(encoded), memoryview(encoded)):
            back = decode(raw)
            assert type(back) is type(item)
            assert same_message(back.message if isinstance(back, Envelope) else back, message)
        assert encode(back) == encoded
    assert decode_envelope(encoded).recipient == "wörker"


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (1, 5, 1), (2, 0, 3), (7, 3, 5)], ids=str)
def test_tensors_of_every_dtype_come_back_to_the_bit_contiguous_and_aligned(dtype, shape):
    octets = torch.randint(0, 256, (torch.empty(shape, dtype=dtype).nbytes,), dtype=torch.uint8)
    tensor = torch.empty(shape, dtype=dtype)
    tensor.reshape(-1).view(torch.uint8).copy_(octets)
    back = decode(encode(TiedWeight(0, tensor))).tensor
    assert (back.dtype, back.shape) == (dtype, tensor.shape)
    assert torch.equal(back.reshape(-1).view(torch.uint8), octets)
    assert back.is_contiguous()
    assert back.data_ptr() % 64 == 0


def test_parts_are_aligned_in_the_frame_and_in_memory_wherever_the_frame_lies():
    claim = Claim(HEADER, torch.full((3,), 1.5), torch.full((5,), 2.5))
    encoded = encode(claim)
    for tensor in (claim.tensor, claim.origin):
        assert bytes(encoded).index(tensor.numpy().tobytes()) % 64 == 0
    for shift in range(1, 9):
        back = decode(memoryview(b"x" * shift + encoded)[shift:])
        assert back.tensor.data_ptr() % 64 == back.origin.data_ptr() % 64 == 0
        assert torch.equal(back.origin, claim.origin)


def test_a_decoded_tensor_is_a_copy():
    encoded = encode(TiedWeight(0, torch.ones(4)))
    back = decode(encoded).tensor
    back += 1
    assert torch.equal(decode(encoded).tensor, torch.ones(4))


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_pieces_are_the_frame_and_a_frame_given_away_is_the_same_message(message):
    pieces, size = encode_pieces(message)
    encoded = bytes(encode(message))
    assert b"".join(pieces) == encoded
    assert size == len(encoded)
    assert all(len(piece) for piece in pieces)
    frame = empty_frame(size)
    frame[:] = encoded
    assert same_message(decode(frame, give_away=True), message)


def test_tensors_are_neither_copied_when_sent_nor_when_a_frame_is_given_away():
    tensor = torch.ones(1000)
    pieces, size = encode_pieces(TiedWeight(0, tensor))
    assert any(np.frombuffer(piece, np.uint8).ctypes.data == tensor.data_ptr() for piece in pieces)
    frame = empty_frame(size)
    frame[:] = b"".join(pieces)
    back = decode(frame, give_away=True).tensor
    begin = np.frombuffer(frame, np.uint8).ctypes.data
    assert begin < back.data_ptr() < begin + size
    assert back.is_contiguous()
    assert back.data_ptr() % 64 == 0
    back += 1  # it belongs to its receiver


def test_a_frame_that_is_read_only_or_badly_aligned_is_copied_though_given_away():
    encoded = encode(TiedWeight(0, torch.ones(1000)))
    odd = memoryview(bytearray(b"x" + encoded))[1:]
    for frame in (bytes(encoded), odd):
        back = decode(frame, give_away=True).tensor
        begin = np.frombuffer(frame, np.uint8).ctypes.data
        assert not begin <= back.data_ptr() < begin + len(frame)
        assert back.data_ptr() % 64 == 0
        assert torch.equal(back, torch.ones(1000))


def test_views_and_parameters_are_sent_as_their_values():
    whole = torch.arange(24.0).reshape(4, 6)
    odd = torch.empty(9)[::3][:1].fill_(4.0)
    for tensor in (whole.t(), whole[1:, ::2], whole[0].expand(3, 6), torch.nn.Parameter(whole), odd, torch.ones(1, 3)[:, :1]):
        assert torch.equal(decode(encode(TiedWeight(0, tensor))).tensor, tensor)


def test_one_tensor_in_two_fields_becomes_two():
    tensor = torch.ones(3)
    back = decode(encode(Claim(HEADER, tensor, tensor)))
    assert back.tensor.data_ptr() != back.origin.data_ptr()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_decode_or_raise_protocol_error(data):
    _decodes_or_refuses(data)
    _decodes_or_refuses(frame(data))
    _decodes_or_refuses(frame(b"\x94\xa5Claim" + data, count=1))


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(FRAMES), st.data())
def test_flipped_bits_decode_or_raise_protocol_error(good, data):
    bad = bytearray(good)
    near = min(len(good), data.draw(st.sampled_from([16, 200, len(good)])))
    for bit in data.draw(st.lists(st.integers(0, 8 * near - 1), min_size=1, max_size=6)):
        bad[bit // 8] ^= 1 << bit % 8
    _decodes_or_refuses(bad)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FRAMES), st.data())
def test_spliced_frames_decode_or_raise_protocol_error(good, data):
    cut, length = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 12))
    _decodes_or_refuses(good[:cut] + data.draw(st.binary(max_size=12)) + good[cut + length :])


def _decodes_or_refuses(raw):
    try:
        item = decode(raw)
    except ProtocolError:
        return
    assert encode(item) == raw, "a frame was accepted that is not the one its message has"


@pytest.mark.parametrize("good", FRAMES[: len(SAMPLES)], ids=[type(m).__name__ for m in SAMPLES])
def test_every_truncation_and_every_trailing_byte_is_refused(good):
    for end in range(len(good)):
        with pytest.raises(ProtocolError):
            decode(good[:end])
    for tail in (b"\0", b"\0" * 64, b"x"):
        with pytest.raises(ProtocolError):
            decode(good + tail)


F32 = ["float32", [2], 0]
BAD = {
    "not a frame": (b"GET / HTTP/1.1\r\n\r\n", "not a frame"),
    "other magic": (frame(["Seal", {"version": 1}, None, None], magic=b"HFSU"), "not a frame"),
    "other version": (frame(["Seal", {"version": 1}, None, None], version=2), "version 2"),
    "reserved bits": (frame(["Seal", {"version": 1}, None, None], reserved=1), "not a frame"),
    "unknown kind": (frame(["Exploit", {}, None, None]), "unknown kind 'Exploit'"),
    "an envelope as a message": (frame(["Envelope", {}, None, None]), "unknown kind"),
    "kind not text": (frame([1, {}, None, None]), "malformed"),
    "bad utf-8": (frame(b"\x94\xa4\xff\xfe\xfd\xfc\x80\xc0\xc0"), "malformed"),
    "bad utf-8 in a field": (frame(b"\x94\xaaTiedWeight\x81\xa2\xff\xfe\x01\xc0\xc0"), "malformed"),
    "header too short": (frame(["Seal"]), "malformed"),
    "missing field": (frame(["Seal", {}, None, None]), "missing required field"),
    "wrong type": (frame(["Seal", {"version": "1"}, None, None]), "Expected `int`"),
    "float for int": (frame(["Seal", {"version": 1.5}, None, None]), "Expected `int`"),
    "unknown field": (frame(["Seal", {"version": 1, "x": 2}, None, None]), "not in the one encoding"),
    "a field twice": (frame(b"\x94\xa4Seal\x82\xa7version\x01\xa7version\x02\xc0\xc0"), "not in the one encoding"),
    "integer for float": (frame(["Loss", {"step": 0, "attempt": 0, "micro_batch": 0, "value": 1}, None, None]), "one encoding"),
    "long integer": (frame(b"\x94\xa4Seal\x81\xa7version\xcd\x00\x01\xc0\xc0"), "not in the one encoding"),
    "only a sender": (frame(["Seal", {"version": 1}, "w0", None]), "only one of sender and recipient"),
    "deep nesting": (frame(b"\x94\xaaTiedWeight\x81\xa6tensor" + b"\x91" * 100_000), "malformed"),
    "bytes behind": (frame(["Seal", {"version": 1}, None, None], b"\0"), "1 bytes behind"),
    "parts that nobody speaks of": (frame(["Seal", {"version": 1}, None, None], b"\0" * 8, count=1), "speaks of 0"),
    "no tensor": (frame(["TiedWeight", {"version": 1, "tensor": [1, 2]}, None, None]), "list where a tensor belongs"),
    "null for a tensor": (frame(["TiedWeight", {"version": 1, "tensor": None}, None, None]), "NoneType where a tensor"),
    "a timestamp": (
        frame(["TiedWeight", {"version": 1, "tensor": msgspec.msgpack.Ext(-1, b"\0" * 4)}, None, None]),
        "where a tensor belongs",
    ),
    "tensor for int": (frame(["Seal", {"version": msgspec.msgpack.Ext(1, b"")}, None, None]), "Expected `int`"),
    "extension": (tied(F32, code=2), "unknown extension 2"),
    "meta of another shape": (tied({"dtype": "float32"}), "malformed"),
    "other dtype": (tied(["complex64", [1], 0]), "dtype 'complex64'"),
    "negative size": (tied(["float32", [-2], 0]), "negative"),
    "two negative sizes": (tied(["float32", [-1, -2], 0]), "negative"),
    "overflowing size": (tied(["float32", [2**62, 4], 0]), "bytes of a tensor"),
    "overflow hidden by a zero": (tied(["float32", [2**62, 2**62, 0], 0], b""), "bytes of a tensor"),
    "size beyond 64 bits": (tied(["float32", [2**64 - 1], 0]), "bytes of a tensor"),
    "too many dimensions": (tied(["float32", [1] * 9, 0]), "9 dimensions"),
    "part out of range": (tied(["float32", [2], 1]), "got part 1 of 1"),
    "negative part": (tied(["float32", [2], -1]), "got part -1"),
    "part shorter than the tensor": (tied(["float32", [100], 0]), "truncated"),
    "part longer than the tensor": (tied(["float32", [1], 0]), "4 bytes behind"),
    "parts field too low": (tied(F32, count=0), "got part 0 of 0"),
    "parts field too high": (tied(F32, count=2), "speaks of 1"),
}


@pytest.mark.parametrize(("bad", "why"), BAD.values(), ids=BAD)
def test_each_way_to_be_wrong_is_named(bad, why):
    with pytest.raises(ProtocolError, match=why):
        decode(bad)


def test_two_tensors_cannot_share_a_part():
    good = bytes(encode(Claim(HEADER, torch.ones(3), torch.ones(3))))
    second = msgspec.msgpack.encode(["float32", [3], 1])
    first = msgspec.msgpack.encode(["float32", [3], 0])
    with pytest.raises(ProtocolError, match="each is used once"):
        decode(good.replace(second, first))


def test_padding_carries_no_message():
    encoded = encode(TiedWeight(0, torch.ones(3)))
    before = len(encoded) - 3 * 4 - 1
    assert encoded[before] == 0
    encoded[before] = 1
    with pytest.raises(ProtocolError, match="padding"):
        decode(encoded)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(max_frame_bytes=300), "frame bytes"),
        (Limits(max_header_bytes=40), "header bytes"),
        (Limits(max_tensor_bytes=299), "bytes of a tensor"),
        (Limits(max_parts=1), "parts"),
        (Limits(max_dims=1), "dimensions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits_hold_on_both_ends(limits, why):
    claim = Claim(HEADER, torch.ones(3, 25), torch.ones(2))
    decode(encode(claim))
    with pytest.raises(ProtocolError, match=why):
        encode(claim, limits)
    with pytest.raises(ProtocolError, match=why):
        decode(encode(claim), limits)


def test_a_huge_tensor_is_refused_before_memory_is_taken():
    with pytest.raises(ProtocolError, match="bytes of a tensor"):
        decode(tied(["float64", [2**40], 0]))


@pytest.mark.parametrize("shape", [[0, 2**20, 2**29, 2**29], [2**29] * 7 + [0], [2**27, 2**27, 2**27, 0], [2**40, 0]], ids=str)
def test_an_empty_tensor_of_impossible_shape_is_refused(shape):
    """It needs no byte of the frame, so it passed every limit, and torch broke on its strides with a RuntimeError."""
    with pytest.raises(ProtocolError, match="bytes of a tensor"):
        decode(tied(["float32", shape, 0], b""))


def test_an_empty_tensor_that_no_receiver_takes_is_refused_by_the_sender():
    with pytest.raises(ProtocolError, match="bytes of a tensor"):
        encode(TiedWeight(0, torch.empty(2**40, 0)))


@pytest.mark.parametrize(
    "message",
    [
        TiedWeight(0, torch.ones(2, dtype=torch.complex64)),
        TiedWeight(0, torch.ones(2, dtype=torch.bool)),
        TiedWeight(0, torch.eye(2).to_sparse()),
        TiedWeight(0, object()),
        Seal(2**70),
        Loss(0, 0, 0, object()),
        TiedGradient(0, 0, 0, [torch.ones(2), object()]),
        "text",
    ],
    ids=lambda m: repr(m)[:30],
)
def test_what_no_frame_can_carry_is_refused_by_the_sender(message):
    with pytest.raises(ProtocolError):
        encode(message)


def test_a_state_may_hold_any_mapping_and_keeps_its_order():
    state = StageState(1, 0, 0, {"b": torch.ones(1), "a": torch.zeros(2)}, {})
    back = decode(encode(StateTransfer(state, None)))
    assert list(back.state.weights) == ["b", "a"]
    with pytest.raises(ProtocolError, match="where a tensor belongs"):
        decode(encode(StateTransfer(dataclasses.replace(state, moments={"x": 1}), None)))


def test_a_bare_message_is_no_envelope():
    with pytest.raises(ProtocolError, match="bare Update"):
        decode_envelope(encode(Update(0, 0, 1.0, 1e-3)))
