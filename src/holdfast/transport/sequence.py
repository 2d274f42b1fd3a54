"""Numbered parts: frames cut into parts that are kept until acknowledged, and put together again in order, once.

Both ends count alike: a part costs its octets and a constant, so that many tiny frames cannot cost more memory than they count.

    Outbox    put -> pull, pull, ...           at most a window of cost between `acknowledge`d and pulled
              rewind(received)                 on a new way: go on after what the other end has
    Inbox     take -> Arrival or None          in order; what came before is dropped, a gap is a ProtocolError
              read(arrival)                    the reader has it: room for more

The inbox acknowledges a part once it can afford the next: while what is complete and unread stays inside the window, or nothing
is unread (then a single frame may be longer than the window). So a slow reader costs two windows and one frame at most.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from holdfast.errors import ProtocolError
from holdfast.transport import packet
from holdfast.transport.packet import Part, Preamble
from holdfast.transport.wire import empty_frame

PART_COST = 512
"""Bytes that a part counts beside its octets."""


class Outgoing:
    """A frame as views of its bytes, with what stands before it."""

    def __init__(self, preamble: Preamble, pieces: Sequence[memoryview]) -> None:
        self.size = preamble.size
        self.preamble = packet.preamble(preamble)
        self._pieces = pieces
        self._begins = [0]
        for piece in pieces:
            self._begins.append(self._begins[-1] + len(piece))

    def cut(self, begin: int, end: int) -> list[memoryview]:
        """The views that cover the octets from `begin` to `end`."""
        first = bisect_right(self._begins, begin) - 1
        found = []
        for index in range(first, len(self._pieces)):
            start = self._begins[index]
            if start >= end:
                break
            found.append(self._pieces[index][max(0, begin - start) : end - start])
        return found


@dataclass(frozen=True, slots=True)
class _Sent:
    sequence: int
    frame: Outgoing
    begin: int
    end: int

    @property
    def cost(self) -> int:
        return self.end - self.begin + PART_COST


class Outbox:
    """One end's frames on one stream, first to last."""

    def __init__(self, part_bytes: int) -> None:
        self.window = 0
        self.queued_bytes = 0
        self._part_bytes = part_bytes
        self._frames: deque[Outgoing] = deque()
        self._cut = 0  # octets of the first frame that have been pulled
        self._sent: deque[_Sent] = deque()  # pulled and not acknowledged
        self._again = 0  # how many of these were pulled on the present way
        self._sequence = 0
        self._in_flight = 0

    def put(self, frame: Outgoing) -> None:
        self._frames.append(frame)
        self.queued_bytes += frame.size

    @property
    def unsent(self) -> bool:
        """Whether something waits to be pulled."""
        return bool(self._frames) or self._again < len(self._sent)

    def pull(self, prefix: bytes = b"") -> bytes | None:
        """The next part as a packet behind `prefix`; None if there is none, or no room in the window."""
        if self._again < len(self._sent):
            part = self._sent[self._again]
        elif not self._frames:
            return None
        else:
            frame = self._frames[0]
            left = frame.size - self._cut
            end = self._cut + (left if left <= self._part_bytes * 9 // 8 else self._part_bytes)
            part = _Sent(self._sequence + 1, frame, self._cut, end)
            if self._sent and self._in_flight + part.cost > self.window:
                return None
            self._sequence += 1
            self._in_flight += part.cost
            self._cut = end
            self._sent.append(part)
            if end == frame.size:
                self._frames.popleft()
                self._cut = 0
        self._again += 1
        head = packet.part_head(part.sequence, part.frame.preamble if part.begin == 0 else b"")
        return b"".join((prefix, head, *part.frame.cut(part.begin, part.end)))

    def acknowledge(self, sequence: int) -> None:
        """The other end has taken all parts up to `sequence`. Raises ProtocolError for what was never sent."""
        if sequence > self._sequence:
            raise ProtocolError(f"part {sequence} was acknowledged; {self._sequence} were sent")
        while self._sent and self._sent[0].sequence <= sequence:
            part = self._sent.popleft()
            self._again = max(0, self._again - 1)
            self._in_flight -= part.cost
            self.queued_bytes -= part.end - part.begin

    def rewind(self, received: int | None) -> None:
        """Pull again what the other end has not `received` (None: what it has not acknowledged)."""
        if received is not None and received > self._sequence:
            raise ProtocolError(f"the other end claims to have received part {received}; {self._sequence} were sent")
        self._again = 0
        while received is not None and self._again < len(self._sent) and self._sent[self._again].sequence <= received:
            self._again += 1


@dataclass(slots=True)
class Arrival:
    """A complete frame; `octets` begin at a multiple of 64 and are the reader's own if the frame came in several parts."""

    preamble: Preamble
    octets: memoryview
    cost: int


@dataclass(slots=True)
class Inbox:
    """The other end's frames on one stream; `window` bounds the cost of what it may send unacknowledged."""

    window: int
    max_frame_bytes: int
    received: int = 0
    acknowledged: int = 0
    unread_bytes: int = 0
    _unacknowledged: int = 0
    _preamble: Preamble | None = field(default=None, init=False)
    _frame: memoryview | None = field(default=None, init=False)
    _filled: int = field(default=0, init=False)
    _cost: int = field(default=0, init=False)

    def take(self, part: Part) -> Arrival | None:
        """The frame that this part completes, if it does. Raises ProtocolError for parts that no honest end sends."""
        if part.sequence <= self.received:
            return None
        if part.sequence != self.received + 1:
            raise ProtocolError(f"part {part.sequence} arrived after part {self.received}")
        cost = len(part.octets) + PART_COST
        if self._unacknowledged and self._unacknowledged + cost > self.window:
            raise ProtocolError(f"{self._unacknowledged + cost} bytes unacknowledged; the window is {self.window}")
        arrival = self._assemble(part, cost)
        self.received = part.sequence
        self._unacknowledged += cost
        self._settle()
        return arrival

    def read(self, arrival: Arrival) -> None:
        """The reader has taken a frame, or dropped it."""
        self.unread_bytes -= arrival.cost
        self._settle()

    @property
    def held_bytes(self) -> int:
        """Octets in memory here: unread frames and the one that is being put together."""
        return self.unread_bytes + self._filled

    def _assemble(self, part: Part, cost: int) -> Arrival | None:
        octets, first = part.octets, part.preamble
        if (first is None) == (self._preamble is None):
            raise ProtocolError("a part without the preamble of its frame, or a frame inside another")
        if first is not None:
            if not max(1, len(octets)) <= first.size <= self.max_frame_bytes or not 1 <= first.plain <= self.max_frame_bytes:
                raise ProtocolError(f"a frame of {first.size} bytes ({first.plain}); the limit is {self.max_frame_bytes}")
            if first.size == len(octets):
                self.unread_bytes += cost
                return Arrival(first, octets, cost)
            try:
                self._frame = empty_frame(first.size)
            except MemoryError:
                raise ProtocolError(f"a frame of {first.size} bytes, for which there is no memory") from None
            self._preamble, self._filled, self._cost = first, 0, 0
        frame, preamble = self._frame, self._preamble
        assert frame is not None
        assert preamble is not None
        end = self._filled + len(octets)
        if end > preamble.size:
            raise ProtocolError(f"parts of {end} bytes for a frame of {preamble.size}")
        frame[self._filled : end] = octets
        self._filled = end
        self._cost += cost
        if end < preamble.size:
            return None
        arrival = Arrival(preamble, frame, self._cost)
        self.unread_bytes += self._cost
        self._preamble, self._frame, self._filled, self._cost = None, None, 0, 0
        return arrival

    def _settle(self) -> None:
        if not self.unread_bytes or self.unread_bytes + self._cost <= self.window:
            self.acknowledged = self.received
            self._unacknowledged = 0
