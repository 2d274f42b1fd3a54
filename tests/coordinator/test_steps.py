"""A step from its first message to its seal, with everybody honest; and what is not heard at all."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.claim import ClaimKey, Direction, Role
from holdfast.errors import FaultWindowExceeded
from holdfast.event import Ruling, StepSealed
from holdfast.message import (
    Accepted,
    BeginStep,
    Complaint,
    Examine,
    Finding,
    Loss,
    Seal,
    SendState,
    StateAdopted,
    Supply,
    Update,
)
from holdfast.recover.remedy import Redo, Remedy


def recipients(envelopes, kind):
    return [envelope.recipient for envelope in envelopes if isinstance(envelope.message, kind)]


def test_a_step_begins_where_everybody_can_hear_it(world):
    w = world()
    sent = w.coordinator.begin(0)
    order = BeginStep(0, 0, 0, w.route, (b"v0",) * 5)
    assert [(envelope.recipient, envelope.message) for envelope in sent] == [
        (who, order) for who in ("w0", "w1", "w2", "w3", "referee")
    ]
    assert not w.coordinator.idle()


def test_an_honest_step_is_sealed_without_a_word_of_doubt(world):
    w = world().begin()
    for m, loss in enumerate((2.0, 4.0)):
        w.say("w0", Loss(0, 0, m, loss))
    w.run()
    (sealed,) = w.events
    assert sealed == StepSealed(0, 0, 3.0, w.clipped[0] and sum(sum(norms) for norms in w.clipped[0].values()), 1.0, 64)
    assert w.coordinator.membership.version == 1
    assert w.coordinator.membership.missing() == []
    assert not any(isinstance(envelope.message, Examine | Supply | SendState) for envelope in w.sent)
    assert recipients(w.sent, Seal) == ["w0", "w1", "w2", "w3", "referee"]


def test_versions_and_digests_go_up_step_by_step(world):
    w = world().step().step().step()
    assert [event.step for event in w.of(StepSealed)] == [0, 1, 2]
    assert [event.learning_rate for event in w.of(StepSealed)] == [1.0, 0.5, 0.25]
    begins = {
        envelope.message.version: envelope.message.digests for envelope in w.sent if isinstance(envelope.message, BeginStep)
    }
    assert len(set(begins[2])) == 5
    assert not set(begins[2]) & set(begins[1])


ACCEPTED = [  # headers about a10, in order --> who is told at the end
    (["w1"], []),
    (["w2"], []),
    (["w1", "w1"], []),
    (["w1", "w2"], ["w2", "w3"]),
    (["w2", "w1"], ["w2", "w3"]),
]


@pytest.mark.parametrize(("order", "hear"), ACCEPTED)
def test_a_claim_is_accepted_when_both_holders_agree(world, order, hear):
    w = world().begin()
    w.post("w0", "a00")
    *early, last = [w.post(worker, "a10") for worker in order]
    assert not any(early)
    assert [envelope.recipient for envelope in last] == hear
    assert all(envelope.message == Accepted(w.key("a10"), w.truth(w.key("a10"))) for envelope in last)
    assert w.events == []


def test_the_initiator_s_word_is_enough(world):
    w = world().begin()
    assert recipients(w.post("w0", "a00"), Accepted) == ["w1", "w2"]


def test_a_claim_waits_until_its_inputs_are_accepted(world):
    """Who has computed the input itself may be faster than the board."""
    w = world().begin()
    assert w.post("w1", "a10") + w.post("w2", "a10") == []
    assert w.post("w2", "a20") + w.post("w3", "a20") == []
    sent = w.post("w0", "a00")
    assert [(envelope.recipient, envelope.message.key) for envelope in sent] == [
        *[(worker, w.key("a00")) for worker in ("w1", "w2")],
        *[(worker, w.key("a10")) for worker in ("w2", "w3")],
        *[(worker, w.key("a20")) for worker in ("w3", "w0")],
    ]


def test_agreed_gradients_give_one_update_scaled_by_agreed_norms(world):
    w = world().begin()
    w.lie("w2", "G2", norms=(0.0, 0.0)).lie("w3", "G3", output=b"x", norms=(1e9, 1e9))
    w.run()
    norms = {i: (float(i), 1.0) for i in range(5)}
    assert w.clipped == [norms]
    total = sum(sum(each) for each in norms.values())
    orders = [(envelope.recipient, envelope.message) for envelope in w.sent if isinstance(envelope.message, Update)]
    assert orders == [(worker, Update(0, 0, 1.0 / (1.0 + total), 1.0)) for worker in ("w0", "w1", "w2", "w3")]


def test_without_a_defence_the_primary_s_word_is_enough_and_nobody_is_examined(world):
    w = world(shadowed=False).lie("w2", "U2", output=b"").step()
    assert [type(event) for event in w.events] == [StepSealed]
    assert not any(isinstance(envelope.message, Examine | Accepted) for envelope in w.sent)


def test_states_for_a_checkpoint_come_from_holders(world):
    w = world().step()
    sent = {(envelope.recipient, envelope.message) for envelope in w.coordinator.collect("archive")}
    sealed = w.coordinator.membership.digests
    orders = {(holder, SendState(i, 1, "archive", None, sealed[i])) for i in range(5) for holder in w.route.holders(i)}
    assert sent == orders


# -- the order of arrival ------------------------------------------------------------------------------------------------

LIES = [
    [],
    [("w1", "a1", {"output": b"x"})],
    [("w2", "g1", {"output": b"x"})],
    [("w2", "a20", {"inputs": (b"x",)}), ("w2", "G2", {"norms": (0.0, 0.0)})],
    [("w1", "g10", {"output": b"x"}), ("w3", "U2", {"output": b"x"})],  # two liars that are not neighbours
]


def outcome(w):
    return w.sealed, {str(key): w.accepted[key] for key in w.accepted}, w.clipped


@pytest.mark.parametrize("lies", LIES, ids=["nobody lies", "primary", "shadow", "parent and norms", "two liars"])
@settings(deadline=None, max_examples=30)
@given(random=st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(world, lies, random):
    plain, shuffled = world().step(), world()
    for worker, text, change in lies:
        shuffled.lie(worker, text, **change)
    shuffled.step(pick=random.choice)
    assert outcome(shuffled) == outcome(plain)
    assert {worker for ruling in shuffled.of(Ruling) for worker in ruling.culprits} == {worker for worker, _, _ in lies}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_one_liar_may_say_anything_at_any_time(world, data):
    """w2 tells the coordinator whatever it likes, in between; the sealed digests are the honest ones."""
    w, clean = world(size=6), world(size=6).step()
    texts = st.builds("{}{}{}".format, st.sampled_from("agGU"), st.integers(0, 5), st.sampled_from(["", "0", "1"]))
    junk = st.one_of(
        st.builds(lambda text, output: ("header", text, {"output": output}), texts, st.sampled_from([b"", b"x", b"y"])),
        st.builds(lambda text, norms: ("header", text, {"norms": norms}), texts, st.sampled_from([(), (float("nan"), 1.0)])),
        st.builds(lambda text, inputs: ("header", text, {"inputs": inputs}), texts, st.sampled_from([(), (b"x",)])),
        st.builds(lambda text, who: ("complaint", text, who), texts, st.sampled_from(["w1", "w3", "nobody"])),
        st.builds(lambda text: ("finding", text, b"x"), texts),
        st.builds(lambda text: ("loss", text, 1e9), texts),
    )
    w.begin()
    for where in data.draw(st.lists(st.tuples(st.integers(0, 12), junk), max_size=12)):
        pause, (kind, text, what) = where
        for _ in range(pause):
            w.deliver()
        if w.coordinator.idle():
            break
        if kind == "header":
            w.post("w2", text, **what)
        elif kind == "complaint":
            w.say("w2", Complaint(w.key(text), what, b"x"))
        elif kind == "finding":
            w.say("w2", Finding(w.key(text), what))
        else:
            w.say("w2", Loss(0, 0, 0, what))
    w.run()
    assert w.sealed == clean.sealed
    assert {worker for ruling in w.of(Ruling) for worker in ruling.culprits} <= {"w2"}


# -- what is not heard ---------------------------------------------------------------------------------------------------

FENCED = {
    "no seat of that stage": ("w3", "a10", {}),
    "a stranger": ("nobody", "a10", {}),
    "another's name": ("w2", "a10", {"worker": "w1"}),
    "another run": ("w1", "a10", {"run": "other"}),
    "another version": ("w1", "a10", {"version": 1}),
    "micro-batch beyond the last": ("w1", "a12", {}),
    "an older step": ("w1", "a10", {"key": ClaimKey(-1, 0, Direction.FORWARD, 1, 0)}),
    "another attempt": ("w1", "a10", {"key": ClaimKey(0, 1, Direction.FORWARD, 1, 0)}),
    "a stage beyond the last": ("w1", "a10", {"key": ClaimKey(0, 0, Direction.FORWARD, 5, 0)}),
    "a stage before the first": ("w1", "a10", {"key": ClaimKey(0, 0, Direction.FORWARD, -1, 0)}),
    "a micro-batch before the first": ("w1", "a10", {"key": ClaimKey(0, 0, Direction.FORWARD, 1, -2)}),
}


@pytest.mark.parametrize("name", FENCED)
def test_headers_that_are_not_heard(world, name):
    worker, text, change = FENCED[name]
    w = world().begin()
    w.post("w0", "a00")
    assert w.post(worker, text, **change) == []
    if name in ("no seat of that stage", "a stranger", "another's name", "another run", "another version"):
        assert w.post("w2", "a10") == []  # the primary has not spoken yet
        assert recipients(w.post("w1", "a10"), Accepted) == ["w2", "w3"]
    assert w.events == []


def test_there_are_as_many_micro_batches_as_there_are(world):
    w = world().begin()
    assert w.post("w0", "a01") != []
    assert w.post("w0", "a02") == []


@pytest.mark.parametrize("role", [Role.PRIMARY, Role.SHADOW])
def test_the_route_says_who_is_primary_and_not_the_header(world, role):
    w = world().begin()
    w.post("w0", "a00")
    w.post("w2", "a10", role=role)
    assert recipients(w.post("w1", "a10", role=role), Accepted) == ["w2", "w3"]


def test_only_the_referee_finds_and_only_the_last_stage_tells_the_loss(world):
    w = world().begin()
    w.post("w0", "a00")
    w.post("w1", "a10", output=b"x")
    assert w.say("w1", Finding(w.key("a10"), b"x")) == []
    w.say("w1", Loss(0, 0, 0, 1e9))
    w.say("w0", Loss(0, 1, 0, 1e9))
    w.say("w0", Loss(0, 0, 1, 2.0))
    w.run()
    assert w.of(StepSealed)[0].loss == 2.0
    assert w.of(Ruling)[0].culprits == ("w1",)


def test_between_steps_nothing_is_heard(world):
    w = world()
    for message in (replace(w.honest("w1", w.key("a10", step=0))), Finding(w.key("a10", step=0), b""), Loss(0, 0, 0, 1.0)):
        assert w.say("w1", message) == []
    assert w.say("w1", StateAdopted(1, 0, Role.PRIMARY, b"v0")) == []
    assert w.coordinator.idle()


# -- the step again ------------------------------------------------------------------------------------------------------


class Again(Remedy):
    """Begins the step again, whatever happens."""

    name = "again"

    def __init__(self, investigate=False):
        self.investigate = investigate

    def answer(self, dispute):
        return Redo(dispute.route, self.investigate)


def test_a_redo_bumps_the_attempt_and_old_claims_are_ignored(world):
    w = world(remedy=Again()).begin()
    w.post("w0", "a00")
    old = w.honest("w1", w.key("a10"))
    w.post("w1", "a10", output=b"x")
    sent = w.post("w2", "a10")
    assert recipients(sent, BeginStep) == ["w0", "w1", "w2", "w3", "referee"]
    assert (w.began.step, w.began.attempt, w.began.version) == (0, 1, 0)
    assert w.say("w1", old) == []
    w.post("w0", "a00")
    w.post("w2", "a10")
    assert w.say("w1", old) == []
    assert recipients(w.post("w1", "a10"), Accepted) == ["w2", "w3"]
    w.run()
    assert w.sealed == world().step().sealed
    assert [event.attempt for event in w.of(StepSealed)] == [1]


@pytest.mark.parametrize("investigate", [False, True])
def test_a_step_that_is_never_sealed_ends_the_run(world, investigate):
    w = world(remedy=Again(investigate)).lie("w1", "a1", attempts=99, output=b"x").begin()
    with pytest.raises(FaultWindowExceeded, match=r"step 0 was begun 33 times and never sealed .*use --on-alert replace"):
        w.run(limit=10_000)
    assert w.began.attempt == 32
