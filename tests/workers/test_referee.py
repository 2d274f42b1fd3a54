"""The referee re-executes from sealed weights and accepted inputs, believes no holder, and computes nothing twice."""

from dataclasses import replace

import pytest

from holdfast.claim import ClaimKey, Role
from holdfast.digest import state_digest, tensor_digest
from holdfast.errors import ProtocolError
from holdfast.message import (
    Accepted,
    BeginStep,
    Complaint,
    Envelope,
    Examine,
    Finding,
    NewRoute,
    Seal,
    SendState,
    StateTransfer,
    Supply,
    Update,
)
from holdfast.referee import Referee
from holdfast.route import without
from holdfast.verify.chain import ingredients


def say(referee, sender, message):
    return list(referee.receive(Envelope(sender, "referee", message)))


def begin(referee, toy, step=0, attempt=0, version=0, route=None):
    return say(referee, "coordinator", BeginStep(step, attempt, version, route or toy.ROUTE, (b"",) * 4))


@pytest.fixture
def referee(toy):
    found = Referee("run", toy.execution, toy.M, (1.0, 2.0, 3.0, 1.0))
    begin(found, toy)
    return found


def case(toy, honest, text, scale=0.5, rate=0.1):
    key = honest.key(text)
    needed = tuple((parent, tensor_digest(honest.tensors[parent])) for parent in ingredients(key, toy.ROUTE, toy.M))
    return Examine(key, 0, toy.sealed(key.stage), needed, toy.ROUTE.holders(key.stage), scale, rate)


def answer(referee, toy, honest, envelopes):
    """Every holder that is asked sends what is true."""
    for envelope in envelopes:
        order = envelope.message
        if isinstance(order, SendState):
            say(referee, envelope.recipient, StateTransfer(toy.state(order.stage, order.version), order.role))
        else:
            key = order.key
            text = ("a" if key.direction == "forward" else "g") + f"{key.stage}{key.micro_batch}"
            say(referee, envelope.recipient, honest.claim(text, envelope.recipient))


def examine(referee, toy, honest, text, **order):
    """The findings about one claim, everybody helping."""
    answer(referee, toy, honest, say(referee, "coordinator", case(toy, honest, text, **order)))
    work = referee.next_work(0)
    return None if work is None else referee.execute(work)[0]


# -- what it finds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a10", "a21", "g10", "g21"])
def test_a_claim(referee, toy, honest, text):
    assert examine(referee, toy, honest, text) == Envelope(
        "referee", "coordinator", Finding(honest.key(text), honest.digest(text))
    )


@pytest.mark.parametrize("stage", [1, 2])
def test_a_gradient_and_then_the_update(referee, toy, stage):
    honest = toy.Honest()
    gradient = honest.executions[stage].gradient()
    assert examine(referee, toy, honest, f"G{stage}").message == Finding(
        honest.key(f"G{stage}"), gradient.digest, gradient.norms
    )
    assert examine(referee, toy, honest, f"U{stage}").message == Finding(honest.key(f"U{stage}"), honest.update(stage))


def test_an_update_depends_on_clip_scale_and_rate(referee, toy, honest):
    found = {
        examine(referee, toy, honest, "U1", scale=scale, rate=rate).message.output
        for scale, rate in [(0.5, 0.1), (0.4, 0.1), (0.5, 0.2)]
    }
    assert len(found) == 3


def test_in_the_second_step_of_a_run_it_works_from_the_new_state(referee, toy):
    honest = toy.Honest()
    honest.update(1)
    honest.executions[1].seal()
    state = honest.executions[1].state(1)
    begin(referee, toy, step=1, version=1)
    honest.executions[1].begin(1)
    given = toy.draw(toy.B, toy.S, toy.D, seed=5)
    key, parent = ClaimKey(1, 0, toy.FORWARD, 1, 0), ClaimKey(1, 0, toy.FORWARD, 0, 0)
    order = Examine(key, 1, state_digest(state), ((parent, tensor_digest(given)),), ("w1", "w2"))
    say(referee, "coordinator", order)
    say(referee, "w1", StateTransfer(state, None))
    claim = honest.claim("a00", "w0")
    say(referee, "w0", replace(claim, header=replace(claim.header, key=parent), tensor=given))
    (found,) = referee.execute(referee.next_work(0))
    assert found.message.output == tensor_digest(honest.executions[1].forward(0, given))


# -- whom it asks and believes -------------------------------------------------------------------------------------------


def test_every_holder_is_asked_at_once_for_what_is_missing(referee, toy, honest):
    sent = say(referee, "coordinator", case(toy, honest, "g10"))
    assert [(envelope.recipient, envelope.message) for envelope in sent] == [
        *[(worker, SendState(1, 0, "referee", None)) for worker in ("w1", "w2")],
        *[(worker, Supply(honest.key("a00"), ("referee",))) for worker in ("w1", "w2")],
        *[(worker, Supply(honest.key("g20"), ("referee",))) for worker in ("w1", "w2")],
    ]
    answer(referee, toy, honest, sent)
    again = say(referee, "coordinator", case(toy, honest, "g11"))
    assert {envelope.message.key for envelope in again} == {honest.key("a01"), honest.key("g21")}
    assert say(referee, "coordinator", case(toy, honest, "a10")) == []


LIES = {
    "negative weights": lambda state: replace(state, weights={name: -tensor for name, tensor in state.weights.items()}),
    "another count of updates": lambda state: replace(state, updates=1),
    "another version": lambda state: replace(state, version=1),
    "another stage": lambda state: replace(state, stage=2, weights={"w2": state.weights["w1"]}),
}


@pytest.mark.parametrize("lie", LIES)
def test_states_that_are_not_the_sealed_one_are_ignored(referee, toy, honest, lie):
    say(referee, "coordinator", case(toy, honest, "a10"))
    say(referee, "w0", honest.claim("a00", "w0"))
    say(referee, "w1", StateTransfer(LIES[lie](toy.state(1)), None))
    assert referee.next_work(0) is None
    say(referee, "nobody", StateTransfer(toy.state(1), Role.PRIMARY))  # who sends the right bytes does not count
    say(referee, "w1", StateTransfer(LIES[lie](toy.state(1)), None))
    (found,) = referee.execute(referee.next_work(0))
    assert found.message.output == honest.digest("a10")


def test_tensors_that_are_not_the_accepted_ones_are_ignored(referee, toy, honest):
    say(referee, "coordinator", case(toy, honest, "a10"))
    say(referee, "w1", StateTransfer(toy.state(1), None))
    true, other = honest.claim("a00", "w0"), honest.claim("a01", "w0")
    say(referee, "w1", replace(true, tensor=other.tensor))  # a false tensor with a true header
    say(referee, "w1", other)  # which nobody asked for
    assert referee.next_work(0) is None
    say(referee, "w1", replace(true, header=replace(true.header, output=b"nonsense")))
    say(referee, "w1", replace(true, tensor=other.tensor))  # too late
    (found,) = referee.execute(referee.next_work(0))
    assert found.message.output == honest.digest("a10")


def test_what_other_holders_send_after_the_first_is_not_hashed_again(referee, toy, honest, monkeypatch):
    say(referee, "coordinator", case(toy, honest, "a10"))
    say(referee, "w0", honest.claim("a00", "w0"))
    monkeypatch.setattr("holdfast.referee.tensor_digest", None)
    assert say(referee, "w1", honest.claim("a00", "w0")) == []
    assert say(referee, "w1", honest.claim("g20", "w2")) == [], "nobody asked for it"


def test_what_comes_unasked_is_not_kept(referee, toy, honest):
    say(referee, "w1", StateTransfer(toy.state(1), None))
    say(referee, "w0", honest.claim("a00", "w0"))
    sent = say(referee, "coordinator", case(toy, honest, "a10"))
    assert len(sent) == 4
    assert referee.next_work(0) is None


@pytest.mark.parametrize("sender", ["w1", "nobody", "referee"])
@pytest.mark.parametrize("message", [Seal(1), NewRoute(None), Supply(None, ()), SendState(1, 0, "w", None), Finding(None, b"")])
def test_orders_from_strangers_are_refused(referee, sender, message):
    with pytest.raises(ProtocolError, match=rf"the referee got {type(message).__name__} from '{sender}', not the coordinator"):
        say(referee, sender, message)


@pytest.mark.parametrize("message", [Accepted(None, b""), Update(0, 0, 1.0, 0.1), Complaint(None, "w1", b"")])
def test_orders_that_are_not_for_it_are_refused(referee, message):
    with pytest.raises(ProtocolError, match=f"no use for {type(message).__name__}"):
        say(referee, "coordinator", message)


# -- nothing twice -------------------------------------------------------------------------------------------------------


def calls(referee, stage):
    return referee._benches[stage].execution.module.calls


def test_each_pass_is_computed_once_a_step(referee, toy):
    honest = toy.Honest()
    costs = []
    for text in ("a10", "g10", "a11", "G1", "U1"):
        answer(referee, toy, honest, say(referee, "coordinator", case(toy, honest, text)))
        work = referee.next_work(0)
        assert (work.kind, work.key) == ("referee", honest.key(text))
        costs.append(work.cost)
        referee.execute(work)
    assert calls(referee, 1) == toy.M
    assert costs == [2.0, 4.0, 2.0, 4.0, 0.0]  # forward passes of a stage that takes twice the average


def test_a_case_asked_for_twice_is_answered_twice_and_computed_once(referee, toy, honest):
    assert examine(referee, toy, honest, "a10") == examine(referee, toy, honest, "a10")
    assert calls(referee, 1) == 1


@pytest.mark.parametrize("text", ["g10", "G1"])
def test_another_attempt_starts_from_the_same_state_without_asking_for_it(referee, toy, honest, text):
    found = examine(referee, toy, honest, text).message
    begin(referee, toy, attempt=1)
    again = toy.Honest(attempt=1)
    sent = say(referee, "coordinator", case(toy, again, text))
    assert not any(isinstance(envelope.message, SendState) for envelope in sent)
    answer(referee, toy, again, sent)
    (envelope,) = referee.execute(referee.next_work(0))
    assert envelope.message == replace(found, key=again.key(text))
    assert calls(referee, 1) == (2 if text == "g10" else 2 * toy.M)


@pytest.mark.parametrize("order", [{"step": 1, "version": 1}, {"attempt": 1}])
def test_cases_of_a_step_or_attempt_that_is_over_are_dropped(referee, toy, honest, order):
    answer(referee, toy, honest, say(referee, "coordinator", case(toy, honest, "a10")))
    begin(referee, toy, **order)
    assert referee.next_work(0) is None


# -- where nobody else has it --------------------------------------------------------------------------------------------


def test_it_supplies_its_own_tensor(referee, toy, honest):
    examine(referee, toy, honest, "a10")
    sent = say(referee, "coordinator", Supply(honest.key("a10"), ("w2", "w0")))
    assert [envelope.recipient for envelope in sent] == ["w2", "w0"]
    claim = sent[0].message
    assert (tensor_digest(claim.tensor), claim.header.output) == (honest.digest("a10"),) * 2
    assert (claim.header.worker, claim.header.key, claim.header.version) == ("referee", honest.key("a10"), 0)


def test_it_sends_the_state_that_it_found(referee, toy):
    honest = toy.Honest()
    found = examine(referee, toy, honest, "U1").message.output
    say(referee, "coordinator", Seal(1))
    (envelope,) = say(referee, "coordinator", SendState(1, 1, "w1", Role.PRIMARY))
    assert (envelope.recipient, envelope.message.role) == ("w1", Role.PRIMARY)
    assert (state_digest(envelope.message.state), envelope.message.state.version) == (found, 1)


def test_a_new_route_is_followed(referee, toy, honest):
    say(referee, "coordinator", NewRoute(without(toy.ROUTE, {"w1"})))
    examine(referee, toy, honest, "a10")
    (envelope,) = say(referee, "coordinator", Supply(honest.key("a10"), ("w2",)))
    assert envelope.message.header.epoch == toy.ROUTE.epoch + 1


def test_what_it_waits_for_in_a_line(referee, toy, honest):
    assert referee.describe() == "referee: waits for state or tensors of nothing"
    say(referee, "coordinator", case(toy, honest, "a10"))
    assert referee.describe() == "referee: waits for state or tensors of forward of stage 1, step 0 micro-batch 0"
