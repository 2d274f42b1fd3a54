"""The checker examines several sealed steps at once, the earliest first, and lends its executions from one to the next."""

from dataclasses import replace

import pytest

from holdfast.checker import Checker
from holdfast.claim import StageState
from holdfast.digest import state_digest, tensor_digest
from holdfast.errors import ProtocolError
from holdfast.message import BeginStep, Envelope, Examine, Finding, Lacking, SendState, StateRefused, StateTransfer, Supply
from holdfast.verify.chain import ingredients


def say(checker, sender, message):
    return list(checker.receive(Envelope(sender, "checker", message)))


@pytest.fixture
def built():
    """The stages for which an execution was made, in order."""
    return []


@pytest.fixture
def checker(toy, built):
    def execution(stage):
        built.append(stage)
        return toy.execution(stage)

    return Checker("run", execution, toy.M, (1.0, 2.0, 3.0, 1.0))


class Step:
    """A sealed step as honest workers have kept it. The toy's states do not change between versions, only their numbers."""

    def __init__(self, toy, step):
        self.toy, self.step = toy, step
        self.honest = toy.Honest(step)

    def state(self, stage):
        return replace(self.toy.state(stage), version=self.step)

    def case(self, text, **change):
        key = self.honest.key(text)
        needed = tuple((p, tensor_digest(self.honest.tensors[p])) for p in ingredients(key, self.toy.ROUTE, self.toy.M))
        holders = self.toy.ROUTE.holders(key.stage)
        sealed = state_digest(self.state(key.stage))
        order = Examine(key, self.step, sealed, needed, holders, 0.5, 0.1, self.toy.ROUTE)
        return replace(order, **change)

    def open(self, checker, envelopes):
        """Every holder sends what it is asked for."""
        for envelope in envelopes:
            match envelope.message:
                case SendState(stage):
                    say(checker, envelope.recipient, StateTransfer(self.state(stage), None))
                case Supply(key):
                    text = ("a" if key.direction == "forward" else "g") + f"{key.stage}{key.micro_batch}"
                    say(checker, envelope.recipient, self.honest.claim(text, envelope.recipient))

    def order(self, checker, *texts):
        for text in texts:
            self.open(checker, say(checker, "coordinator", self.case(text)))


def findings(checker):
    found = []
    while (work := checker.next_work(0)) is not None:
        (envelope,) = checker.execute(work)
        assert (envelope.sender, envelope.recipient, work.kind) == ("checker", "coordinator", "checker")
        found.append(envelope.message)
    return found


def test_a_whole_step_of_a_stage(checker, toy):
    step = Step(toy, 3)
    step.order(checker, "a10", "a11", "g10", "g11", "G1", "U1")
    found = {finding.key: finding for finding in findings(checker)}
    gradient = step.honest.executions[1].gradient()
    for text in ("a10", "a11", "g10", "g11"):
        assert found[step.honest.key(text)] == Finding(step.honest.key(text), step.honest.digest(text))
    assert found[step.honest.key("G1")] == Finding(step.honest.key("G1"), gradient.digest, gradient.norms)
    assert found[step.honest.key("U1")].output == step.honest.update(1)


def test_steps_at_once_the_earliest_first(checker, toy, built):
    late, early = Step(toy, 5), Step(toy, 4)
    late.order(checker, "a10")
    early.order(checker, "a10", "g20")
    assert [(finding.key.step, finding.output) for finding in findings(checker)] == [
        (4, early.honest.digest("a10")),
        (4, early.honest.digest("g20")),
        (5, late.honest.digest("a10")),
    ]
    assert sorted(built) == [1, 1, 2]


def test_executions_are_used_again(checker, toy, built):
    for number in range(3):
        Step(toy, number).order(checker, "a10", "g11")
        assert len(findings(checker)) == 2
    assert built == [1]


def test_a_state_is_asked_for_once_a_step(checker, toy):
    step = Step(toy, 2)
    sent = [e for text in ("a10", "a11", "g10", "G1") for e in say(checker, "coordinator", step.case(text))]
    assert len(sent) == len(set(sent))
    assert [e.recipient for e in sent if isinstance(e.message, SendState)] == ["w1", "w2"]


def test_asked_again_it_says_what_it_lacks(checker, toy):
    step = Step(toy, 2)
    case = step.case("g10")
    first = say(checker, "coordinator", case)
    assert not any(isinstance(envelope.message, Lacking) for envelope in first)
    again = say(checker, "coordinator", case)
    assert again[:-1] == first
    assert again[-1].message == Lacking(case.key, True, tuple(key for key, _ in case.inputs))
    step.open(checker, first)
    assert say(checker, "coordinator", case) == [Envelope("checker", "coordinator", Lacking(case.key, False, ()))]


def test_another_state_is_reported_with_its_sender(checker, toy):
    step = Step(toy, 2)
    say(checker, "coordinator", step.case("a10"))
    other = StageState(1, 2, 0, {"w1": -toy.state(1).weights["w1"]}, toy.state(1).moments)
    (answer,) = say(checker, "w2", StateTransfer(other, None))
    assert answer.message == StateRefused(1, 2, "w2", state_digest(other), state_digest(step.state(1)))
    assert checker.next_work(0) is None


@pytest.mark.parametrize("sender", ["w1", "referee", "nobody"])
def test_only_the_coordinator_gives_it_cases(checker, toy, sender):
    with pytest.raises(ProtocolError, match=f"Examine from '{sender}'"):
        say(checker, sender, Step(toy, 2).case("a10"))


def test_a_case_without_its_route_and_other_orders_are_refused(checker, toy):
    with pytest.raises(ProtocolError, match="no use for it"):
        say(checker, "coordinator", Step(toy, 2).case("a10", route=None))
    with pytest.raises(ProtocolError, match="no use for it"):
        say(checker, "coordinator", BeginStep(0, 0, 0, toy.ROUTE, ()))


def test_what_comes_unasked_is_dropped(checker, toy):
    assert say(checker, "w1", Step(toy, 1).honest.claim("a10", "w1")) == []
    assert say(checker, "w1", StateTransfer(toy.state(1), None)) == []
    assert checker.next_work(0) is None


def test_what_it_works_on_in_a_line(checker, toy):
    assert checker.describe() == "checker: at work on steps none"
    Step(toy, 4).order(checker, "a10")
    assert checker.describe() == "checker: at work on steps 4"
