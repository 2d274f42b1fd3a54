"""A worker: whose orders it follows, which states become seats, what it does first. w2 holds stage 2 and shadows stage 1."""

from dataclasses import replace

import pytest
import torch

from holdfast.claim import Claim, Direction, Header, Role
from holdfast.digest import same_bytes, state_digest
from holdfast.errors import ProtocolError
from holdfast.message import (
    Accepted,
    BeginStep,
    Complaint,
    Envelope,
    Examine,
    Finding,
    Loss,
    NewRoute,
    Seal,
    SendState,
    StateAdopted,
    StateTransfer,
    Supply,
    TiedGradient,
    TiedWeight,
    Update,
)
from holdfast.recover.skip import bypass
from holdfast.route import reshadowed, without
from holdfast.worker import Hardware, Worker


def say(worker, sender, message):
    return list(worker.receive(Envelope(sender, worker.name, message)))


def bare(toy, name="w2", **terms):
    mine = name == "w0"
    hardware = Hardware((1.0,) * 4, devices=2 if mine else 1)
    return Worker(name, toy.execution, toy.terms(**terms), toy.BOUNDARY, hardware, toy.tokens if mine else None)


def begin(toy, worker, route=None, step=0, attempt=0, version=0, digests=None):
    digests = digests or tuple(toy.sealed(i) for i in range(4))
    return say(worker, "coordinator", BeginStep(step, attempt, version, route or toy.ROUTE, digests))


def seated(toy, name="w2", route=None, **terms):
    """With the seats of the route, at the start of step 0."""
    worker = bare(toy, name, **terms)
    for stage, role in (route or toy.ROUTE).seats_of(name):
        say(worker, "somebody", StateTransfer(toy.state(stage), role))
    for envelope in begin(toy, worker, route):
        say(worker, envelope.sender, envelope.message)
    return worker


def give(worker, honest, *texts, ruled=True):
    sent = []
    for text in texts:
        claim = honest.claim(text, "somebody")
        sent += say(worker, "somebody", claim)
        if ruled:
            sent += say(worker, "coordinator", Accepted(claim.header.key, claim.header.output))
    return sent


def work(worker, device=0, limit=99):
    """Everything that can be done: the messages, and what was done in which order."""
    sent, done = [], []
    while len(done) < limit and (found := worker.next_work(device)) is not None:
        done.append(f"{found.kind} {found.stage}" + (f".{found.key.micro_batch}" if found.key.micro_batch >= 0 else ""))
        sent += worker.execute(found)
    return sent, done


# -- whose orders --------------------------------------------------------------------------------------------------------

ORDERS = {  # message: who may send it (besides those, nobody)
    "BeginStep": (BeginStep(0, 0, 0, None, ()), {"coordinator"}),
    "NewRoute": (NewRoute(None), {"coordinator"}),
    "Accepted": (Accepted(None, b""), {"coordinator"}),
    "Update": (Update(0, 0, 1.0, 0.1), {"coordinator"}),
    "Seal": (Seal(1), {"coordinator"}),
    "Supply": (Supply(None, ()), {"coordinator", "referee"}),
    "SendState": (SendState(1, 0, "w9", None), {"coordinator", "referee"}),
    "TiedGradient": (TiedGradient(0, 0, 0, torch.zeros(1)), {"w2"}),
    "TiedWeight": (TiedWeight(0, torch.zeros(1)), {"w2"}),
    "Header": (Header("run", None, 0, 0, "w1", Role.PRIMARY, (), b""), set()),
    "Complaint": (Complaint(None, "w1", b""), set()),
    "Finding": (Finding(None, b""), set()),
    "Examine": (Examine(None, 0, b"", (), ()), set()),
    "Loss": (Loss(0, 0, 0, 1.0), set()),
    "StateAdopted": (StateAdopted(1, 0, Role.PRIMARY, b""), set()),
}


@pytest.mark.parametrize("sender", ["coordinator", "referee", "w1", "w0", "nobody", "w2"])
@pytest.mark.parametrize("name", ORDERS)
def test_orders_from_strangers_are_refused(toy, name, sender):
    message, allowed = ORDERS[name]
    if sender in allowed:
        return
    with pytest.raises(ProtocolError, match=rf"^w2 got {name} from '{sender}', who may not send it$"):
        say(bare(toy), sender, message)


# -- states and seats ----------------------------------------------------------------------------------------------------


def test_a_state_is_shown_by_its_digest_and_becomes_a_seat_with_the_step(toy):
    worker = bare(toy)
    (envelope,) = say(worker, "w1", StateTransfer(toy.state(1), Role.SHADOW))
    assert envelope == Envelope("w2", "coordinator", StateAdopted(1, 0, Role.SHADOW, toy.sealed(1)))
    assert worker.seats == {}
    begin(toy, worker)
    assert {stage: seat.role for stage, seat in worker.seats.items()} == {1: Role.SHADOW}


def wrong(toy, stage):
    honest = toy.state(stage)
    return replace(honest, weights={name: -tensor for name, tensor in honest.weights.items()})


@pytest.mark.parametrize("order", [("liar", "w1"), ("w1", "liar")])
def test_of_several_states_the_sealed_one_becomes_the_seat(toy, order):
    worker = bare(toy)
    for sender in order:
        say(worker, sender, StateTransfer(wrong(toy, 1) if sender == "liar" else toy.state(1), Role.SHADOW))
    begin(toy, worker)
    assert state_digest(worker.seats[1].state()) == toy.sealed(1)


def test_a_false_state_is_shown_as_what_it_is_and_never_becomes_a_seat(toy):
    worker = bare(toy)
    (envelope,) = say(worker, "liar", StateTransfer(wrong(toy, 1), Role.SHADOW))
    assert envelope.message.digest != toy.sealed(1)
    begin(toy, worker)
    assert worker.seats == {}


def test_a_false_state_does_not_replace_a_seat_and_a_right_one_for_no_seat_is_dropped(toy):
    worker = seated(toy)
    seat = worker.seats[1]
    say(worker, "liar", StateTransfer(wrong(toy, 1), Role.SHADOW))
    say(worker, "w1", StateTransfer(toy.state(3), Role.PRIMARY))
    begin(toy, worker, attempt=1)
    assert worker.seats[1] is seat
    assert worker.seats.keys() == {1, 2}


def test_a_state_to_be_looked_at_only_is_no_seat(toy):
    assert say(bare(toy), "w1", StateTransfer(toy.state(1), None)) == []


def test_seats_follow_the_route(toy):
    worker = seated(toy)
    route = reshadowed(without(toy.ROUTE, {"w1"}))
    begin(toy, worker, route, attempt=1)
    assert {stage: seat.role for stage, seat in worker.seats.items()} == {1: Role.PRIMARY, 2: Role.PRIMARY}
    begin(toy, worker, replace(toy.ROUTE, primaries=("w0", "w1", "w9", "w0")), attempt=2)
    assert {stage: seat.role for stage, seat in worker.seats.items()} == {1: Role.SHADOW}


def test_who_only_sits_out_a_step_keeps_its_seats(toy, honest):
    worker = seated(toy)
    begin(toy, worker, bypass(toy.ROUTE, {"w2"}), attempt=1)
    assert worker.seats.keys() == {1, 2}
    give(worker, toy.Honest(attempt=1), "a00", "a10", "g30")
    assert worker.next_work(0) is None


def test_a_new_step_brings_the_seal_of_the_last_to_who_missed_it(toy):
    worker = seated(toy)
    begin(toy, worker, step=1, version=1)
    assert [seat.version for seat in worker.seats.values()] == [1, 1]


# -- sending states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", ["coordinator", "referee"])
def test_a_state_is_sent_to_whom_it_is_ordered(toy, sender):
    (envelope,) = say(seated(toy), sender, SendState(1, 0, "w9", Role.SHADOW))
    assert (envelope.recipient, envelope.message.role) == ("w9", Role.SHADOW)
    assert state_digest(envelope.message.state) == toy.sealed(1)


def test_a_state_that_was_shown_is_sent_on_before_its_step_begins_and_no_other(toy):
    """Who sent it may be gone; what a liar sent as well stays here."""
    worker = bare(toy)
    say(worker, "liar", StateTransfer(wrong(toy, 1), Role.SHADOW))
    say(worker, "w1", StateTransfer(toy.state(1), Role.SHADOW))
    (envelope,) = say(worker, "coordinator", SendState(1, 0, "w9", Role.SHADOW, toy.sealed(1)))
    assert (envelope.recipient, envelope.message.role) == ("w9", Role.SHADOW)
    assert state_digest(envelope.message.state) == toy.sealed(1)
    assert say(worker, "coordinator", SendState(1, 0, "w9", Role.SHADOW, toy.sealed(3))) == []


def test_an_order_that_overtook_the_seal_is_answered_after_it(toy):
    worker = seated(toy)
    assert say(worker, "coordinator", SendState(1, 1, "w9", Role.SHADOW)) == []
    (envelope,) = say(worker, "coordinator", Seal(1))
    assert (envelope.recipient, envelope.message.state.version) == ("w9", 1)
    assert say(worker, "coordinator", Seal(1)) == []  # once


@pytest.mark.parametrize(("stage", "version"), [(1, 2), (1, -1), (0, 0), (3, 1)])
def test_what_it_does_not_have_it_does_not_send(toy, stage, version):
    worker = seated(toy)
    assert say(worker, "coordinator", SendState(stage, version, "w9", Role.SHADOW)) == []
    assert say(worker, "coordinator", Seal(1)) == []


# -- tensors -------------------------------------------------------------------------------------------------------------


def test_a_worker_tells_on_a_delivery_that_is_not_the_board_s(toy, honest):
    worker = seated(toy)
    false = honest.claim("a11", "w1")
    key = honest.key("a10")
    say(worker, "w1", replace(false, header=replace(false.header, key=key)))
    sent = say(worker, "coordinator", Accepted(key, honest.digest("a10")))
    assert sent == [Envelope("w2", "coordinator", Complaint(key, "w1", honest.digest("a11")))]


def test_supplies_come_from_the_own_seat_or_from_what_was_verified(toy, honest):
    worker = seated(toy)
    order = Supply(honest.key("a00"), ("w8", "w9"))
    give(worker, honest, "a00", ruled=False)
    assert say(worker, "coordinator", order) == []  # not verified: it is not passed on
    say(worker, "coordinator", Accepted(honest.key("a00"), honest.digest("a00")))
    sent = say(worker, "referee", order)
    assert [envelope.recipient for envelope in sent] == ["w8", "w9"]
    assert all(same_bytes(envelope.message.tensor, honest.tensors[honest.key("a00")]) for envelope in sent)
    work(worker)
    (own,) = say(worker, "coordinator", Supply(honest.key("a10"), ("w9",)))
    assert own.message.header.worker == "w2"


def test_its_own_results_need_no_journey(toy, honest):
    """What w2's shadow of stage 1 computes is what its stage 2 may work from, before the board has ruled on it."""
    worker = seated(toy)
    give(worker, honest, "a00")
    give(worker, honest, "a10", ruled=False)
    sent, done = work(worker)
    assert done == ["shadow-forward 1.0", "forward 2.0"]
    posted = [envelope.message for envelope in sent if isinstance(envelope.message, Header)]
    assert posted[1].inputs == (honest.digest("a10"),)


def test_another_tensor_than_its_shadow_computed_waits_for_the_board(toy, honest):
    worker = seated(toy)
    give(worker, honest, "a00")
    false = replace(honest.claim("a11", "w1"), header=replace(honest.claim("a10", "w1").header, output=honest.digest("a11")))
    say(worker, "w1", false)
    assert work(worker)[1] == ["shadow-forward 1.0"]


# -- what is done first --------------------------------------------------------------------------------------------------


ORDER = """
    shadow-forward 1.0   forward 2.0          shadow-forward 1.1   forward 2.1
    backward 2.0         shadow-backward 1.0  backward 2.1
    gradient 2           shadow-backward 1.1  gradient 1
"""


def test_a_shadow_goes_first_forward_and_last_backward_and_whole_step_work_before_all(toy, honest):
    worker = seated(toy)
    give(worker, honest, "a00", "a01", "a10", "a11", "g30", "g31")
    sent, done = work(worker)
    assert " ".join(done).split() == ORDER.split()
    assert all(envelope.recipient != "w2" for envelope in sent)  # its own results need no journey


def test_a_whole_step_of_a_worker(toy):
    honest = toy.Honest()
    worker = seated(toy)
    give(worker, honest, "a00", "a01", "a10", "a11", "g30", "g31")
    sent, _ = work(worker)
    say(worker, "coordinator", Update(0, 0, 0.5, 0.1))
    updated, done = work(worker)
    assert sorted(done) == ["update 1", "update 2"]
    digests = {envelope.message.key.stage: envelope.message.output for envelope in updated}
    assert digests == {stage: honest.update(stage) for stage in (1, 2)}
    roles = {(e.message.key.stage, e.message.role) for e in sent if isinstance(e.message, Header)}
    assert roles == {(1, Role.SHADOW), (2, Role.PRIMARY)}
    tensors = [e for e in sent if isinstance(e.message, Claim)]
    assert {e.message.header.key.stage for e in tensors} == {2}


def test_work_names_its_cost(toy, honest):
    worker = Worker("w2", toy.execution, toy.terms(), toy.BOUNDARY, Hardware((1.0, 2.0, 3.0, 1.0)))
    for stage, role in toy.ROUTE.seats_of("w2"):
        say(worker, "somebody", StateTransfer(toy.state(stage), role))
    begin(toy, worker)
    give(worker, honest, "a00", "a10", "g30")
    costs = {}
    while (found := worker.next_work(0)) is not None:
        costs[found.kind] = found.cost
        assert found == worker.next_work(0)  # asking changes nothing
        worker.execute(found)
    assert costs == {"shadow-forward": 2.0, "forward": 3.0, "backward": 6.0, "shadow-backward": 4.0}


def test_the_initiator_s_two_ends_run_on_two_devices(toy, honest):
    worker = seated(toy, "w0")
    assert worker.devices == 2
    assert worker.seats.keys() == {0, 2, 3}
    give(worker, honest, "a10", "a20")
    assert {worker.next_work(0).stage, worker.next_work(1).stage} == {0, 2}
    assert worker.next_work(0).key.direction is Direction.FORWARD


def test_the_embedding_reaches_the_head_on_the_same_machine(toy, honest):
    worker = seated(toy, "w0")
    give(worker, honest, "a20")
    sent, done = work(worker, device=1)
    assert done[0] == "forward 3.0"
    assert [envelope.message.value for envelope in sent if isinstance(envelope.message, Loss)] == [honest.losses[0]]


def test_a_new_route_makes_an_heir(toy, honest):
    worker = seated(toy)
    give(worker, honest, "a00")
    work(worker)
    sent = say(worker, "coordinator", NewRoute(without(toy.ROUTE, {"w1"})))
    assert {envelope.message.header.key for envelope in sent if isinstance(envelope.message, Claim)} == {honest.key("a10")}
    assert worker.seats[1].role is Role.PRIMARY
    assert worker.describe() == "w2: primary of 1 at v0, primary of 2 at v0"
