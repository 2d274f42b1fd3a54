"""What a lie may do beyond one tensor: hear, speak unasked, hold back, hand over, believe itself; with a puppet for a worker.

The puppet is w2: primary of stage 2 and shadow of stage 1 of K = 5, with the work and the answers that a test gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from holdfast.attacks import Campaign, DishonestWorker, Ledger, resolve_attack
from holdfast.attacks.attack import ON_THE_WIRE, Misconduct
from holdfast.attacks.lie import Lie, header_of
from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.digest import same_bytes, tensor_digest
from holdfast.errors import ConfigError
from holdfast.message import (
    Accepted,
    BeginStep,
    Complaint,
    Envelope,
    Message,
    SendState,
    StateTransfer,
    Supply,
    Work,
)
from holdfast.route import plain_route, without

ROUTE = plain_route(("w0", "w1", "w2", "w3", "w4"), ("w0", "w4"), shadowed=True)
FORWARD, BACKWARD, GRADIENT, UPDATE = Direction
HIDDEN = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))


def key(direction=FORWARD, stage=2, micro_batch=0, step=0, attempt=0):
    return ClaimKey(step, attempt, direction, stage, WHOLE_STEP if direction in (GRADIENT, UPDATE) else micro_batch)


def signed(header):
    return replace(header, signature=repr((header.key, header.output, header.inputs)).encode())


class Execution:
    """A stage whose output is its micro-batch's number of times HIDDEN; its trace is honest."""

    def forward(self, micro_batch, inputs):
        return HIDDEN * (micro_batch + 1)

    def backward(self, micro_batch, gradient, tied=None):
        return HIDDEN * -(micro_batch + 1), None


class Puppet:
    def __init__(self):
        self.name = "w2"
        self.devices = 1
        self.waiting = []
        self.seats = {stage: SimpleNamespace(execution=Execution()) for stage in (1, 2)}
        self.sign = signed

    def receive(self, envelope):
        message = envelope.message
        if isinstance(message, SendState):
            state = StageState(message.stage, message.version, 0, {"weight": HIDDEN}, {})
            return [Envelope("w2", message.to, StateTransfer(state, message.role))]
        return []

    def next_work(self, device):
        return self.waiting[0] if self.waiting else None

    def execute(self, work):
        if work in self.waiting:
            self.waiting.remove(work)
        direction, output = work.key.direction, HIDDEN
        if direction is FORWARD:
            output = self.seats[work.stage].execution.forward(work.key.micro_batch, HIDDEN)
        elif direction is BACKWARD:
            output, _ = self.seats[work.stage].execution.backward(work.key.micro_batch, HIDDEN)
        header = signed(Header("run", work.key, 0, 0, "w2", work.role, (b"in",), tensor_digest(output)))
        posted = [Envelope("w2", "coordinator", header)]
        if work.role is Role.SHADOW or work.key.micro_batch == WHOLE_STEP:
            return posted
        return posted + [Envelope("w2", to, Claim(header, output)) for to in ROUTE.consumers(direction, work.stage)]


class Liar:
    """A dishonest puppet, its ledger, and what can be done to it."""

    def __init__(self, attack: str | Misconduct, **campaign: Any) -> None:
        self.puppet, self.ledger = Puppet(), Ledger()
        drawn = Campaign(campaign.pop("stages", (2,)), **campaign)
        self.worker = DishonestWorker(self.puppet, resolve_attack(attack), drawn, self.ledger)
        self.begin()

    def begin(self, step=0, attempt=0, route=ROUTE):
        return self.tell(BeginStep(step, attempt, step, route, ()))

    def tell(self, message: Message, sender="coordinator"):
        return list(self.worker.receive(Envelope(sender, "w2", message)))

    def work(self, direction=FORWARD, role=Role.PRIMARY, **where):
        return list(self.worker.execute(work(direction, role, **where)))

    def claim(self, direction, stage, sender, tensor=HIDDEN, **where):
        header = signed(Header("run", key(direction, stage, **where), 0, 0, sender, Role.PRIMARY, (), tensor_digest(tensor)))
        return self.tell(Claim(header, tensor), sender)


def work(direction=FORWARD, role=Role.PRIMARY, **where):
    return Work("any", 0, where.get("stage", 2), key(direction, **where), role, 1.0)


def said(envelopes):
    """Who was sent what: (recipient, step of the claim, whether it is the honest output)."""
    found = []
    for envelope in envelopes:
        header = header_of(envelope)
        sign = -1 if header.key.direction is BACKWARD else 1
        honest = HIDDEN * sign * (header.key.micro_batch + 1)
        found.append((envelope.recipient, header.key.step, header.output == tensor_digest(honest)))
    return found


def accounts(envelopes):
    return [header_of(envelope) for envelope in envelopes]


HONEST = [("coordinator", 0, True), ("w3", 0, True), ("w4", 0, True)]
FORGED = [(to, step, False) for to, step, _ in HONEST]


# -- the hooks -----------------------------------------------------------------------------------------------------------


class Diary(Lie):
    """Writes down when it is called, and says nothing false."""

    choices = ON_THE_WIRE
    in_roles = frozenset(Role)

    def __init__(self, in_roles=in_roles) -> None:
        super().__init__()
        self.in_roles = in_roles
        self.pages: list[tuple[object, ...]] = []

    @property
    def roles(self):
        return self.in_roles

    def before(self, work, backstage):
        self.pages.append(("before", backstage.key))

    def believe(self, work, output, backstage):
        self.pages.append(("believe", backstage.key))
        return output

    def after(self, work, backstage):
        self.pages.append(("after", backstage.key))

    def rewrite(self, envelope, backstage):
        self.pages.append(("rewrite", backstage.key))
        return [envelope]

    def hand_over(self, envelope, backstage):
        self.pages.append(("hand over", backstage.key))
        return [envelope]

    def hear(self, envelope, backstage):
        self.pages.append(("hear", type(envelope.message).__name__, backstage.key.stage, backstage.struck))
        return []

    def worked(self, work, backstage):
        self.pages.append(("worked", backstage.key.stage, backstage.struck))
        return []


def test_a_struck_pass_calls_every_hook_in_order() -> None:
    diary = Diary()
    liar = Liar(diary)
    liar.work()
    moments = ["before", "believe", "after"]
    assert diary.pages[:2] == [("hear", "BeginStep", 1, False), ("hear", "BeginStep", 2, True)]
    assert diary.pages[2:5] == [(moment, key()) for moment in moments]
    assert diary.pages[5:7] == [("worked", 1, False), ("worked", 2, True)]
    assert diary.pages[7:] == [("rewrite", key())] * 3


def test_what_is_not_struck_is_heard_and_no_more() -> None:
    diary = Diary(frozenset({Role.SHADOW}))
    liar = Liar(diary)
    liar.work()
    liar.work(stage=1, role=Role.SHADOW)
    liar.tell(SendState(2, 0, "referee", None))
    assert {page[0] for page in diary.pages} == {"hear", "worked"}


def test_a_state_of_the_struck_stage_is_handed_over() -> None:
    diary = Diary()
    liar = Liar(diary)
    diary.pages.clear()
    liar.tell(SendState(1, 0, "referee", None))
    liar.tell(SendState(2, 0, "referee", None))
    assert [page for page in diary.pages if page[0] == "hand over"] == [("hand over", key(UPDATE))]


def test_what_the_worker_believes_is_put_back_afterwards() -> None:
    class Doubled(Lie):
        def believe(self, work, output, backstage):
            return output * 2

    for direction in ("forward", "backward"):
        liar = Liar(Doubled(direction=direction))
        execution = liar.puppet.seats[2].execution
        sent = liar.work(Direction(direction))
        assert same_bytes(sent[1].message.tensor, HIDDEN * (2 if direction == "forward" else -2))
        assert sent[0].message.output == tensor_digest(sent[1].message.tensor)
        assert not vars(execution)
        inner = DishonestWorker(liar.worker, Doubled(direction=direction), Campaign((2,)), liar.ledger)
        inner.receive(Envelope("coordinator", "w2", BeginStep(0, 0, 0, ROUTE, ())))
        twice = inner.execute(work(Direction(direction)))[1].message.tensor
        assert same_bytes(twice, HIDDEN * (4 if direction == "forward" else -4)), "two liars about one pass"
        assert not vars(execution)


def test_the_pass_is_put_back_where_the_lie_breaks() -> None:
    class Clumsy(Lie):
        def believe(self, work, output, backstage):
            raise ConfigError("dropped it")

    liar = Liar(Clumsy())
    with pytest.raises(ConfigError, match="dropped it"):
        liar.work()
    assert not vars(liar.puppet.seats[2].execution)


def test_the_gradient_that_is_known_is_that_of_the_last_step() -> None:
    known: list[Any] = []

    class Curious(Lie):
        def before(self, work, backstage):
            known.append(backstage.scene.gradient)

    liar = Liar(Curious(), rate=1.0, first_step=1)
    liar.claim(BACKWARD, 3, "w3", HIDDEN * 5)
    liar.claim(BACKWARD, 3, "w3", HIDDEN * 6, micro_batch=1)
    liar.claim(FORWARD, 1, "w1", HIDDEN * 7)
    liar.begin(1)
    liar.claim(BACKWARD, 3, "w3", HIDDEN * 8, step=1)
    liar.work(step=1)
    liar.work(step=1, micro_batch=1)
    liar.work(step=1, micro_batch=2)
    assert [None if tensor is None else tensor.tolist() for tensor in known] == [
        (HIDDEN * 5).tolist(),
        (HIDDEN * 6).tolist(),
        None,
    ]
    liar.begin(1, attempt=1)
    assert liar.worker._gradient(key(step=1, attempt=1)).tolist() == (HIDDEN * 8).tolist(), "of the attempt before"


# -- timing --------------------------------------------------------------------------------------------------------------


def test_claims_leave_after_further_work() -> None:
    liar = Liar("delay,pieces=2,direction=forward")
    liar.puppet.waiting = [work(micro_batch=5)]
    assert liar.work() == []
    assert said(liar.work(BACKWARD)) == [("coordinator", 0, True), ("w1", 0, True), ("w2", 0, True)]
    assert said(liar.work(BACKWARD))[3:] == HONEST
    assert not liar.ledger.keys


def test_who_has_no_work_left_sends_what_is_late_with_the_next_message() -> None:
    liar = Liar("delay,pieces=9")
    liar.puppet.waiting = [work(micro_batch=1)]
    liar.work()
    ruling = Accepted(key(FORWARD, 1), b"")
    assert liar.tell(ruling) == []
    liar.work(micro_batch=1)
    assert [to for to, _, _ in said(liar.tell(ruling))] == ["coordinator", "w3", "w4"] * 2
    assert liar.tell(ruling) == []


def replayed(how: str) -> tuple[Liar, list[Envelope]]:
    liar = Liar(f"replay-claim,how={how}")
    assert said(liar.work()) == HONEST, "there is nothing old yet"
    liar.begin(1)
    return liar, liar.work(step=1)


def test_an_old_claim_beside_the_new_one() -> None:
    liar, sent = replayed("beside")
    assert said(sent) == [(to, step, True) for to, _, _ in HONEST for step in (1, 0)]
    assert all(header == signed(header) for header in accounts(sent))
    assert not liar.ledger.keys


def test_an_old_claim_instead_of_the_new_one() -> None:
    liar, sent = replayed("instead")
    assert said(sent) == HONEST
    assert liar.ledger.keys == {key(step=1)}


def test_an_old_signature_under_the_key_of_this_step() -> None:
    liar, sent = replayed("relabelled")
    posted = sent[0].message
    assert posted.key == key(step=1)
    assert posted.signature == signed(replace(posted, key=key())).signature != signed(posted).signature
    assert liar.ledger.keys == {key(step=1)}


# -- accusations ---------------------------------------------------------------------------------------------------------


SENT = [(FORWARD, 1, "w1"), (FORWARD, 0, "w0"), (BACKWARD, 3, "w3"), (FORWARD, 0, "coordinator")]


@pytest.mark.parametrize(
    ("direction", "against"),
    [("both", ["w1", "w0", "w3", "coordinator"]), ("forward", ["w1", "w0", "coordinator"]), ("backward", ["w3"])],
)
def test_a_flood_of_complaints(direction: str, against: list[str]) -> None:
    """About whoever delivers, the coordinator included."""
    liar = Liar(f"flood,direction={direction}")
    told = [e for d, stage, sender in SENT for e in liar.claim(d, stage, sender)]
    assert [(e.recipient, type(e.message), e.message.sender) for e in told] == [
        ("coordinator", Complaint, name) for name in against
    ]
    assert all(e.message.got not in (tensor_digest(HIDDEN), b"") and e.message.evidence is None for e in told)
    assert liar.ledger.keys == {key(d, stage) for d, stage, sender in SENT if sender in against}
    assert liar.ledger.by_worker.keys() == {"w2"}


def test_a_trickle_and_the_next_step() -> None:
    liar = Liar("flood,per_step=1")
    assert [len(liar.claim(d, stage, sender)) for d, stage, sender in SENT] == [1, 0, 0, 0]
    liar.begin(1)
    assert len(liar.claim(FORWARD, 1, "w1", step=1)) == 1


def test_no_complaint_about_what_was_never_for_it_or_where_it_is_honest() -> None:
    liar = Liar("flood", stages=(2,), first_step=1)
    assert liar.claim(FORWARD, 1, "w1") == []
    liar.begin(1)
    assert liar.claim(FORWARD, 3, "w3", step=1) == []
    assert liar.claim(BACKWARD, 2, "w2", step=1) == [], "its own, for its other seat"
    assert not liar.ledger.keys


# -- laziness ------------------------------------------------------------------------------------------------------------


def test_the_input_passed_on() -> None:
    liar = Liar("lazy,direction=both")
    incoming = {FORWARD: HIDDEN * 11, BACKWARD: HIDDEN * 13}
    liar.claim(FORWARD, 1, "w1", incoming[FORWARD])
    liar.claim(BACKWARD, 3, "w3", incoming[BACKWARD])
    for direction, tensor in incoming.items():
        sent = liar.work(direction)
        assert same_bytes(sent[1].message.tensor, tensor)
        assert sent[0].message.output == tensor_digest(tensor)
        assert sent[0].message.signature == signed(sent[0].message).signature
    assert liar.ledger.keys == {key(FORWARD), key(BACKWARD)}


def test_a_lazy_shadow_waits_and_copies() -> None:
    liar = Liar("lazy,mode=copy", stages=(1,))
    assert liar.work(stage=1, role=Role.SHADOW) == []
    assert liar.claim(FORWARD, 1, "w1", HIDDEN * 3, micro_batch=1) == []
    (late,) = liar.claim(FORWARD, 1, "w1", HIDDEN * 3)
    assert late.recipient == "coordinator"
    assert (late.message.role, late.message.output) == (Role.SHADOW, tensor_digest(HIDDEN * 3))
    assert late.message.signature == signed(late.message).signature
    (copied,) = liar.work(stage=1, role=Role.SHADOW, micro_batch=1)
    assert copied.message.output == tensor_digest(HIDDEN * 3)
    assert liar.ledger.keys == {key(stage=1), key(stage=1, micro_batch=1)}


def test_a_copy_of_the_truth_is_no_lie() -> None:
    liar = Liar("lazy,mode=copy", stages=(1,))
    liar.work(stage=1, role=Role.SHADOW)
    liar.claim(FORWARD, 1, "w1", HIDDEN)
    assert not liar.ledger.keys


def test_what_a_lazy_shadow_cannot_see_it_makes_up() -> None:
    liar = Liar("lazy,mode=copy,direction=all", stages=(1,))
    for direction in (BACKWARD, GRADIENT, UPDATE):
        (made_up,) = liar.work(direction, Role.SHADOW, stage=1)
        assert made_up.message.output not in (tensor_digest(HIDDEN), tensor_digest(-HIDDEN))
    assert liar.ledger.keys == {key(direction, 1) for direction in (BACKWARD, GRADIENT, UPDATE)}


def test_a_lazy_shadow_owes_nothing_of_an_old_step() -> None:
    liar = Liar("lazy,mode=copy", stages=(1,))
    liar.work(stage=1, role=Role.SHADOW)
    liar.begin(1)
    assert liar.claim(FORWARD, 1, "w1") == []


# -- states --------------------------------------------------------------------------------------------------------------


def test_another_state_is_sent_once_a_step() -> None:
    liar = Liar("substitute,size=0.5")
    order = SendState(2, 0, "w4", Role.SHADOW)
    weights = [liar.tell(order)[0].message.state.weights["weight"] for _ in range(2)]
    assert not same_bytes(weights[0], HIDDEN)
    assert 0 < (weights[0] - HIDDEN).norm() / HIDDEN.norm() < 1
    assert weights[1] is HIDDEN
    assert liar.tell(SendState(1, 0, "w4", Role.SHADOW))[0].message.state.weights["weight"] is HIDDEN
    liar.begin(1)
    assert not same_bytes(liar.tell(order)[0].message.state.weights["weight"], HIDDEN)
    assert not liar.ledger.keys
    assert liar.ledger.misdeeds == {("w2", key(UPDATE, step=-1))}, "the update that made version 0"
    assert liar.ledger.explains(key(UPDATE, step=-1))
    assert not liar.ledger.explains(key(UPDATE))


def test_another_state_every_time() -> None:
    liar = Liar("substitute,times=0")
    for _ in range(4):
        assert not same_bytes(liar.tell(SendState(2, 0, "archive", None))[0].message.state.weights["weight"], HIDDEN)


# -- disguises -----------------------------------------------------------------------------------------------------------


def test_parameters_of_the_other_attack_stand_behind_plus_signs() -> None:
    sent = Liar("sleeper,sleep=0,then=scale+factor=3").work()
    assert same_bytes(sent[1].message.tensor, HIDDEN * 3)


@pytest.mark.parametrize("then", ["sign-flip", "wrong-parent", "withhold", "equivocation"])
def test_a_sleeper_is_honest_until_it_wakes(then: str) -> None:
    liar = Liar(f"sleeper,sleep=2,then={then}", rate=0.5, seed=3)
    strikes = [step for step in range(8) if Campaign((2,), 0.5, 3).strike(step) is not None]
    assert len(strikes) > 3, "the test shows nothing"
    for step in range(8):
        liar.begin(step)
        liar.puppet.waiting = [work(micro_batch=9)]
        honest = accounts(liar.work(step=step)) == accounts(Puppet().execute(work(step=step)))
        assert honest == (step not in strikes[2:])


LOOKS: list[tuple[str, Callable[[int], Message]]] = [
    ("referee", lambda step: SendState(2, step, "referee", None)),
    ("checker", lambda step: SendState(2, step, "checker", None)),
    ("referee", lambda step: Supply(key(FORWARD, 1, step=step), ("referee",))),
    ("checker", lambda step: Supply(key(BACKWARD, 3, step=step), ("checker",))),
]


@pytest.mark.parametrize(("sender", "look"), LOOKS)
def test_who_was_looked_at_is_shy_for_some_steps(sender: str, look: Callable[[int], Message]) -> None:
    liar = Liar("clean-twin,shy=2")
    lied = []
    for step in range(7):
        liar.begin(step)
        lied.append(not said(liar.work(step=step))[0][2])
        if step in (0, 4):
            liar.tell(look(step), sender)
            assert said(liar.work(step=step, micro_batch=1))[0][2], "the rest of the step is clean already"
            assert said(liar.work(step=step))[0][2] != lied[-1], "what was said stands"
    assert lied == [True, False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        ("coordinator", SendState(2, 0, "w4", Role.SHADOW)),
        ("coordinator", Supply(key(FORWARD, 1), ("w3",))),
        ("referee", SendState(3, 0, "referee", None)),
        ("referee", Supply(key(FORWARD, 2), ("referee",))),
        ("referee", Supply(key(BACKWARD, 2), ("referee",))),
    ],
)
def test_what_is_no_look_at_the_own_stage(sender: str, message: Message) -> None:
    liar = Liar("clean-twin")
    liar.tell(message, sender)
    assert said(liar.work()) == FORGED


# -- collusion -----------------------------------------------------------------------------------------------------------


def test_primary_and_shadow_tell_one_story() -> None:
    attack = resolve_attack("collusion,then=gaussian+direction=both")
    told = []
    for stage, role in ((2, Role.PRIMARY), (1, Role.SHADOW)):
        liar = Liar(attack, stages=(stage,), seed=5)
        for direction in (FORWARD, BACKWARD):
            (header, *_) = liar.work(direction, role, stage=stage)
            assert header.message.output not in (tensor_digest(HIDDEN), tensor_digest(-HIDDEN))
            told.append(header.message.output)
        assert liar.ledger.keys == {key(direction, stage) for direction in (FORWARD, BACKWARD)}
    assert len(set(told)) == 4


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_each_of_them_makes_up_the_same_alone(direction: Direction) -> None:
    """As in two processes: two objects, one campaign, the seats of one stage."""
    spec = f"collusion,then=gaussian+direction={direction}"
    stories = [Liar(spec, seed=5).work(direction, role)[0].message.output for role in Role]
    assert stories[0] == stories[1]


def test_without_an_accomplice_it_stays_honest() -> None:
    trusting = replace(ROUTE, trusted=("w0", "w3", "w4"))
    bare = without(ROUTE, {"w3"})
    for route in (trusting, bare):
        liar = Liar("collusion")
        liar.begin(1, route=route)
        assert said(liar.work(step=1))[0][2]
        assert not liar.ledger.keys
