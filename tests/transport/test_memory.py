"""Arrival times on the described cluster follow from sizes, links and one seed."""

import math

import pytest
import torch

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.message import Envelope, Seal, StateTransfer, TiedWeight
from holdfast.transport import Cluster, Link, MemoryTransport, wire_bytes

TENSOR = torch.zeros(1000)


def bulk(sender="a", recipient="b", version=0):
    return Envelope(sender, recipient, TiedWeight(version, TENSOR))


def control(sender="a", recipient="b", version=0):
    return Envelope(sender, recipient, Seal(version))


def arrivals(cluster, envelopes):
    """What arrives when: (virtual time, kind, version) in order of arrival."""
    transport = MemoryTransport(cluster)
    for envelope in envelopes:
        transport.send(envelope)
    return [(transport.now_s, e.sender, type(e.message), e.message.version) for e in iter(transport.receive, None)]


def test_a_message_takes_latency_and_its_bytes_through_the_link():
    cluster = Cluster(Link(0.25, 1e4))
    ((tensor_s, *_),) = arrivals(cluster, [bulk()])
    ((seal_s, *_),) = arrivals(cluster, [control()])
    assert tensor_s == pytest.approx(0.25 + wire_bytes(bulk()) / 1e4)
    assert seal_s == pytest.approx(0.25 + wire_bytes(control()) / 1e4)


def test_tensors_queue_at_the_senders_machine_whoever_they_go_to():
    sent = [bulk("a", "b", 0), bulk("a", "c", 1), bulk("d", "b", 2)]
    got = arrivals(Cluster(Link(0.0, 1e4)), sent)
    one = wire_bytes(sent[0]) / 1e4
    assert [(time, version) for time, _, _, version in got] == [
        (pytest.approx(one), 0),
        (pytest.approx(one), 2),
        (pytest.approx(2 * one), 1),
    ]


def test_the_queue_drains_while_nothing_is_sent():
    transport = MemoryTransport(Cluster(Link(0.0, 1e4)))
    transport.send(bulk())
    transport.now_s = 100.0
    transport.send(bulk())
    assert transport.receive().message.version == 0
    transport.receive()
    assert transport.now_s == pytest.approx(100 + wire_bytes(bulk()) / 1e4)


def test_control_messages_never_queue_behind_tensors():
    sent = [*(bulk(version=m) for m in range(5)), control(version=9)]
    assert next((kind, version) for _, _, kind, version in arrivals(Cluster(Link(0.0, 1e4)), sent)) == (Seal, 9)


def test_a_pair_may_have_its_own_link_in_one_direction():
    cluster = Cluster(Link(1.0, math.inf), {("a", "b"): Link(5.0, math.inf)})
    got = arrivals(cluster, [control("a", "b", 1), control("b", "a", 2), control("a", "c", 3)])
    assert [(time, version) for time, _, _, version in got] == [(1.0, 2), (1.0, 3), (5.0, 1)]


def test_jitter_delays_and_reorders_tensors_but_not_the_control_messages_of_a_pair():
    sent = [envelope for m in range(30) for envelope in (bulk(version=m), control(version=m))]
    got = arrivals(Cluster(Link(0.0, math.inf), jitter_s=2.0), sent)
    order = {kind: [v for _, _, k, v in got if k is kind] for kind in (Seal, TiedWeight)}
    assert order[Seal] == list(range(30))
    assert sorted(order[TiedWeight]) == list(range(30)) != order[TiedWeight]
    assert all(0 <= time <= 2.0 for time, *_ in got)


def test_loss_delays_and_loses_nothing():
    link = Link(0.0, math.inf)
    sent = [bulk(version=m) for m in range(200)]
    got = arrivals(Cluster(link, loss=0.25), sent)
    delayed = [time for time, *_ in got if time > 0]
    assert sorted(version for *_, version in got) == list(range(200))
    assert 30 < len(delayed) < 70  # 50 expected
    assert min(delayed) == pytest.approx(0.01)


def test_the_same_seed_gives_the_same_arrivals_and_another_one_others():
    sent = [bulk(version=m) for m in range(20)]
    runs = [arrivals(Cluster(jitter_s=0.1, loss=0.1, seed=seed), sent) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_what_one_says_to_oneself_costs_nothing_and_is_not_counted():
    transport = MemoryTransport(Cluster(Link(1.0, 1.0), jitter_s=1.0))
    transport.send(bulk("a", "a"))
    assert transport.next_s == 0.0
    assert transport.traffic.bytes_sent == 0
    transport.send(bulk("a", "b"))
    assert transport.traffic.by_sender == {"a": wire_bytes(bulk())}


def test_tensors_pass_by_reference_unless_the_wire_is_checked():
    for wire_check in (False, True):
        transport = MemoryTransport(Cluster(), wire_check=wire_check)
        for recipient in ("a", "b"):
            transport.send(bulk("a", recipient))
            assert (transport.receive().message.tensor is TENSOR) != wire_check


def test_waiting_moves_the_clock_and_time_never_runs_back():
    transport = MemoryTransport(Cluster(Link(1.0, math.inf)))
    transport.send(control())
    assert transport.receive(0.5) is None
    assert transport.now_s == 0.5
    transport.now_s = 3.0
    assert transport.receive(0.0) is not None
    assert transport.now_s == 3.0
    assert transport.next_s == math.inf
    assert transport.receive() is None


def test_a_small_tensor_may_count_for_a_large_one():
    """Tensors between stages and states only: what the last stage says to the first about tied weights stays as it is."""
    key = ClaimKey(0, 0, Direction.FORWARD, 1, 0)
    header = Header("run", key, 0, 0, "a", Role.PRIMARY, (b"i",), b"o")
    claim = Envelope("a", "b", Claim(header, TENSOR))
    with_origin = Envelope("a", "b", Claim(header, TENSOR, TENSOR))
    state = Envelope("a", "b", StateTransfer(StageState(1, 0, 0, {"w": TENSOR}, {"w.exp_avg": TENSOR}), Role.SHADOW))
    described = Cluster(tensor_bytes=10**6, state_bytes=10**8)
    assert described.frame_bytes(claim) == wire_bytes(claim) - TENSOR.nbytes + 10**6
    assert described.frame_bytes(with_origin) == wire_bytes(with_origin) - 2 * TENSOR.nbytes + 2 * 10**6
    assert described.frame_bytes(state) == wire_bytes(state) - 2 * TENSOR.nbytes + 10**8
    for envelope in (bulk(), control()):
        assert described.frame_bytes(envelope) == wire_bytes(envelope)
    assert Cluster().frame_bytes(claim) == wire_bytes(claim)
    transport = MemoryTransport(Cluster(Link(0.0, 1e6), tensor_bytes=10**6))
    transport.send(claim)
    transport.receive()
    assert transport.now_s == pytest.approx(1.0, rel=1e-2)
