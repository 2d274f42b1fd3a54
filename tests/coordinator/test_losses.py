"""Who dies is replaced, in every phase; who is silent is first sent everything again and then counts as dead."""

import pytest

from holdfast.claim import Claim, Role, StageState
from holdfast.errors import FaultWindowExceeded
from holdfast.event import Alert, ClaimReplaced, Reshadowed, Ruling, StepRestarted, TakenOver, WorkerLost
from holdfast.message import Accepted, Examine, NewRoute, StateAdopted, StateTransfer, Supply
from holdfast.recover.skip import Skip


def messages(envelopes, kind):
    return [(envelope.recipient, envelope.message) for envelope in envelopes if isinstance(envelope.message, kind)]


def deliveries(w):
    """How many messages an honest step takes."""
    w.begin()
    count = 0
    while w.deliver():
        count += 1
    return count


RESHADOWED = {"w1": [(1, "w3")], "w2": [(1, "w3"), (2, "w0")], "w3": [(2, "w0")]}


@pytest.mark.parametrize("lost", RESHADOWED)
def test_a_loss_in_any_phase_changes_no_digest(world, lost):
    """Before the first header, between any two messages, after the last; then the seats are filled and a step runs on."""
    clean = world().step().step()
    for moment in range(deliveries(world()) + 1):
        w = world().begin()
        for _ in range(moment):
            w.deliver()
        w.lose(lost)
        w.run()
        w.step()
        assert w.sealed == clean.sealed, f"lost after {moment} deliveries"
        assert [event.stage for event in w.of(TakenOver)] == [int(lost[1])]
        assert [(event.stage, event.worker) for event in w.of(Reshadowed)] == RESHADOWED[lost]
        assert not w.of(Alert, Ruling, StepRestarted)


def test_two_that_are_not_neighbours_may_go_in_one_step(world):
    clean, count = world(size=6).step().step(), deliveries(world(size=6))
    for moment in range(0, count, 3):
        w = world(size=6).begin()
        for _ in range(moment):
            w.deliver()
        w.lose("w1")
        for _ in range(4):
            w.deliver()
        w.lose("w3")
        assert w.run().step().sealed == clean.sealed, f"lost after {moment} deliveries"


def test_a_liar_and_a_loss_two_seats_away(world):
    clean, count = world(size=6).step(), deliveries(world(size=6))
    for moment in range(0, count, 3):
        w = world(size=6).lie("w1", "a1", output=b"x").lie("w1", "G1", norms=(0.0, 0.0)).begin()
        for _ in range(moment):
            w.deliver()
        w.lose("w3")
        assert w.run().sealed == clean.sealed, f"lost after {moment} deliveries"
        assert {worker for ruling in w.of(Ruling) for worker in ruling.culprits} == {"w1"}


def test_the_heir_is_told_the_new_route_and_others_too(world):
    w = world().begin()
    sent = w.lose("w2")
    told = messages(sent, NewRoute)
    assert [worker for worker, _ in told] == ["w0", "w1", "w3", "referee"]
    assert told[0][1].route.primaries == ("w0", "w1", "w3", "w3", "w0")
    assert w.events == [WorkerLost("w2", 0, "killed"), TakenOver(2, "w2", "w3", 0)]


def test_what_the_heir_said_as_a_shadow_counts_as_the_primary_s(world):
    w = world().begin()
    for worker, text in (("w0", "a00"), ("w1", "a10"), ("w2", "a10")):
        w.post(worker, text)
    w.post("w3", "a20")
    sent = w.lose("w2")
    (case,) = [message for _, message in messages(sent, Examine)]
    assert case.key == w.key("a20")  # nobody shadows it now, so the referee does
    assert w.post("w3", "a20", role=Role.SHADOW) == []  # sent before it knew
    assert not w.of(Alert)
    w.run()
    assert not w.of(ClaimReplaced)


def test_a_case_of_the_dead_is_put_to_the_referee_again_with_holders_that_live(world):
    w = world().lie("w2", "a20", output=b"x").begin()
    while not messages(w.sent, Examine):
        w.deliver()
    (_, case) = messages(w.lose("w2"), Examine)[0]
    assert case.holders == ("w3", "w1", "w0")
    assert w.run().sealed == world().step().sealed


def test_between_steps_the_next_one_waits_for_the_new_shadows(world):
    w = world().step()
    assert w.lose("w2") == []
    w.begin()
    assert w.asked == [("w1", 1, "w3"), ("w3", 2, "w0")]
    assert w.began.step == 0
    w.say("w3", StateAdopted(1, 1, Role.SHADOW, w.sealed[1]))
    assert w.began.step == 0
    w.say("w0", StateAdopted(2, 1, Role.SHADOW, w.sealed[2]))
    assert w.began.step == 1
    assert w.of(Reshadowed) == [Reshadowed(1, "w3", 1), Reshadowed(2, "w0", 1)]


def test_a_loss_while_seats_are_filled(world):
    w = world(size=6).step()
    w.lose("w2")
    w.begin()
    w.lose("w4")
    assert w.run().sealed == world(size=6).step().step().sealed


def test_losing_both_holders_breaks_the_run_and_says_why(world):
    w = world().begin()
    w.lose("w2")
    assert w.lose("w1") == []
    assert w.coordinator.broken == "both holders of a stage are lost, w1 last (killed)"
    assert w.lose("w3") == []
    assert w.coordinator.begin(1) == []


def test_who_has_no_seat_is_not_missed(world):
    w = world().begin()
    assert w.lose("nobody") == []
    w.lose("w2")
    assert w.lose("w2") == []
    assert len(w.of(WorkerLost)) == 1


def test_without_the_initiator_there_is_no_run(world):
    w = world().begin()
    with pytest.raises(FaultWindowExceeded, match=r"trusted w0 is lost \(killed\); start the run again from its checkpoint"):
        w.lose("w0")


def test_the_only_heir_may_sit_out_a_step_that_is_then_done_again(world):
    """Stage 1's worker dies in a step that bypasses its shadow: the step starts again from the plain route."""
    w = world(size=6, remedy=Skip()).lie("w2", "a20", output=b"x").begin()
    while w.began.attempt == 0:
        w.deliver()
    w.lose("w1")
    assert (w.began.attempt, w.route.bypassed, w.route.primaries[1]) == (2, (), "w2")
    assert w.run().sealed == world(size=6).step().sealed


# -- silence -------------------------------------------------------------------------------------------------------------


def test_one_timer_runs_at_a_time_and_none_is_set_for_an_idle_run(world):
    w = world()
    assert w.coordinator.pending_timers() == []
    w.begin()
    ((token, seconds),) = w.coordinator.pending_timers()
    assert seconds == 10.0
    w.run()
    assert w.coordinator.pending_timers() == []
    assert w.coordinator.on_timer(token) == []
    assert w.coordinator.pending_timers() == []


def test_progress_since_the_timer_was_set_only_sets_the_next(world):
    w = world().begin()
    for text in ("a00", "a01"):
        w.post("w0", text)
        assert w.ring() == []
    assert w.ring() != []  # nothing has moved since: everything is sent again
    assert w.of(WorkerLost) == []


def test_first_everything_is_sent_again_then_who_is_silent_is_lost(world):
    w = world().begin()
    w.post("w0", "a00")
    w.post("w2", "a10")
    w.ring()
    sent = w.ring()
    key = w.key("a00")
    assert messages(sent, Accepted) == [("w1", Accepted(key, w.accepted[key]))]
    assert messages(sent, Supply) == [("w0", Supply(key, ("w1",)))]
    assert w.of(Alert) == [Alert(key, "withheld", ("w1",))]
    assert w.of(WorkerLost) == []
    w.ring()
    assert w.of(WorkerLost) == [WorkerLost("w1", 0, "no progress within 20 s")]
    w.dead.add("w1")
    assert w.run().sealed == world().step().sealed


def test_an_answer_after_the_warning_saves_it(world):
    w = world().begin()
    w.post("w0", "a00")
    w.post("w2", "a10")
    w.ring()
    w.ring()
    w.post("w1", "a10")
    w.ring()
    assert w.of(WorkerLost) == []
    w.ring()
    w.ring()
    assert [event.worker for event in w.of(WorkerLost)] == ["w2"]  # now it is the next claim that is owed: a20 by both


@pytest.mark.parametrize("text", ["a20", "g21", "G2", "U2"])
@pytest.mark.parametrize("silent", ["w2", "w3"])
def test_who_says_nothing_is_lost_and_nobody_else(world, text, silent):
    w = world().silence(silent, text).begin()
    while not w.of(WorkerLost):
        w.deliver()
    w.dead.add(silent)
    w.run()
    assert [event.worker for event in w.of(WorkerLost)] == [silent]
    assert w.sealed == world().step().sealed


def test_a_referee_that_heard_nothing_is_asked_again(world):
    w = world().lie("w2", "a20", output=b"x").begin()
    while not messages(w.sent, Examine):
        w.deliver()
    w.waiting.clear()  # its finding never arrives
    while w.ready():
        w.deliver()
    asked = len(messages(w.sent, Examine))
    w.ring()
    w.ring()
    assert len(messages(w.sent, Examine)) == asked + 1
    assert w.run().sealed == world().step().sealed


# -- a state on its way to a new holder ----------------------------------------------------------------------------------


def vacant(world, **more):
    """w2 is gone: w1 and w3 are to send their states, stage 1 to w3 and stage 2 to w0."""
    w = world(**more).step()
    w.lose("w2")
    return w


def test_what_does_not_arrive_is_asked_for_again_through_the_coordinator(world):
    w = vacant(world)
    w.begin()
    w.waiting.clear()  # neither state arrives
    w.ring()
    w.ring()
    assert w.asked == [("w1", 1, "w3"), ("w3", 2, "w0"), ("w1", 1, "coordinator"), ("w3", 2, "coordinator")]
    assert w.run().sealed == world().step().step().sealed
    assert [event.worker for event in w.of(WorkerLost)] == ["w2"]


def test_who_does_not_send_a_state_to_the_coordinator_is_lost_and_not_the_new_holder(world):
    w = vacant(world)
    w.begin()
    w.waiting.clear()
    w.ring()
    w.ring()
    w.waiting = [envelope for envelope in w.waiting if envelope.sender != "w1"]
    while w.waiting:
        w.deliver()
    while not w.coordinator.broken:
        w.ring()
        w.waiting = [envelope for envelope in w.waiting if envelope.sender != "w1"]
    assert w.coordinator.broken == "both holders of a stage are lost, w1 last (no progress within 20 s)"
    assert [event.worker for event in w.of(WorkerLost)] == ["w2", "w1"]


def test_who_does_not_show_what_the_coordinator_handed_it_is_lost_and_not_the_sender(world):
    w = vacant(world)
    w.denying.add("w3")
    w.begin()
    while len(w.of(WorkerLost)) < 2 and not w.coordinator.broken:
        w.deliver()
    assert w.asked == [("w1", 1, "w3"), ("w3", 2, "w0"), ("w1", 1, "coordinator")], "a false word orders one state more"
    (_, lost) = w.of(WorkerLost)
    assert (lost.worker, lost.reason) == ("w3", "it has not shown the state of stage 1 that the coordinator sent it")
    assert not w.of(Ruling)


def test_a_holder_of_false_states_is_convicted_and_lost_at_once_and_the_new_holder_keeps_its_seat(world):
    w = vacant(world, size=6)
    w.spoilt["w3"] = b"false"
    w.begin()
    rung = len(w.timers)
    for _ in range(8):
        w.deliver()
        assert len(w.timers) <= rung + 1, "no deadline passes"
    assert w.asked == [("w1", 1, "w3"), ("w3", 2, "w4"), ("w3", 2, "coordinator")]
    (ruling,) = w.of(Ruling)
    assert (ruling.culprits, ruling.reason, ruling.stage) == (("w3",), "state", 2)
    assert [event.worker for event in w.of(WorkerLost)] == ["w2", "w3"]
    assert w.coordinator.broken.startswith("both holders of a stage are lost, w3 last (it sent the coordinator another state")


def test_of_two_holders_one_honest_is_enough(world):
    """w3 showed another state than the sealed one; its primary sends false ones, and the referee has the right one."""
    w = world().begin()
    w.coordinator.membership.vouch(2, "referee")
    w.run()
    members = w.coordinator.membership
    members.distrust(2, "w3")
    members.vouch(2, "referee")
    w.spoilt["w2"] = b"false"
    w.begin()
    w.run()
    assert w.asked == [("w2", 2, "w3"), ("w2", 2, "coordinator"), ("referee", 2, "coordinator")]
    assert [event.culprits for event in w.of(Ruling)] == [("w2",)]
    assert not w.of(WorkerLost)
    assert w.coordinator.broken is None


@pytest.mark.parametrize("sender", ["w1", "w3", "w4", "nobody"])
def test_a_state_that_the_coordinator_has_not_asked_for_is_not_looked_at(world, sender, monkeypatch):
    w = vacant(world, size=6)
    w.begin()
    monkeypatch.setattr("holdfast.deliveries.state_digest", None)
    assert w.say(sender, StateTransfer(StageState(2, 1, 1, {}, {}), Role.SHADOW)) == []


def test_a_second_false_state_is_not_looked_at(world, monkeypatch):
    w = vacant(world, size=6)
    w.coordinator.membership.vouch(2, "referee")
    w.spoilt |= {"w3": b"false", "referee": b"false"}
    w.begin()
    w.say("w4", StateAdopted(2, 1, Role.SHADOW, b"false"))
    false = StateTransfer(StageState(2, 1, 1, {"digest": b"false"}, {}), Role.SHADOW)
    assert w.say("w3", false) == []
    monkeypatch.setattr("holdfast.deliveries.state_digest", None)
    assert w.say("w3", false) == []


def test_what_is_handed_on_just_before_the_deadline_gives_its_receiver_time(world, monkeypatch):
    """Or a liar could have its neighbour thrown out by sending late what the coordinator asks it for."""
    monkeypatch.setattr("holdfast.deliveries.tensor_digest", lambda tensor: tensor)
    w = world(alone=True).begin()
    for m in range(2):
        w.post("w0", f"a0{m}")
        w.post("w1", f"a1{m}")
    w.ring()
    assert {key for _, supply in messages(w.ring(), Supply) for key in [supply.key]} >= {w.key("a10"), w.key("a11")}
    for m in range(2):
        header = w.honest("w1", w.key(f"a1{m}"))
        assert [to for to, _ in messages(w.say("w1", Claim(header, header.output)), Claim)] == ["w2"]
    w.ring()
    assert not w.of(WorkerLost)
    w.ring()
    w.ring()
    assert [event.worker for event in w.of(WorkerLost)] == ["w2"], "but not for ever"


def test_a_stuck_run_with_nobody_to_blame_is_broken(world):
    """Only the initiator owes anything, and it is never counted as dead."""
    w = world().begin()
    w.ring()
    assert w.coordinator.broken is None
    w.ring()
    assert w.coordinator.broken.startswith("nothing has moved for 20 s and nobody owes anything")
    assert not w.of(WorkerLost)
    assert w.ring() == []


def test_the_timer_is_patient_with_the_referee_s_findings(world):
    """A finding is progress, even where the claim it is about was dropped."""
    w = world().begin()
    w.lose("w3")
    while not w.waiting:
        w.deliver()
    w.ring()
    w.ring()
    w.deliver()
    w.ring()
    assert [event.worker for event in w.of(WorkerLost)] == ["w3"]


def test_what_is_going_on_in_a_line(world):
    w = world()
    assert w.coordinator.describe() == "coordinator: v0, waits for seats []"
    w.begin()
    w.post("w0", "a00")
    w.post("w1", "a10")
    assert w.coordinator.describe() == "coordinator: step 0 attempt 0, 1 keys accepted, 0 at the referee, owed by ['w2']"


def test_who_does_not_open_to_the_referee_misses_the_coordinators_deadline(world):
    """Both holders of stage 2 dispute a claim and neither shows the state: one after the other counts as dead."""
    w = world(size=6).lie("w2", "a20", output=b"x").begin()
    w.withheld = lambda key: key.stage == 2
    while not any(isinstance(envelope.message, Examine) for envelope in w.sent):
        assert w.deliver()
    for _ in range(400):
        if w.of(WorkerLost) or not w.deliver():
            break
    assert {event.worker for event in w.of(WorkerLost)} <= {"w2", "w3"}
    assert w.of(WorkerLost), "nobody is held to it"


def test_who_goes_after_the_run_is_broken_does_not_come_along_when_it_goes_back(world):
    w = world(size=6).begin()
    for worker in ("w1", "w2", "w4"):
        w.lose(worker)
    assert w.coordinator.broken
    assert [event.worker for event in w.of(WorkerLost)] == ["w1", "w2", "w4"]
