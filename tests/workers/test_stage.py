"""One seat: what it waits for, what it computes, whom it tells. K = 4: w0 holds stages 0 and 3, w1 and w2 what is between."""

from dataclasses import replace

import pytest
import torch

from holdfast.claim import Claim, Header, Role
from holdfast.digest import same_bytes, tensor_digest
from holdfast.inbox import Inbox
from holdfast.message import Loss, TiedGradient, TiedWeight, Update
from holdfast.recover.skip import bypass
from holdfast.route import without
from holdfast.stage import Stage


def take(toy, worker, index, role=Role.PRIMARY, route=None, **terms):
    """A seat at the start of step 0, and the inbox of its worker."""
    given = toy.terms(**terms)
    stage = Stage(worker, toy.execution(index), role, given, toy.tokens if worker == "w0" else None)
    stage.load(toy.state(index))
    inbox = Inbox(toy.BOUNDARY, checked=given.checked)
    inbox.begin(0, 0)
    stage.begin(0, 0, route or toy.ROUTE)
    return stage, inbox


def give(inbox, honest, *texts):
    for text in texts:
        claim = honest.claim(text, "somebody")
        inbox.rule(claim.header.key, claim.header.output)
        inbox.deliver("somebody", claim)


def work(stage, inbox):
    """Everything that can be done now, in the order in which it is wanted: the messages, and the actions' names."""
    sent, done = [], []
    while (found := stage.next_action(inbox)) is not None:
        done.append(str(found[1]))
        sent += stage.perform(found[1], inbox)
    return sent, " ".join(done)


def claims(sent):
    return [(envelope.recipient, envelope.message) for envelope in sent if isinstance(envelope.message, Claim)]


def headers(sent):
    assert all(envelope.recipient == "coordinator" for envelope in sent if isinstance(envelope.message, Header))
    return [envelope.message for envelope in sent if isinstance(envelope.message, Header)]


# -- forward and backward ------------------------------------------------------------------------------------------------


def test_a_primary_posts_its_header_and_sends_the_tensor_to_every_holder_of_the_next_stage(toy, honest):
    stage, inbox = take(toy, "w1", 1)
    give(inbox, honest, "a00")
    sent, done = work(stage, inbox)
    assert done == "F0"
    (header,) = headers(sent)
    key, output = honest.key("a10"), honest.digest("a10")
    epoch = toy.ROUTE.epoch
    assert header == Header("run", key, 0, epoch, "w1", Role.PRIMARY, (honest.digest("a00"),), output)
    assert [(worker, claim.header) for worker, claim in claims(sent)] == [("w2", header), ("w0", header)]
    assert all(same_bytes(claim.tensor, honest.tensors[key]) and claim.origin is None for _, claim in claims(sent))


def test_a_shadow_computes_the_same_and_tells_the_board_only(toy, honest):
    stage, inbox = take(toy, "w2", 1, Role.SHADOW)
    give(inbox, honest, "a00")
    (envelope,) = work(stage, inbox)[0]
    assert envelope.recipient == "coordinator"
    assert (envelope.message.role, envelope.message.worker) == (Role.SHADOW, "w2")
    assert envelope.message.output == honest.digest("a10")


@pytest.mark.parametrize("settled", ["", "rule", "deliver"])
def test_nothing_is_computed_from_an_unaccepted_tensor(toy, honest, settled):
    stage, inbox = take(toy, "w1", 1)
    if settled == "rule":
        inbox.rule(honest.key("a00"), honest.digest("a00"))
    if settled == "deliver":
        inbox.deliver("w0", honest.claim("a00", "w0"))
    assert stage.next_action(inbox) is None


def test_a_backward_claim_names_both_its_inputs_and_goes_to_the_stage_before(toy, honest):
    stage, inbox = take(toy, "w2", 2)
    give(inbox, honest, "a10", "g30")
    sent, done = work(stage, inbox)
    assert done == "F0 B0"
    header = headers(sent)[-1]
    assert header.inputs == (honest.digest("a10"), honest.digest("g30"))
    assert (header.key, header.output) == (honest.key("g20"), honest.digest("g20"))
    assert [worker for worker, claim in claims(sent) if claim.header == header] == ["w1", "w2"]


def test_the_first_stage_reads_tokens_and_sends_them_to_nobody(toy, honest):
    stage, inbox = take(toy, "w0", 0)
    sent, done = work(stage, inbox)
    assert done == "F0 F1"
    assert [header.inputs for header in headers(sent)] == [(), ()]
    assert [worker for worker, _ in claims(sent)] == ["w1", "w2"] * 2
    assert all(claim.tensor.is_floating_point() and claim.origin is None for _, claim in claims(sent))


def test_the_last_stage_tells_the_loss_and_starts_the_way_back(toy, honest):
    stage, inbox = take(toy, "w0", 3)
    give(inbox, honest, "a20", "a21")
    assert stage.next_action(inbox) is None  # the tied head is not known yet
    stage.take_tied(TiedWeight(0, toy.state(0).weights["w0"]))
    sent, done = work(stage, inbox)
    assert done == "F0 B0 F1 B1"
    losses = [envelope.message for envelope in sent if isinstance(envelope.message, Loss)]
    assert losses == [Loss(0, 0, m, honest.losses[m]) for m in range(2)]
    assert [header.output for header in headers(sent)] == [honest.digest("g30"), honest.digest("g31")]
    assert [header.inputs for header in headers(sent)] == [(honest.digest("a20"),), (honest.digest("a21"),)]
    tied = [
        (envelope.recipient, envelope.message.micro_batch) for envelope in sent if isinstance(envelope.message, TiedGradient)
    ]
    assert tied == [("w0", 0), ("w0", 1)]


def test_the_first_stage_waits_for_the_head_s_gradient(toy, honest):
    stage, inbox = take(toy, "w0", 0)
    work(stage, inbox)
    give(inbox, honest, "g10")
    stage.take_tied(TiedGradient(0, 1, 0, torch.zeros(toy.V, toy.D)))  # of another attempt
    assert stage.next_action(inbox) is None
    stage.take_tied(TiedGradient(0, 0, 0, torch.zeros(toy.V, toy.D)))
    sent, done = work(stage, inbox)
    assert (sent, done) == ([], "B0")


def test_a_tied_weight_of_an_older_version_is_not_enough(toy, honest):
    stage, inbox = take(toy, "w0", 3)
    give(inbox, honest, "a20")
    stage.take_tied(TiedWeight(0, toy.state(0).weights["w0"]))
    stage.seal(1)
    stage.begin(1, 0, toy.ROUTE)
    later = replace(honest.claim("a20", "w2").header.key, step=1)
    inbox.begin(1, 0)
    inbox.rule(later, honest.digest("a20"))
    inbox.deliver("w2", replace(honest.claim("a20", "w2"), header=replace(honest.claim("a20", "w2").header, key=later)))
    stage.take_tied(TiedWeight(0, toy.state(0).weights["w0"]))  # which was late
    assert stage.next_action(inbox) is None
    stage.take_tied(TiedWeight(1, toy.state(0).weights["w0"]))
    assert stage.next_action(inbox) is not None


SCHEDULED = [  # schedule, limit, what arrives in turn --> what is done after each arrival
    ("1f1b", 2, [("a10", "F0"), ("a11", "F1"), ("g31", "B1"), ("g30", "B0")]),
    ("1f1b", 2, [("a11", "F1"), ("a10", "F0"), ("g30", "B0"), ("g31", "B1")]),
    ("1f1b", 1, [("a10", "F0"), ("a11", ""), ("g30", "B0 F1"), ("g31", "B1")]),
    ("gpipe", 2, [("a10", "F0"), ("g30", "B0"), ("a11", "F1"), ("g31", "B1")]),
]


@pytest.mark.parametrize(("schedule", "limit", "arrivals"), SCHEDULED)
def test_the_first_action_in_order_whose_inputs_are_there(toy, honest, schedule, limit, arrivals):
    stage, inbox = take(toy, "w2", 2, schedule=schedule, limit=limit)
    for text, expected in arrivals:
        give(inbox, honest, text)
        assert work(stage, inbox)[1] == expected


def test_in_gpipe_the_last_stage_waits_for_all_forward_passes(toy, honest):
    stage, inbox = take(toy, "w0", 3, schedule="gpipe")
    stage.take_tied(TiedWeight(0, toy.state(0).weights["w0"]))
    give(inbox, honest, "a20")
    assert work(stage, inbox)[1] == "F0"
    give(inbox, honest, "a21")
    assert work(stage, inbox)[1] == "F1 B0 B1"


# -- the whole step ------------------------------------------------------------------------------------------------------


def whole(toy, honest, role=Role.PRIMARY):
    stage, inbox = take(toy, "w1" if role is Role.PRIMARY else "w2", 1, role)
    give(inbox, honest, "a00", "a01", "g20", "g21")
    assert not stage.wants_gradient()
    work(stage, inbox)
    return stage, inbox


@pytest.mark.parametrize("role", Role)
def test_gradient_then_update_then_seal(toy, role):
    honest = toy.Honest()
    stage, _ = whole(toy, honest, role)
    assert stage.wants_gradient()
    assert not stage.wants_update()
    (gradient,) = headers(stage.claim_gradient())
    theirs = honest.executions[1].gradient()
    assert (gradient.key, gradient.inputs, gradient.output) == (honest.key("G1"), (), theirs.digest)
    assert gradient.norms == theirs.norms
    assert not stage.wants_gradient()
    for order in (Update(0, 1, 0.5, 0.1), Update(1, 0, 0.5, 0.1)):
        stage.order_update(order)
        assert not stage.wants_update()
    stage.order_update(Update(0, 0, 0.5, 0.1))
    (update,) = headers(stage.claim_update())
    assert not stage.wants_update()
    assert (update.key, update.version, update.inputs) == (honest.key("U1"), 0, (gradient.output,))
    assert update.output == honest.update(1)
    assert stage.version == 0
    assert stage.seal(0) == stage.seal(2) == []
    assert stage.version == 0
    stage.seal(1)
    assert stage.version == 1
    assert stage.state().updates == 1


@pytest.mark.parametrize(("index", "texts"), [(0, ("g10", "g11")), (3, ("a20", "a21"))])
def test_nobody_hashes_the_gradient_and_the_state_of_the_initiator_s_own_stage(toy, honest, monkeypatch, index, texts):
    """They are compared with nothing; for a checkpoint they are hashed where they come together."""
    stage, inbox = take(toy, "w0", index)
    for m in range(toy.M if index == 0 else 0):
        stage.take_tied(TiedGradient(0, 0, m, honest.tied[m]))
    stage.take_tied(TiedWeight(0, toy.state(0).weights["w0"]))
    give(inbox, honest, *texts)
    work(stage, inbox)
    for name in ("holdfast.stage.state_digest", "holdfast.execution.tensors_digest"):
        monkeypatch.setattr(name, None)
    (gradient,) = headers(stage.claim_gradient())
    assert (gradient.inputs, gradient.output, gradient.norms) == ((), b"", honest.executions[index].norms())
    stage.order_update(Update(0, 0, 0.5, 0.1))
    (update,) = headers(stage.claim_update())
    assert (update.key, update.inputs, update.output) == (honest.key(f"U{index}"), (), b"")


def test_a_middle_stage_that_the_initiator_has_taken_over_is_hashed(toy, honest):
    """A worker that joins may relieve it of that stage, and must know which state is the right one."""
    heir = replace(toy.ROUTE, primaries=("w0", "w1", "w0", "w0"), shadows=(None, None, None, None))
    stage, inbox = take(toy, "w0", 2, route=heir)
    give(inbox, honest, "a10", "a11", "g30", "g31")
    work(stage, inbox)
    assert headers(stage.claim_gradient())[0].output == honest.executions[2].gradient().digest
    stage.order_update(Update(0, 0, 0.5, 0.1))
    assert headers(stage.claim_update())[0].output == honest.update(2)


def test_the_first_stage_shares_each_sealed_embedding_with_the_head(toy):
    stage, _ = take(toy, "w0", 0)
    (envelope,) = stage.seal(1)
    assert (envelope.sender, envelope.recipient, envelope.message.version) == ("w0", "w0", 1)
    assert same_bytes(envelope.message.tensor, toy.state(0).weights["w0"])


def test_another_attempt_starts_from_nothing(toy, honest):
    stage, inbox = whole(toy, honest)
    stage.begin(0, 1, toy.ROUTE)
    inbox.begin(0, 1)
    assert stage.moment == (0, 1)
    assert not stage.wants_gradient()
    assert stage.supply(honest.key("a10"), ["w3"]) == []
    again = toy.Honest(attempt=1)
    give(inbox, again, "a00", "a01", "g20", "g21")
    work(stage, inbox)
    assert headers(stage.claim_gradient())[0].output == again.executions[1].gradient().digest


def test_a_frozen_stage_carries_through_and_learns_nothing(toy, honest):
    route = replace(toy.ROUTE, frozen=(1,))
    stage, inbox = take(toy, "w1", 1, route=route)
    give(inbox, honest, "a00", "a01", "g20", "g21")
    sent, done = work(stage, inbox)
    assert done.split() == ["F0", "F1", "B0", "B1"]
    assert len(headers(sent)) == 4
    assert not stage.wants_gradient()
    stage.order_update(Update(0, 0, 1.0, 0.1))
    assert not stage.wants_update()
    stage.seal(1)
    assert (stage.version, stage.state().updates) == (1, 0)


@pytest.mark.parametrize("how", ["bypassed", "inactive"])
def test_a_seat_may_sit_out_a_step(toy, honest, how):
    stage, inbox = take(toy, "w1", 1)
    route = bypass(toy.ROUTE, {"w1"}) if how == "bypassed" else toy.ROUTE
    stage.begin(0, 0, route, active=how == "bypassed")
    give(inbox, honest, "a00")
    assert stage.next_action(inbox) is None
    assert not stage.wants_gradient()


def test_around_a_bypass_the_inputs_come_from_farther_away(toy, honest):
    stage, inbox = take(toy, "w0", 3, route=bypass(toy.ROUTE, {"w2"}))
    stage.take_tied(TiedWeight(0, toy.state(0).weights["w0"]))
    give(inbox, honest, "a20")
    assert stage.next_action(inbox) is None
    give(inbox, honest, "a10")
    sent, _ = work(stage, inbox)
    assert headers(sent)[0].inputs == (honest.digest("a10"),)
    assert [worker for worker, _ in claims(sent)] == ["w1"]


# -- other routes --------------------------------------------------------------------------------------------------------


def test_through_a_relay_tensors_go_to_the_coordinator(toy, honest):
    stage, inbox = take(toy, "w1", 1, route=replace(toy.ROUTE, relay=True))
    give(inbox, honest, "a00")
    assert [worker for worker, _ in claims(work(stage, inbox)[0])] == ["coordinator"]


def test_without_a_defence_only_tensors_travel_and_nothing_is_hashed(toy, honest):
    stage, inbox = take(toy, "w1", 1, checked=False, route=replace(toy.ROUTE, shadows=(None,) * 4))
    for text in ("a00", "a01", "g20", "g21"):
        inbox.deliver("somebody", honest.claim(text, "somebody"))
    sent, _ = work(stage, inbox)
    assert headers(sent) == []
    assert [worker for worker, _ in claims(sent)] == ["w2", "w2", "w0", "w0"]
    assert {(claim.header.output, claim.header.inputs) for _, claim in claims(sent)} == {(b"", ())}
    (gradient,) = headers(stage.claim_gradient())
    assert (gradient.output, gradient.norms) == (b"", honest.executions[1].norms())
    stage.order_update(Update(0, 0, 1.0, 0.1))
    assert headers(stage.claim_update())[0].output == b""


def test_who_takes_over_sends_what_the_lost_primary_may_have_left_unsent(toy, honest):
    stage, inbox = take(toy, "w2", 1, Role.SHADOW)
    give(inbox, honest, "a00")
    work(stage, inbox)
    sent = stage.reroute(without(toy.ROUTE, {"w1"}))
    assert stage.role is Role.PRIMARY
    assert [(worker, claim.header.key) for worker, claim in claims(sent)] == [(w, honest.key("a10")) for w in ("w2", "w0")]
    assert stage.reroute(without(toy.ROUTE, {"w1"})) == []
    give(inbox, honest, "a01")
    assert headers(work(stage, inbox)[0])[0].role is Role.PRIMARY


def test_a_seat_supplies_what_it_has_computed_and_nothing_else(toy, honest):
    stage, inbox = take(toy, "w1", 1)
    assert stage.supply(honest.key("a10"), ["w9"]) == []
    give(inbox, honest, "a00")
    work(stage, inbox)
    ((worker, claim),) = claims(stage.supply(honest.key("a10"), ["w9"]))
    assert (worker, tensor_digest(claim.tensor)) == ("w9", honest.digest("a10"))
    assert [worker for worker, _ in claims(stage.supply(honest.key("a10")))] == ["w2", "w0"]
    assert stage.supply(honest.key("a11"), ["w9"]) == []


# -- without the jumping connection --------------------------------------------------------------------------------------


def test_without_the_jump_a_claim_shows_what_it_was_made_from(toy, honest):
    route = replace(toy.ROUTE, jump=False)
    stage, inbox = take(toy, "w1", 1, route=route)
    give(inbox, honest, "a00")
    ((worker, claim),) = claims(work(stage, inbox)[0])
    assert worker == "w2"
    assert same_bytes(claim.origin, honest.tensors[honest.key("a00")])


def test_without_the_jump_tokens_stay_with_the_initiator(toy):
    stage, inbox = take(toy, "w0", 0, route=replace(toy.ROUTE, jump=False))
    assert all(claim.origin is None for _, claim in claims(work(stage, inbox)[0]))


def test_without_the_jump_a_shadow_believes_the_origin_and_says_which_it_was(toy, honest):
    stage, inbox = take(toy, "w2", 1, Role.SHADOW, route=replace(toy.ROUTE, jump=False))
    give(inbox, honest, "a00")
    assert stage.next_action(inbox) is None
    shown = honest.tensors[honest.key("a00")]
    inbox.deliver("w1", honest.claim("a10", "w1", origin=shown))
    (header,) = headers(work(stage, inbox)[0])
    assert header.inputs == (tensor_digest(shown),)
    assert header.output == honest.digest("a10")
