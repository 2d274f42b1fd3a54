"""Who is blamed for what, and whose value goes on: lies of every kind about every kind of claim, and the answers to them."""

import pytest
import torch

from holdfast.claim import Claim, Direction
from holdfast.digest import tensor_digest
from holdfast.event import Alert, Banned, ClaimReplaced, Joined, Ruling, StagesSkipped, StepRestarted, StepSealed
from holdfast.message import Accepted, Complaint, Examine, SendState, Supply
from holdfast.recover.relay import Relay
from holdfast.recover.restart import Restart
from holdfast.recover.skip import Skip


def messages(envelopes, kind):
    return [(envelope.recipient, envelope.message) for envelope in envelopes if isinstance(envelope.message, kind)]


def record(w):
    """The story of a step: alerts, rulings, replacements, each in a line."""
    lines = []
    for event in w.of(Alert, Ruling, ClaimReplaced):
        who = {Alert: "suspects", Ruling: "culprits", ClaimReplaced: "source"}[type(event)]
        names = getattr(event, who)
        reason = f" {event.reason}" if hasattr(event, "reason") else ""
        lines.append(f"{type(event).__name__}{reason}: {names if isinstance(names, str) else ' '.join(names)}")
    return lines


def stage(text):
    return int(text[1])


OUTPUT, PARENT, NORMS = {"output": b"x"}, {"inputs": (b"x",)}, {"norms": (0.0, 0.0)}
TABLE = [  # who says what about which claim --> the story
    ("w2", "a20", OUTPUT, ["Alert output: w2 w3", "Ruling output: w2", "ClaimReplaced: w3"]),
    ("w3", "a20", OUTPUT, ["Alert output: w2 w3", "Ruling output: w3"]),  # framing
    ("w2", "a20", PARENT, ["Alert parent: w2", "Ruling parent: w2", "ClaimReplaced: w3"]),
    ("w3", "a20", PARENT, ["Alert parent: w3", "Ruling parent: w3"]),
    ("w2", "g20", OUTPUT, ["Alert output: w2 w3", "Ruling output: w2", "ClaimReplaced: w3"]),
    ("w3", "g20", OUTPUT, ["Alert output: w2 w3", "Ruling output: w3"]),
    ("w2", "g21", PARENT, ["Alert parent: w2", "Ruling parent: w2", "ClaimReplaced: w3"]),
    ("w2", "G2", OUTPUT, ["Alert output: w2 w3", "Ruling output: w2"]),
    ("w3", "G2", OUTPUT, ["Alert output: w2 w3", "Ruling output: w3"]),
    ("w2", "G2", NORMS, ["Alert norms: w2 w3", "Ruling norms: w2"]),
    ("w3", "G2", NORMS, ["Alert norms: w2 w3", "Ruling norms: w3"]),
    ("w2", "G2", PARENT, ["Alert parent: w2", "Ruling parent: w2"]),
    ("w2", "U2", OUTPUT, ["Alert output: w2 w3", "Ruling output: w2"]),
    ("w3", "U2", OUTPUT, ["Alert output: w2 w3", "Ruling output: w3"]),
    ("w3", "U2", PARENT, ["Alert parent: w3", "Ruling parent: w3"]),
    ("w1", "a11", OUTPUT, ["Alert output: w1 w2", "Ruling output: w1", "ClaimReplaced: w2"]),
    ("w3", "a30", OUTPUT, ["Alert output: w3", "Ruling output: w3", "ClaimReplaced: w0"]),  # its verifier is trusted
]


@pytest.mark.parametrize(("liar", "text", "change", "story"), TABLE)
def test_a_lie_its_alert_its_culprit_and_the_same_digests(world, liar, text, change, story):
    w = world().lie(liar, text, **change).step()
    assert record(w) == story
    assert {event.key.stage for event in w.of(Alert, Ruling)} == {stage(text)}
    assert w.sealed == world().step().sealed
    assert w.coordinator.membership.lies == {liar: 1}
    assert [event.attempt for event in w.of(StepSealed)] == [0]


@pytest.mark.parametrize(("liar", "suppliers"), [("w2", ["w3"]), ("w3", [])])
def test_the_innocent_holder_supplies_its_own_value(world, liar, suppliers):
    w = world().lie(liar, "a20", output=b"x").step()
    key = w.key("a20")
    consumers = ("w3", "w0")
    assert messages(w.sent, Supply) == [(worker, Supply(key, consumers)) for worker in suppliers]
    assert [who for who, ruling in messages(w.sent, Accepted) if ruling == Accepted(key, w.accepted[key])] == list(consumers)


def test_the_referee_is_told_all_that_it_needs(world):
    w = world().lie("w2", "g20", output=b"x").lie("w1", "U1", output=b"x").step()
    (_, of_claim), (_, of_update) = messages(w.sent, Examine)
    assert {who for who, _ in messages(w.sent, Examine)} == {"referee"}
    assert (of_claim.key, of_claim.version, of_claim.state_digest) == (w.key("g20"), 0, b"v0")
    assert of_claim.inputs == tuple((w.key(text), w.accepted[w.key(text)]) for text in ("a10", "g30"))
    assert of_claim.holders == ("w2", "w3", "w1", "w0")
    whole = ("a00", "g20", "a01", "g21")
    assert of_update.inputs == tuple((w.key(text), w.accepted[w.key(text)]) for text in whole)
    assert (of_update.clip_scale, of_update.learning_rate) == (w.update.clip_scale, 1.0)


def test_two_that_lie_apart_are_both_named_and_the_referee_supplies(world):
    w = world().lie("w2", "a20", output=b"x").lie("w3", "a20", output=b"y").step()
    assert record(w) == ["Alert output: w2 w3", "Ruling output: w2 w3", "ClaimReplaced: referee"]
    assert messages(w.sent, Supply) == [("referee", Supply(w.key("a20"), ("w3", "w0")))]
    assert w.sealed == world().step().sealed


def test_where_nobody_has_the_right_state_the_referee_s_own_is_sent(world):
    w = world().lie("w2", "U2", output=b"x").lie("w3", "U2", output=b"y").step()
    assert w.sealed == world().step().sealed
    w.begin()
    sealed = w.coordinator.membership.digests[2]
    assert messages(w.sent, SendState) == [
        ("referee", SendState(2, 1, "w2", "primary", sealed)),
        ("referee", SendState(2, 1, "w3", "shadow", sealed)),
    ]
    assert w.run().sealed == world().step().step().sealed


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("change", [OUTPUT, PARENT])
def test_equivocation_is_proven_at_once_and_the_first_word_stands(world, change, again):
    w = world().begin()
    w.post("w0", "a00")
    w.post("w1", "a10")
    if again:
        w.post("w1", "a10")
    assert w.events == []
    assert w.post("w1", "a10", **change) == []
    assert record(w) == ["Alert equivocation: w1", "Ruling equivocation: w1"]
    w.run()
    assert w.sealed == world().step().sealed
    assert len(w.events) == 3


def test_equivocation_after_the_ruling_is_on_record_and_changes_nothing(world):
    w = world().begin()
    for worker, text in (("w0", "a00"), ("w1", "a10"), ("w2", "a10")):
        w.post(worker, text)
    assert w.post("w2", "a10", output=b"x") == []
    assert record(w) == ["Alert equivocation: w2", "Ruling equivocation: w2"]
    assert w.run().sealed == world().step().sealed


def test_who_was_rejected_at_the_seal_is_given_the_state_before_the_next_step(world):
    w = world().lie("w2", "U2", output=b"x").lie("w2", "U1", output=b"x").step()
    assert w.coordinator.membership.missing() == [(1, "w2"), (2, "w2")]
    w.begin()
    assert w.asked == [("w1", 1, "w2"), ("w3", 2, "w2")]
    assert w.began.step == 0  # nobody begins before the seats are filled
    assert w.run().sealed == world().step().step().sealed


# -- nobody else has an account ------------------------------------------------------------------------------------------


def test_a_stage_without_a_shadow_goes_to_the_referee_without_an_alarm(world):
    w = world().begin()
    w.lose("w3")  # w0 takes stage 3 over; nobody shadows stage 2
    w.run()
    examined = {message.key for _, message in messages(w.sent, Examine)}
    assert {(key.direction, key.micro_batch) for key in examined} == {
        *((direction, m) for direction in (Direction.FORWARD, Direction.BACKWARD) for m in (0, 1)),
        *((direction, -1) for direction in (Direction.GRADIENT, Direction.UPDATE)),
    }
    assert {key.stage for key in examined} == {2}
    assert record(w) == []
    assert w.sealed == world().step().sealed


@pytest.mark.parametrize(("text", "change"), [("a20", OUTPUT), ("a20", PARENT), ("g20", OUTPUT), ("G2", NORMS), ("U2", OUTPUT)])
def test_and_finds_its_lies(world, text, change):
    w = world().lie("w2", text, **change).begin()
    w.lose("w3")
    w.run()
    assert [(event.reason, event.culprits) for event in w.of(Ruling)] == [("parent" if change is PARENT else "output", ("w2",))]
    assert len(w.of(Alert)) == 1
    assert w.sealed == world().step().sealed


def test_an_update_is_not_tried_before_it_was_ordered(world):
    """Its clip scale is not known yet."""
    w = world().begin()
    w.lose("w3")
    w.until_computed()
    w.post("w2", "U2")
    w.posted.discard(("w2", w.key("U2")))  # it will be claimed again in time
    assert not [message for _, message in messages(w.sent, Examine) if message.key.direction is Direction.UPDATE]
    assert w.run().sealed == world().step().sealed


# -- remedies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a20", "g20", "G2", "U2"])
def test_restart_names_the_liar_and_begins_again(world, text):
    w = world(remedy=Restart(2)).lie("w2", text, output=b"x").step()
    assert [(type(event), event.culprits) for event in w.of(Ruling)] == [(Ruling, ("w2",))]
    assert [(event.step, event.attempt) for event in w.of(StepRestarted)] == [(0, 1)]
    assert w.sealed == world().step().sealed


def test_restarts_end_in_a_replacement(world):
    w = world(remedy=Restart(2)).lie("w2", "a20", attempts=99, output=b"x").step()
    assert [event.attempt for event in w.of(StepRestarted)] == [1, 2]
    assert [event.source for event in w.of(ClaimReplaced)] == ["w3"]
    assert w.sealed == world().step().sealed


@pytest.mark.parametrize("text", ["a20", "g21", "G2", "U2"])
def test_skip_bypasses_both_suspects_for_one_step(world, text):
    w = world(size=6, remedy=Skip()).lie("w2", text, output=b"x").step()
    (event,) = w.of(StagesSkipped)
    assert (event.bypassed, event.frozen) == ((2, 3), (1, 2, 3))
    assert (w.began.attempt, w.route.active) == (1, (0, 1, 4, 5))
    assert [w.sealed[i] == b"v0" for i in range(6)] == [False, True, True, True, False, False]
    assert w.clipped[-1].keys() == {0, 4, 5}
    assert not w.of(Ruling)
    w.step()
    assert w.route.bypassed == ()
    assert w.route.shadows == (None, "w2", "w3", "w4", "w0", None)
    assert w.asked == []  # who sat out a step keeps its states


@pytest.mark.parametrize(("liar", "text"), [("w2", "G2"), ("w1", "G1")])
def test_a_stage_that_takes_no_update_has_no_share_of_the_norm(world, liar, text):
    w = world(size=6, remedy=Skip()).lie("w2", "a20", output=b"x").begin()
    while w.began.attempt == 0:
        w.deliver()
    w.until_computed().post(liar, text)
    w.run()
    assert w.clipped[-1].keys() == {0, 4, 5}


@pytest.mark.parametrize("text", ["G20", "U2", "a2", "g2", "a20", "g20"])
def test_a_bypassed_stage_has_nothing_to_say(world, text):
    """The referee cannot compute a gradient of one micro-batch, nor the forward pass of a whole step."""
    w = world(size=6, remedy=Skip()).lie("w2", "a20", output=b"x").begin()
    while w.began.attempt == 0:
        w.deliver()
    w.until_computed().post("w2", text)
    w.run()
    assert {case.key.stage for _, case in messages(w.sent, Examine)} == {1}


def test_relay_sends_every_tensor_through_here_and_checks_it(world):
    tensor = torch.ones(1, 2, 3)
    digest = tensor_digest(tensor)
    w = world(remedy=Relay(1)).lie("w2", "a20", output=b"x").begin()
    while w.began.attempt == 0:
        w.deliver()
    assert w.route.relay
    w.post("w0", "a00")
    header = w.honest("w1", w.key("a10"))
    true, false = Claim(header, tensor), Claim(header, -tensor)
    assert w.say("w2", true) == []  # not the primary
    for m, claim in enumerate((true, false)):
        w.post("w0", f"a0{m}")
        w.post("w1", f"a1{m}", output=digest)
        kept = Claim(w.honest("w1", w.key(f"a1{m}")), claim.tensor)
        assert w.say("w1", kept) == []  # not accepted yet
        sent = w.post("w2", f"a1{m}", output=digest)
        passed = [(worker, kept) for worker in ("w2", "w3")] if m == 0 else []
        assert messages(sent, Claim) == passed
        again = [] if m == 0 else [("w2", Supply(w.key("a11"), (worker,))) for worker in ("w2", "w3")]
        assert messages(sent, Supply) == again
    assert record(w)[-2:] == ["Alert delivery: w1", "Ruling delivery: w1"]


def test_a_false_tensor_that_passes_through_here_again_and_again_is_one_lie(world):
    """Each one was another alert, another conviction and three more lines of evidence."""
    tensor = torch.ones(1, 2, 3)
    digest = tensor_digest(tensor)
    w = world(remedy=Relay(1)).lie("w2", "a20", output=b"x").begin()
    while w.began.attempt == 0:
        w.deliver()
    w.post("w0", "a00")
    w.post("w1", "a10", output=digest)
    w.post("w2", "a10", output=digest)
    said = len(record(w))
    for number in range(50):
        w.say("w1", Claim(w.honest("w1", w.key("a10")), -tensor * number))
    assert record(w)[said:] == ["Alert delivery: w1", "Ruling delivery: w1"]
    assert w.say("w1", Claim(w.honest("w1", w.key("a10")), tensor)) == []  # the first one counts


# -- deliveries ----------------------------------------------------------------------------------------------------------


def test_a_complaint_leads_to_another_holder(world):
    w = world().begin()
    for worker, text in (("w0", "a00"), ("w1", "a10"), ("w2", "a10")):
        w.post(worker, text)
    key = w.key("a10")
    sent = w.say("w3", Complaint(key, "w1", b"x"))
    assert messages(sent, Accepted) == [("w3", Accepted(key, w.truth(key)))]
    assert messages(sent, Supply) == [("w2", Supply(key, ("w3",)))]
    assert record(w) == ["Alert delivery: w1 w3"]
    assert w.say("w3", Complaint(key, "w1", b"x")) == []  # once a key and receiver
    assert w.coordinator.membership.lies == {}  # between two workers it proves nothing
    assert messages(w.say("w2", Complaint(key, "w2", b"x")), Supply) == [("w1", Supply(key, ("w2",)))]


@pytest.mark.parametrize(("sender", "text"), [("w1", "a10"), ("w0", "a10"), ("nobody", "a10"), ("w2", "G1")])
def test_only_a_receiver_can_complain(world, sender, text):
    w = world().begin()
    for worker, posted in (("w0", "a00"), ("w1", "a10"), ("w2", "a10")):
        w.post(worker, posted)
    assert w.say(sender, Complaint(w.key(text), "w1", b"x")) == []
    assert w.events == []


@pytest.mark.parametrize("name", ["nobody", "", "\x1b[2J", "x" * 1_000_000])
def test_a_complaint_makes_nobody_a_suspect_who_is_no_member(world, name):
    """Whatever it named went into the alert, the evidence and the reader's terminal as a worker."""
    w = world().begin()
    w.say("w1", Complaint(w.key("a00"), name, b"x"))
    assert record(w) == ["Alert delivery: w1"]


def test_a_complaint_about_a_replaced_claim_raises_no_second_alarm(world):
    w = world().lie("w1", "a10", output=b"x").begin()
    while w.key("a10") not in w.accepted:
        w.deliver()
    w.say("w2", Complaint(w.key("a10"), "w1", b"x"))
    assert record(w) == ["Alert output: w1 w2", "Ruling output: w1", "ClaimReplaced: w2"]


def test_who_complained_before_the_ruling_is_served_after_it(world):
    w = world().begin()
    w.post("w0", "a00")
    w.post("w1", "a10")
    w.say("w3", Complaint(w.key("a10"), "w1", b""))
    sent = w.post("w2", "a10")
    assert messages(sent, Supply) == [("w2", Supply(w.key("a10"), ("w3",)))]


def test_several_who_complained_before_the_ruling_are_served_in_the_order_of_the_route(world):
    w = world(size=6, micro_batches=8).begin()
    for m in range(8):
        key = w.key(f"a2{m}")
        consumers = w.route.consumers(key.direction, key.stage)
        assert len(consumers) > 1
        w.post("w0", f"a0{m}")
        for text in ("a1", "a2"):
            for worker in w.route.holders(int(text[1]))[: 2 if text == "a1" else 1]:
                w.post(worker, f"{text}{m}")
        for consumer in reversed(consumers):
            w.say(consumer, Complaint(key, "w2", b""))
        sent = w.post(w.route.shadows[2], f"a2{m}")
        again = [to for to, message in messages(sent, Accepted) if message.key == key]
        assert again == [*consumers, *consumers]  # the ruling, and the answers to the complaints


# -- quarantine and bans -------------------------------------------------------------------------------------------------


def test_in_quarantine_two_accounts_must_still_agree_and_the_referee_decides(world):
    w = world(ban="quarantine").lie("w2", "a2", steps=2, output=b"x").step()
    one = ["Alert output: w2 w3", "Ruling output: w2", "ClaimReplaced: w3"]
    assert sorted(record(w)) == sorted(one * (len(record(w)) // 3))
    assert w.sealed == world().step().sealed
    w.step()
    assert w.coordinator.membership.route.primaries[2] == "w2"  # it keeps its seat
    assert w.sealed == world().step().step().sealed


def test_in_quarantine_honest_words_are_no_alarm(world):
    w = world(ban="quarantine").lie("w2", "a20", output=b"x").step().step()
    assert [line for line in record(w) if "Replaced" not in line] == ["Alert output: w2 w3", "Ruling output: w2"]


@pytest.mark.parametrize(("lies", "banned"), [(2, False), (3, True)])
def test_a_ban_comes_at_the_step_boundary_after_n_proven_lies(world, lies, banned):
    w = world(ban="ban", ban_after=3)
    for text in ("a20", "g20", "G2")[:lies]:
        w.lie("w2", text, output=b"x")
    w.step()
    assert not w.of(Banned)
    assert w.coordinator.membership.lies["w2"] == lies
    w.step()
    assert [(event.worker, event.lies, event.step) for event in w.of(Banned)] == ([("w2", 3, 1)] if banned else [])
    assert ("w2" in w.route.workers) is not banned
    assert w.sealed == world().step().step().sealed


def test_nobody_is_banned_where_a_stage_would_lose_its_last_holder(world):
    w = world(ban="ban", ban_after=1).lie("w2", "a2", output=b"x").step()
    w.lose("w3")  # stage 2 has only w2 now
    w.begin()
    assert not w.of(Banned)
    assert w.run().sealed == world().step().step().sealed
    w.step()
    assert [event.worker for event in w.of(Banned)] == ["w2"]


def test_a_liar_that_comes_back_is_banned_before_it_has_a_seat(world):
    w = world(ban="ban", ban_after=1).lie("w2", "a2", output=b"x").step()
    w.lose("w2")
    w.coordinator.worker_joined("w2")
    w.step().step()
    assert [event.worker for event in w.of(Banned)] == ["w2"]
    assert not w.of(Joined)
    assert "w2" not in w.route.workers


@pytest.mark.parametrize("policy", ["never", "quarantine"])
def test_without_a_ban_policy_nobody_goes(world, policy):
    w = world(ban=policy, ban_after=1).lie("w2", "a2", output=b"x").step().step()
    assert not w.of(Banned)
    assert "w2" in w.route.workers
