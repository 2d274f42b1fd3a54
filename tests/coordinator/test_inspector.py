"""Sealed claims that were drawn are computed again: who lied is convicted, his past replayed, and the run sent back."""

import pytest

from holdfast.claim import Direction
from holdfast.event import Alert, Banned, Reseated, Ruling, SpotChecked, StepSealed
from holdfast.message import Complaint, Examine, Finding, Flag, Lacking, StateRefused, Supply
from holdfast.stage import CHECKER
from holdfast.step import Inspection
from holdfast.verify.spotcheck import Sampling


def checking(steps=0.0, claims=0.0, window=4, seed=1, **more):
    return Inspection(Sampling(seed, claims, steps), window, **more)


def collude(w, text, steps=1, output=b"forged"):
    """Both holders of stage 2 say the same."""
    return w.lie("w2", text, steps=steps, output=output).lie("w3", text, steps=steps, output=output)


def checked(w):
    return [envelope.message.key for envelope in w.examined if envelope.recipient == CHECKER]


# -- draws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [True, False])
def test_everything_is_drawn_at_one(world, alone):
    w = world(alone=alone, inspection=checking(steps=1.0)).step()
    assert len(checked(w)) == len(set(checked(w))) == 3 * (2 + 2 + 1 + 1)
    assert {key.stage for key in checked(w)} == {1, 2, 3}, "the initiator's stages are trusted"
    assert [event.lies for event in w.of(SpotChecked)] == [0, 0, 0]
    assert w.coordinator.settled()
    assert w.coordinator.broken is None


def test_claims_are_drawn_one_by_one(world):
    w = world(inspection=checking(claims=0.4))
    for _ in range(8):
        w.step()
    expected = [key for key in checked(w) if w.coordinator.inspector._terms.sampling.draws_claim(key)]
    assert checked(w) == expected
    assert 0 < len(expected) < 8 * 3 * 4
    assert {key.direction for key in expected} == {Direction.FORWARD, Direction.BACKWARD}


def test_without_a_defence_by_draws_nothing_is_kept(world):
    w = world().step()
    assert checked(w) == []
    assert w.coordinator.inspector.digests(0) is None


def test_a_case_carries_the_route_and_the_digests_of_its_own_step(world):
    w = world(inspection=checking(steps=1.0)).step()
    digests = dict(w.sealed)
    w.step()
    second = [envelope.message for envelope in w.examined if envelope.message.key.step == 1]
    assert {(case.version, case.state_digest, case.route) for case in second} == {(1, digests[i], w.route) for i in (1, 2, 3)}


def test_what_the_referee_has_computed_is_not_computed_again(world):
    w = world(inspection=checking(steps=1.0)).lie("w2", "a20", output=b"x").step()
    assert w.key("a20") not in checked(w)
    assert w.key("a21") in checked(w)


# -- a signed claim stands until it is drawn -----------------------------------------------------------------------------


def test_alone_a_claim_needs_no_second_account(world):
    w = world(alone=True, inspection=checking(claims=0.0, steps=0.0)).step()
    assert len(w.of(StepSealed)) == 1
    assert w.of(Alert) == []


def test_alone_another_input_than_the_accepted_one_is_seen_at_once(world):
    w = world(alone=True, inspection=checking()).lie("w2", "a20", inputs=(b"x",)).step()
    assert [(event.reason, event.culprits) for event in w.of(Ruling)] == [("parent", ("w2",))]


# -- a lie ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a20", "a21", "g20", "G2", "U2"])
def test_a_lone_liar_is_named_and_the_run_goes_back(world, text):
    w = world(alone=True, inspection=checking(steps=1.0)).lie("w2", text, output=b"forged").step()
    assert {event.culprits for event in w.of(Ruling)} == {("w2",)}
    assert w.key(text) in {event.key for event in w.of(Ruling)}
    assert w.coordinator.inspector.rewind.version == 0
    assert w.coordinator.inspector.rewind.culprits == ("w2",)
    assert [event.worker for event in w.of(Banned)] == ["w2"]
    assert "w2 lied from step 0 on" in w.coordinator.broken


@pytest.mark.parametrize("text", ["a20", "g21", "G2", "U2"])
def test_two_adjacent_liars_are_both_named(world, text):
    w = collude(world(inspection=checking(steps=1.0)), text).step()
    assert {event.culprits for event in w.of(Ruling)} == {("w2", "w3")}
    assert w.coordinator.inspector.rewind.culprits == ("w2", "w3")


def test_norms_alone(world):
    w = world(alone=True, inspection=checking(steps=1.0)).lie("w2", "G2", norms=(0.0, 1.0)).step()
    assert [event.culprits for event in w.of(Ruling)] == [("w2",)]


def test_a_lie_that_was_replaced_in_its_step_convicts_nobody_again(world):
    w = world(inspection=checking(steps=1.0)).lie("w2", "a2", output=b"x").step()
    assert {event.reason for event in w.of(Ruling)} == {"output"}
    assert w.coordinator.settled()


def test_the_past_of_a_culprit_is_replayed_and_the_run_goes_back_to_before_the_first_lie(world):
    """Lies in steps 1 to 3, the draw falls on 3 only: 1 is found by the replay."""
    draw = next(seed for seed in range(1000) if _drawn(seed) == [(3, 2)])
    w = collude(world(inspection=checking(steps=0.08, seed=draw)), "a20", steps=4)
    w.changes = [(worker, text, 1, 4, {"output": b"forged"}) for worker, text, *_ in w.changes]
    w.lie("w2", "a20", steps=1, output=w.truth(w.key("a20", step=0))).lie(
        "w3", "a20", steps=1, output=w.truth(w.key("a20", step=0))
    )
    for _ in range(4):
        w.step()
    assert w.coordinator.inspector.rewind.version == 1
    replayed = {(key.step, key.stage) for key in checked(w)}
    assert replayed == {(step, stage) for step in range(4) for stage in (1, 2, 3)}, "every stage that either of them held"


def _drawn(seed):
    sampling = Sampling(seed, steps=0.08)
    return [(step, stage) for step in range(5) for stage in (1, 2, 3) if sampling.draws_step(step, 0, stage)]


def test_an_innocent_past_moves_nothing(world):
    w = world(alone=True, inspection=checking(steps=1.0))
    w.step().step()
    w.changes.append(("w2", "a20", 1, 3, {"output": b"forged"}))
    w.step()
    assert w.coordinator.inspector.rewind.version == 2


def test_after_a_lie_no_step_begins(world):
    w = world(alone=True, inspection=checking(steps=1.0)).lie("w2", "a20", output=b"forged").step()
    began = w.began
    w.begin(1)
    assert w.began is began
    assert not w.coordinator.settled()


def test_the_answer_says_how_likely_an_older_lie_is(world):
    w = world(alone=True, inspection=checking(steps=0.5, window=2, seed=_first_draw_at(3)))
    w.changes.append(("w2", "a20", 1, 4, {"output": b"forged"}))
    for _ in range(4):
        if w.coordinator.broken is None:
            w.step()
    assert w.coordinator.inspector.rewind.version == 2
    assert "an earlier lie than step 2, the oldest kept, would have escaped with probability 0.25" in w.coordinator.broken


def _first_draw_at(step):
    """A seed with which stage 2 is drawn in `step` and in none before it."""

    def draws(seed):
        return [Sampling(seed, steps=0.5).draws_step(s, 0, 2) for s in range(step + 1)]

    return next(seed for seed in range(1000) if draws(seed) == [False] * step + [True])


# -- the window ----------------------------------------------------------------------------------------------------------


def test_no_step_frees_what_is_still_to_be_checked(world):
    """With a window of 2, step 2 may not be sealed while step 0 is open."""
    w = world(alone=True, inspection=checking(steps=1.0, window=2))
    held: list = []
    later = w._later
    w._later = lambda sender, message: held.append((sender, message)) if sender == CHECKER else later(sender, message)
    w.step().step()
    w.begin(2)
    assert w.began.step == 1
    for sender, message in held:
        if message.key.step == 0:
            w.say(sender, message)
    assert w.began.step == 2


# -- who does not open what it signed ------------------------------------------------------------------------------------


def answered(w):
    while w.waiting and w.deliver(lambda ready: next(e for e in ready if e in w.waiting)):
        pass


def rings(w, count):
    for _ in range(count):
        w.ring()
        answered(w)
        if w.coordinator.broken:
            return


def test_who_does_not_open_is_guilty(world):
    w = world(alone=True, inspection=checking(steps=1.0))
    w.withheld = lambda key: key.stage == 2
    w.step()
    rings(w, 1)
    assert w.of(Alert) == [], "asked once more"
    rings(w, 12)
    assert {(event.reason, event.culprits) for event in w.of(Ruling)} == {("unopened", ("w2",))}
    assert w.coordinator.inspector.rewind.version == 0


def test_both_times_are_within_one_deadline(world):
    w = world(alone=True, inspection=checking(steps=1.0))
    w.withheld = lambda key: key.stage == 2
    w.begin()
    while not w.coordinator.idle():
        w.deliver()
    waits = [seconds for token, seconds in w.timers + w.coordinator.pending_timers() if token == ("opening", 0, 2)]
    assert waits == [10.0 / 2], "of the policy's ten seconds"


def test_where_a_tensor_is_missing_its_author_is_guilty(world):
    w = world(alone=True, inspection=checking(steps=1.0))
    w.withheld = lambda key: key.stage == 2
    w.step()
    key = w.key("a20")
    for _ in range(2):
        w.take(w.coordinator.on_timer(("opening", 0, 2)))
        w.waiting.clear()
    w.say(CHECKER, Lacking(key, False, (w.key("a10"),)))
    assert [event.culprits for event in w.of(Ruling)] == [("w1",)]


def test_a_slow_checker_makes_nobody_guilty(world):
    w = world(alone=True, inspection=checking(steps=1.0))
    w.withheld = lambda key: key.stage == 2
    w.step()
    for _ in range(5):
        w.take(w.coordinator.on_timer(("opening", 0, 2)))
        w.waiting.clear()
        w.say(CHECKER, Lacking(w.key("a20"), False, ()))
    assert w.of(Alert) == []


def test_what_the_dead_cannot_open_is_no_pass(world):
    w = world(inspection=checking(steps=1.0))
    w.withheld = lambda key: key.stage == 2
    w.step()
    w.lose("w2")
    w.coordinator.membership.route = w.coordinator.membership.route.__class__(
        9, ("w0", "w1", "w0", "w0", "w0"), (None,) * 5, ("w0",)
    )
    for _ in range(2):
        w.take(w.coordinator.on_timer(("opening", 0, 2)))
        w.waiting.clear()
    w.say(CHECKER, Lacking(w.key("a20"), True, ()))
    assert [event.culprits for event in w.of(Ruling)] == [()]
    answered(w)
    assert "could not be checked" in (w.coordinator.broken or "")


@pytest.mark.parametrize("sender", ["w1", "referee", "nobody"])
def test_only_the_checker_is_heard(world, sender):
    w = world(alone=True, inspection=checking(steps=1.0))
    w.withheld = lambda key: True
    w.step()
    w.say(sender, Finding(w.key("a20"), b"something else"))
    w.say(sender, Lacking(w.key("a20"), True, ()))
    assert w.of(Alert) == []


def test_answers_that_nobody_asked_for_are_ignored(world):
    w = world(alone=True, inspection=checking(steps=1.0)).step()
    w.say(CHECKER, Finding(w.key("a20"), b"something else"))
    w.say(CHECKER, Finding(w.key("a20", step=77), b"something else"))
    w.say(CHECKER, Lacking(w.key("a20"), True, ()))
    assert w.of(Alert) == []


# -- flags ---------------------------------------------------------------------------------------------------------------


def flagged(world, times, budget, sender="w3", text="a20"):
    w = world(alone=True, inspection=checking(steps=1e-9, flag_budget=budget))
    for _ in range(times):
        w.begin()
        w.say(sender, Flag(w.key(text), "norm", 9.0))
        w.run()
    return w


def test_a_flag_makes_the_check_certain_and_accuses_nobody(world):
    w = flagged(world, 1, budget=1.0)
    assert {(key.stage, key.step) for key in checked(w)} == {(2, 0)}
    assert len(checked(w)) == 6
    assert w.of(Alert, Ruling) == []


def test_who_cries_too_often_is_not_heard(world):
    assert len({key.step for key in checked(flagged(world, 20, budget=0.25))}) == 5


@pytest.mark.parametrize("sender", ["w1", "w2", "nobody"])
def test_only_a_receiver_may_flag(world, sender):
    assert checked(flagged(world, 1, budget=1.0, sender=sender)) == []


# -- other seats ---------------------------------------------------------------------------------------------------------


def test_seats_are_redrawn_and_every_state_finds_its_new_holder(world):
    w = world(size=6, inspection=checking(redraw_every=2))
    before = w.coordinator.membership.route.primaries
    w.step().step()
    assert w.of(Reseated) == []
    w.step()
    (event,) = w.of(Reseated)
    assert event.primaries == w.route.primaries != before
    assert sorted(event.primaries) == sorted(before)
    assert w.route.shadows[1:-1] == tuple(
        next(x for x in w.route.primaries[i + 1 :] if x != w.route.primaries[i]) for i in range(1, 5)
    )
    assert len(w.of(StepSealed)) == 3
    w.step().step()
    assert len(w.of(StepSealed)) == 5


def test_who_dies_while_seats_change_is_replaced_from_the_old_seating(world):
    w = world(size=6, inspection=checking(redraw_every=1))
    w.step()
    old = w.coordinator.membership.route
    w.begin(1)
    assert w.of(Reseated)
    w.waiting = [envelope for envelope in w.waiting if envelope.sender != "w2"]
    w.lose("w2")
    w.run()
    heir = old.shadows[old.primaries.index("w2")]
    assert w.route.primaries[old.primaries.index("w2")] == heir
    assert len(w.of(StepSealed)) == 2


# -- deliveries and states that trusted parties vouch for ----------------------------------------------------------------


def test_the_second_complaint_brings_the_tensor_through_the_coordinator(world):
    w = world().begin()
    for worker, text in (("w0", "a00"), ("w1", "a10"), ("w2", "a10")):
        w.post(worker, text)
    key = w.key("a10")
    w.say("w3", Complaint(key, "w1", b"x"))
    sent = w.say("w3", Complaint(key, "w2", b"x"))
    assert [(e.recipient, e.message) for e in sent] == [(who, Supply(key, ("coordinator",))) for who in ("w1", "w2")]


def test_who_complains_of_a_trusted_delivery_lies(world):
    w = world(ban_after=2).begin()
    for worker, text in (("w0", "a00"), ("w1", "a10"), ("w2", "a10")):
        w.post(worker, text)
    for source in ("coordinator", "referee", "coordinator"):
        w.say("w3", Complaint(w.key("a10"), source, b"x"))
    assert [(event.reason, event.culprits) for event in w.of(Ruling)] == [("complaint", ("w3",))]
    w.run()
    assert w.of(Banned) == []


def test_false_complaints_lead_to_a_ban_whatever_the_policy(world):
    w = world(ban_after=2).begin()
    w.say("w3", Complaint(w.key("a10"), "coordinator", b"x"))
    w.say("w3", Complaint(w.key("a11"), "coordinator", b"x"))
    w.run().step()
    assert [(event.worker, event.lies) for event in w.of(Banned)] == [("w3", 2)]


@pytest.mark.parametrize("reporter", ["referee", "checker", "archive"])
def test_another_state_than_the_sealed_one_convicts_who_sent_it(world, reporter):
    w = world().step()
    for _ in range(2):
        w.say(reporter, StateRefused(2, 1, "w3", b"x", b"sealed"))
    assert [(event.reason, event.culprits, event.key.stage) for event in w.of(Ruling)] == [("state", ("w3",), 2)]


def test_workers_cannot_say_so(world):
    w = world().step()
    w.say("w2", StateRefused(2, 1, "w3", b"x", b"sealed"))
    assert w.of(Ruling) == []


def test_no_case_is_lost(world):
    w = world(inspection=checking(steps=0.5, claims=0.5))
    for _ in range(6):
        w.step()
    ordered = [e.message.key for e in w.sent if isinstance(e.message, Examine) and e.recipient == CHECKER]
    assert sorted(ordered) == sorted(set(ordered))
    assert w.coordinator.settled()


def test_a_state_that_is_not_opened_is_a_lie_about_the_update_that_made_it(world):
    """Step 1 cannot be computed again: what is missing is the result of step 0, and the run returns to before that."""
    w = world(alone=True, inspection=checking(steps=1.0))
    w.step()
    w.withheld = lambda key: (key.step, key.stage) == (1, 2)
    w.step()
    rings(w, 12)
    (ruling,) = w.of(Ruling)
    assert (ruling.key, ruling.culprits) == (w.key("U2", step=0), ("w2",))
    assert w.coordinator.inspector.rewind.version == 0
