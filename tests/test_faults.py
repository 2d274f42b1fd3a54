import pytest

from holdfast.claim import WHOLE_STEP, ClaimKey, Direction, Role
from holdfast.errors import ConfigError, WorkerDied, WorkerStalled
from holdfast.faults import Fault, FaultPlan, Faults, FaultyActor
from holdfast.message import BeginStep, Envelope, Loss, NewRoute, Seal, Work
from holdfast.route import plain_route, without

WORKERS = ("w0", "w1", "w2", "w3", "w4")
ROUTE = plain_route(WORKERS, ("w0", "w4"), shadowed=True)
KINDS = {
    "forward": Direction.FORWARD,
    "backward": Direction.BACKWARD,
    "gradient": Direction.GRADIENT,
    "update": Direction.UPDATE,
}


def work(kind="forward", stage=2, step=7, micro_batch=0, role=Role.PRIMARY):
    direction = KINDS[kind.removeprefix("shadow-")]
    role = Role.SHADOW if kind.startswith("shadow-") else role
    return Work(kind, 0, stage, ClaimKey(step, 0, direction, stage, micro_batch), role, 1.0)


class Honest:
    """Answers every order and every work with three numbered messages."""

    def __init__(self, name="w2"):
        self.name = name
        self.devices = 1
        self.done = []

    def receive(self, envelope):
        self.done.append(envelope.message)
        return self.three()

    def next_work(self, device):
        return None

    def execute(self, work):
        self.done.append(work)
        return self.three()

    def three(self):
        return [Envelope(self.name, "coordinator", Loss(0, 0, number, 0.0)) for number in range(3)]


def actor(faults, name="w2", *, begun=True, route=ROUTE):
    made = FaultyActor(Honest(name), FaultPlan(faults))
    if begun:
        made.receive(Envelope("coordinator", name, NewRoute(route)))
    return made


def begin(step, route=ROUTE, attempt=0):
    return Envelope("coordinator", "w2", BeginStep(step, attempt, step, route, ()))


def numbers(envelopes):
    return [envelope.message.micro_batch for envelope in envelopes]


# -- the script ----------------------------------------------------------------------------------------------------------


def test_the_story_and_its_lines_are_the_same():
    story = Faults().crash(stage=2, step=7, at="backward", micro_batch=1, sent=2).stall(worker="w1", step=3, seconds=60)
    lines = ["crash stage=2 step=7 at=backward micro_batch=1 sent=2", "stall worker=w1 step=3 seconds=60"]
    assert Faults.parse(lines) == story
    assert Faults.parse([str(fault) for fault in story]) == story
    assert len(story) == 2


def test_micro_batch_may_have_a_hyphen():
    assert Faults.parse(["crash stage=1 step=0 at=forward micro-batch=3"]).script[0].micro_batch == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "expected crash, stall or slow first"),
        ("explode stage=1 step=1", "expected crash, stall or slow first"),
        ("crash stage=1", "needs step=N"),
        ("crash step=1", "needs either stage=N or worker=NAME"),
        ("crash stage=1 worker=w1 step=1", "needs either stage=N or worker=NAME"),
        ("crash stage=one step=1", "stage must be a number from 0, got 'one'"),
        ("crash stage=-1 step=1", "stage must be a number from 0, got '-1'"),
        ("crash stage=1 step=" + "9" * 5_000, "step must be a number from 0"),
        ("crash stage=1 step=1 step=2", "step stands there twice"),
        ("crash stage=1 step=1 when=now", "got 'when=now', expected one of step=..., stage="),
        ("crash stage=1 step=1 backward", "got 'backward', expected one of"),
        ("crash stage=1 step=1 at=noon", "at must be one of begin, forward"),
        ("crash stage=1 step=1 at=update micro_batch=1", "update is once a step"),
        ("crash stage=1 step=1 seconds=5", "seconds goes with a stall"),
        ("stall stage=1 step=1", "needs seconds=X"),
        ("stall stage=1 step=1 seconds=0", "needs seconds=X"),
        ("stall stage=1 step=1 seconds=long", "seconds must be seconds, got 'long'"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(line, message):
    with pytest.raises(ConfigError) as refusal:
        Faults.parse([line])
    assert message in str(refusal.value)


def test_negative_numbers_in_python_are_refused():
    with pytest.raises(ConfigError, match="step counts from 0, got -1"):
        Faults().crash(stage=1, step=-1)


def test_only_untrusted_stages_may_break():
    Faults().crash(stage=1, step=0).crash(stage=3, step=0).validate(5, WORKERS, ("w0", "w4"))
    for stage in (0, 4, 9):
        with pytest.raises(ConfigError, match=f"names stage {stage}; with 5 stages the untrusted ones are 1 to 3"):
            Faults().crash(stage=stage, step=0).validate(5)
    with pytest.raises(ConfigError, match="untrusted ones are none"):
        Faults().crash(stage=1, step=0).validate(2)
    with pytest.raises(ConfigError, match="initiator's own worker"):
        Faults().crash(worker="w0", step=0).validate(5, WORKERS, ("w0", "w4"))
    with pytest.raises(ConfigError, match="unknown worker; there are w0, w1"):
        Faults().crash(worker="w9", step=0).validate(5, WORKERS, ("w0", "w4"))


# -- the strike ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["forward", "backward", "gradient", "update", "shadow-forward", "shadow-backward"])
def test_a_crash_at_each_moment_of_work(kind):
    struck = actor(Faults().crash(stage=2, step=7, at=kind))
    stage = 1 if kind.startswith("shadow-") else 2  # w2 is primary of 2 and shadow of 1
    micro_batch = WHOLE_STEP if kind in ("gradient", "update") else 0
    other = next(name for name in ("forward", "backward") if name != kind)
    assert numbers(struck.execute(work(other))) == [0, 1, 2]
    assert numbers(struck.execute(work(kind, stage, step=6, micro_batch=micro_batch))) == [0, 1, 2]
    with pytest.raises(WorkerDied) as death:
        struck.execute(work(kind, stage, micro_batch=micro_batch))
    assert death.value.sent == ()


def test_a_crash_when_the_step_begins_and_when_it_is_sealed():
    struck = actor(Faults().crash(stage=2, step=7), begun=False)
    struck.receive(begin(6))
    with pytest.raises(WorkerDied):
        struck.receive(begin(7))
    struck = actor(Faults().crash(stage=2, step=7, at="seal"))
    assert struck.receive(Envelope("coordinator", "w2", Seal(7)))
    with pytest.raises(WorkerDied):
        struck.receive(Envelope("coordinator", "w2", Seal(8)))


def test_half_of_a_send():
    with pytest.raises(WorkerDied) as death:
        actor(Faults().crash(stage=2, step=7, at="forward", sent=2)).execute(work())
    assert numbers(death.value.sent) == [0, 1]


def test_the_micro_batch_that_was_named():
    struck = actor(Faults().crash(stage=2, step=7, at="forward", micro_batch=2))
    assert struck.execute(work(micro_batch=1))
    with pytest.raises(WorkerDied):
        struck.execute(work(micro_batch=2))


def test_whole_step_work_of_its_shadow_is_not_the_stage_s():
    struck = actor(Faults().crash(stage=2, step=7, at="update"))
    assert struck.execute(work("update", stage=1, role=Role.SHADOW, micro_batch=WHOLE_STEP))
    assert struck.execute(work("update", stage=1, micro_batch=WHOLE_STEP))


def test_stage_means_who_is_its_primary_when_it_strikes():
    faults = Faults().crash(stage=2, step=7, at="forward")
    after = without(ROUTE, {"w2"})
    assert actor(faults, "w1").execute(work())
    with pytest.raises(WorkerDied):
        actor(faults, "w3", route=after).execute(work())


def test_the_initiator_s_machine_never_breaks():
    after = without(ROUTE, {"w3"})
    assert after.primaries[3] == "w4"
    assert actor(Faults().crash(stage=3, step=7, at="forward"), "w4", route=after).execute(work(stage=3))


def test_a_worker_by_name_breaks_in_any_seat():
    with pytest.raises(WorkerDied):
        actor(Faults().crash(worker="w2", step=7, at="forward")).execute(work(stage=3))


def test_each_fault_strikes_once_in_a_run_rollback_included():
    plan = FaultPlan(Faults().stall(stage=2, step=7, seconds=1).crash(stage=2, step=7, at="forward"))
    first = FaultyActor(Honest(), plan)
    with pytest.raises(WorkerStalled):
        first.receive(begin(7))
    assert first.receive(begin(7, attempt=1))
    assert [fault.kind for fault in plan.waiting] == ["crash"]
    again = FaultyActor(Honest(), plan)  # built anew after a rollback
    assert again.receive(begin(7))
    with pytest.raises(WorkerDied):
        again.execute(work())
    assert again.execute(work())
    assert (plan.waiting, [fault.kind for fault in plan.fired]) == ((), ["stall", "crash"])


def test_a_stall_holds_the_messages_back_until_it_wakes():
    struck = actor(Faults().stall(stage=2, step=7, seconds=60, at="forward", sent=1))
    with pytest.raises(WorkerStalled) as stall:
        struck.execute(work())
    assert (stall.value.seconds, numbers(stall.value.sent)) == (60, [0])
    late = struck.next_work(0)
    assert late is not None
    assert late.cost == 0
    assert numbers(struck.execute(late)) == [1, 2]
    assert struck.next_work(0) is None


def test_a_stall_of_an_order_holds_its_answer_back_too():
    struck = actor(Faults().stall(stage=2, step=7, seconds=60), begun=False)
    with pytest.raises(WorkerStalled):
        struck.receive(begin(7))
    assert numbers(struck.execute(struck.next_work(0))) == [0, 1, 2]


def test_all_else_is_the_honest_worker_s():
    wrapped = actor(Faults())
    assert (wrapped.name, wrapped.devices) == ("w2", 1)
    assert numbers(wrapped.execute(work())) == [0, 1, 2]
    with pytest.raises(AttributeError, match="nothing"):
        wrapped.nothing  # noqa: B018


def test_a_fault_in_words():
    assert str(Fault("crash", 7, stage=2)) == "crash stage=2 step=7 at=begin"
