"""Parts arrive once and in order whatever the ways do, and a slow reader costs a bounded number of bytes."""

import random
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import ProtocolError
from holdfast.transport import packet
from holdfast.transport.packet import Part, Preamble
from holdfast.transport.sequence import PART_COST, Inbox, Outbox, Outgoing

WINDOW = 64 << 10


def frame(content, generation=0):
    pieces = [memoryview(content[i : i + 700]) for i in range(0, len(content), 700)]
    return Outgoing(Preamble(len(content), len(content), "", generation, "a", "b"), pieces)


def pair(part_bytes=1000, window=WINDOW, most=1 << 20):
    outbox = Outbox(part_bytes)
    outbox.window = window
    return outbox, Inbox(window, most)


def part(sequence, octets, size=None):
    first = None if size is None else Preamble(size, size, "", 0, "a", "b")
    return Part(sequence, first, memoryview(octets))


@pytest.mark.parametrize("seed", range(60))
def test_nothing_is_lost_or_doubled_or_swapped_over_ways_that_break(seed):
    """Each way delivers a beginning of what was pulled for it, late perhaps, while others are already in use."""
    rng = random.Random(seed)
    frames = [bytes([i]) * rng.randint(1, 9000) for i in range(12)]
    outbox, inbox = pair(window=16 << 10)
    for content in frames:
        outbox.put(frame(content))
    ways, arrived, unread = [[]], [], []
    while len(arrived) < len(frames):
        action = rng.choices(["pull", "deliver", "read", "acknowledge", "break"], [10, 10, 2, 4, 1])[0]
        if action == "break":
            del ways[-1][rng.randint(0, len(ways[-1])) :]
            outbox.rewind(rng.choice([None, inbox.received]))
            ways.append([])
        elif action == "acknowledge":
            outbox.acknowledge(inbox.acknowledged)
        elif action == "pull":
            message = outbox.pull()
            ways[-1] += [message] if message is not None else []
        elif action == "read" and unread:
            inbox.read(unread.pop(0))
        elif action == "deliver" and any(ways):
            arrival = inbox.take(packet.parse(rng.choice([way for way in ways if way]).pop(0)))
            if arrival is not None:
                arrived.append(bytes(arrival.octets))
                unread.append(arrival)
    assert arrived == frames
    for arrival in unread:
        inbox.read(arrival)
    outbox.acknowledge(inbox.acknowledged)
    assert outbox.queued_bytes == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=20))
def test_a_reader_who_does_not_read_costs_two_windows_and_a_frame_at_most(sizes):
    outbox, inbox = pair(part_bytes=4096)
    for size in sizes:
        outbox.put(frame(bytes(size)))
    unread, most, read = [], 0, 0
    while read < len(sizes):
        while (message := outbox.pull()) is not None:
            arrival = inbox.take(packet.parse(message))
            unread += [arrival] if arrival is not None else []
            most = max(most, inbox.held_bytes)
            outbox.acknowledge(inbox.acknowledged)
        assert unread, "sender and receiver wait for each other"
        inbox.read(unread.pop(0))
        outbox.acknowledge(inbox.acknowledged)
        read += 1
    assert most <= 2 * WINDOW + max(sizes) + PART_COST


def test_a_frame_in_one_part_is_not_copied_and_one_in_several_is_aligned():
    inbox = Inbox(WINDOW, 1 << 20)
    octets = b"x" * 100
    assert inbox.take(part(1, octets, 100)).octets.obj is octets
    assert inbox.take(part(2, octets, 200)) is None
    whole = inbox.take(part(3, octets)).octets
    assert bytes(whole) == 2 * octets
    assert not whole.readonly
    assert np.frombuffer(whole, "u1").ctypes.data % 64 == 0


def test_tensors_are_let_go_once_acknowledged():
    outbox, _ = pair()
    content = bytearray(2500)
    outbox.put(Outgoing(Preamble(2500, 2500, "", 0, "a", "b"), [memoryview(content)]))
    while outbox.pull() is not None:
        pass
    with pytest.raises(BufferError):
        content.clear()
    outbox.acknowledge(3)
    content.clear()


BAD = {
    "a gap": [part(2, b"x", 1)],
    "no preamble": [part(1, b"x")],
    "a frame inside a frame": [part(1, b"x", 3), part(2, b"x", 3)],
    "more than announced": [part(1, b"xx", 3), part(2, b"xx")],
    "first part longer than the frame": [part(1, b"xx", 1)],
    "an empty frame": [part(1, b"x", 0)],
    "a negative frame": [part(1, b"x", -1)],
    "too long": [part(1, b"x", (1 << 20) + 1)],
    "too long, short when expanded": [Part(1, Preamble((1 << 20) + 1, 10, "zlib", 0, "a", "b"), memoryview(b"x"))],
    "too long when expanded": [Part(1, Preamble(10, (1 << 20) + 1, "zlib", 0, "a", "b"), memoryview(b"x"))],
    "longer than an address space": [part(1, b"x", 1 << 62)],
}


@pytest.mark.parametrize("parts", BAD.values(), ids=BAD)
def test_what_no_honest_end_sends_is_refused(parts):
    inbox = Inbox(WINDOW, 1 << 20)
    for each in parts[:-1]:
        inbox.take(each)
    with pytest.raises(ProtocolError):
        inbox.take(parts[-1])


def test_who_ignores_the_window_is_refused_also_with_tiny_frames():
    inbox = Inbox(WINDOW, 1 << 20)
    most = 2 * WINDOW // (PART_COST + 1)
    for sequence in range(1, most):
        inbox.take(part(sequence, b"x", 1))
    with pytest.raises(ProtocolError, match="window"):
        [inbox.take(part(sequence, b"x", 1)) for sequence in range(most, most + 3)]


def test_an_announced_frame_costs_no_memory_before_it_comes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inboxes = [Inbox(WINDOW, 4 << 30) for _ in range(4)]
    for inbox in inboxes:
        inbox.take(part(1, b"x", 4 << 30))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_acknowledgements_and_claims_of_what_was_never_sent_are_refused():
    outbox, _ = pair()
    outbox.put(frame(b"x"))
    outbox.pull()
    for claim in (outbox.acknowledge, outbox.rewind):
        with pytest.raises(ProtocolError):
            claim(2)
