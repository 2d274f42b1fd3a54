"""What the relay passes on, holds at most, and tells; over connections that only collect."""

from collections import deque
from dataclasses import dataclass, field

from holdfast.transport import packet
from holdfast.transport.packet import Closed, Relayed, parse
from holdfast.transport.relay import Relay


@dataclass(eq=False)
class Line:
    peer: str
    kind: str = "bulk"
    sources: deque = field(default_factory=deque)

    def kick(self):
        pass

    def sent(self):
        """All that would be sent now, first to last from each source."""
        return [parse(message) for source in self.sources for message in iter(source, None)]


def relayed(source, target, size=100):
    return parse(packet.relay_head(source, target) + packet.part_head(1) + b"x" * size)


def test_packets_are_passed_on_as_they_are():
    w1, w2, relay = Line("w1"), Line("w2"), Relay(10_000)
    packets = [relayed("w1", "w2", size) for size in (5, 50, 7)]
    for each in packets:
        relay.carry(w1, w2, each)
    assert [each.whole for each in w2.sent()] == [each.whole for each in packets]
    assert w1.sent() == []


def test_whoever_cannot_be_reached_is_told_of():
    w1, relay = Line("w1"), Relay(10_000)
    relay.carry(w1, None, relayed("w1", "w2"))
    assert w1.sent() == [Closed("w2")]


def test_no_more_than_the_limit_waits_and_one_sender_takes_nothing_from_another():
    w1, w2, w3, relay = Line("w1"), Line("w2"), Line("w3"), Relay(1000)
    for _ in range(50):
        relay.carry(w1, w2, relayed("w1", "w2"))
    relay.carry(w3, w2, relayed("w3", "w2"))
    found = w2.sent()
    assert sum(len(each.whole) for each in found if each.source == "w1") <= 1000
    assert [each.source for each in found].count("w3") == 1
    assert set(w1.sent()) == {Closed("w2")}
    relay.carry(w1, w2, relayed("w1", "w2"))
    assert len(w2.sent()) == 1, "there is room again"


def test_the_end_of_a_connection_is_told_to_both_directions_once_and_on_its_own_stream():
    w1, w2, w3, control, relay = Line("w1"), Line("w2"), Line("w3"), Line("w3", "control"), Relay(10_000)
    relay.carry(w1, w2, relayed("w1", "w2"))
    relay.carry(w2, w3, relayed("w2", "w3"))
    relay.carry(Line("w2", "control"), control, relayed("w2", "w3"))
    relay.ended(w2)
    assert w1.sent() == [Closed("w2")]
    assert [type(each) for each in w3.sent()] == [Relayed, Closed], "after what was on its way"
    assert [type(each) for each in control.sent()] == [Relayed]
    relay.ended(w2)
    assert w1.sent() == []


def test_connections_that_are_gone_are_not_kept():
    w1, relay = Line("w1"), Relay(10_000)
    for _ in range(5):
        w2, w3 = Line("w2"), Line("w3")
        relay.carry(w2, w1, relayed("w2", "w1"))
        relay.carry(w2, w3, relayed("w2", "w3"))
        relay.carry(w3, w2, relayed("w3", "w2"))
        relay.ended(w2)
        relay.ended(w3)
    assert list(relay._to) == [w1]
    assert len(w1.sources) == 1
    assert [queue.origin for queue in relay._to[w1].values()] == [None]
