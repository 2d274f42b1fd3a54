"""Packets come back as they were written; whatever is none is a ProtocolError and nothing else."""

import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import ProtocolError
from holdfast.transport import packet
from holdfast.transport.packet import Ack, Closed, Goodbye, Hello, OtherVersion, Ping, Pong, Preamble, Refusal, Relayed, parse

HELLO = Hello("run", "w1", "bulk", b"t" * 24, b"", 7, 1 << 20)
PREAMBLE = Preamble(5, 9, "zlib", 3, "w1", "cöordinator")
PART = packet.part_head(8, packet.preamble(PREAMBLE)) + b"12345"
PACKETS = [
    packet.hello(HELLO),
    packet.refused("run", "another"),
    PART,
    packet.part_head(2**64 - 1) + b"x",
    *(packet.number(kind, 2**63) for kind in (packet.ACK, packet.PING, packet.PONG)),
    packet.goodbye(),
    packet.relay_head("w1", "wörker") + PART,
    packet.closed("wörker"),
]


def test_packets_come_back():
    assert parse(packet.hello(HELLO)) == HELLO
    assert parse(packet.refused("run", "another")) == Refusal("run", "another")
    assert [parse(packet.number(kind, 9)) for kind in (4, 5, 6)] == [Ack(9), Ping(9), Pong(9)]
    assert parse(packet.goodbye()) == Goodbye()
    assert parse(packet.closed("wörker")) == Closed("wörker")
    part = parse(PART)
    assert (part.sequence, part.preamble, bytes(part.octets)) == (8, PREAMBLE, b"12345")
    relayed = parse(packet.relay_head("w1", "wörker") + PART)
    assert isinstance(relayed, Relayed)
    assert (relayed.source, relayed.target, bytes(relayed.packet)) == ("w1", "wörker", PART)
    assert parse(relayed.whole) == relayed


def test_another_version_is_named_with_ours():
    other = struct.pack("<B4sH", 1, b"HFWR", 9) + b"whatever that version says"
    with pytest.raises(OtherVersion, match=r"version 1 .* version 9; install the same"):
        parse(other)


BAD = {
    "nothing": b"",
    "kind 0": b"\0",
    "kind 10": b"\x0a",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "other magic": struct.pack("<B4sH", 1, b"HFWS", 1),
    "hello without greeting": struct.pack("<B4sH", 1, b"HFWR", 1),
    "long hello": struct.pack("<B4sH", 1, b"HFWR", 1) + b"x" * 2000,
    "short token": packet.hello(Hello("r", "w", "bulk", b"t", b"", 0, 1)),
    "long memory": packet.hello(Hello("r", "w", "bulk", b"t" * 24, b"k" * 25, 0, 1)),
    "negative": packet.hello(Hello("r", "w", "bulk", b"t" * 24, b"", -1, 1)),
    "other stream": struct.pack("<B4sH", 1, b"HFWR", 1) + msgspec.msgpack.encode(["r", "w", "raw", b"t" * 24, b"", 0, 1]),
    "one more field": struct.pack("<B4sH", 1, b"HFWR", 1) + msgspec.msgpack.encode(["r", "w", "bulk", b"t" * 24, b"", 0, 1, 2]),
    "empty part": packet.part_head(1),
    "flags": b"\x03\x01" + PART[2:],
    "reserved": PART[:4] + b"\1" + PART[5:],
    "preamble beyond the end": packet.part_head(1)[:2] + b"\xff\xff" + packet.part_head(1)[4:] + b"x",
    "half a number": packet.number(4, 1)[:-1],
    "a number and more": packet.number(4, 1) + b"\0",
    "goodbye and more": packet.goodbye() + b"\0",
    "closed nobody": packet.closed(""),
    "relayed nothing": packet.relay_head("a", "b"),
    "relayed from nobody": packet.relay_head("", "b") + PART,
    "relayed twice": packet.relay_head("a", "b") + packet.relay_head("a", "b") + PART,
    "relayed closed": packet.relay_head("a", "b") + packet.closed("c"),
    "bad utf-8": b"\x09\xff\xfe",
    "unknown code": b"\x02" + msgspec.msgpack.encode(["exploit", "x"]),
    "long refusal": b"\x02" + b"x" * 5000,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_what_is_no_packet_is_refused(bad):
    with pytest.raises(ProtocolError):
        parse(bad)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(PACKETS), st.data())
def test_flipped_bits_and_cut_packets_parse_or_raise_protocol_error(good, data):
    bad = bytearray(good)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(good) - 1), max_size=5)):
        bad[bit // 8] ^= 1 << bit % 8
    end = data.draw(st.integers(0, len(good)))
    for raw in (bytes(bad), bytes(bad[:end]), data.draw(st.binary(max_size=64))):
        try:
            parse(raw)
        except ProtocolError:
            continue
