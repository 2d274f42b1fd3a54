"""The wrapper around an honest worker, with a scripted worker w2: primary of stage 2 and shadow of stage 1 of K = 5."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from holdfast.attacks import Attack, Campaign, DishonestWorker, Ledger, resolve_attack
from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header, Role
from holdfast.digest import same_bytes, tensor_digest
from holdfast.errors import ConfigError
from holdfast.message import BeginStep, Envelope, Supply, Work
from holdfast.route import plain_route

WORKERS = ("w0", "w1", "w2", "w3", "w4")
ROUTE = plain_route(WORKERS, ("w0", "w4"), shadowed=True)
FORWARD, BACKWARD, GRADIENT, UPDATE = Direction
INPUT = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
GRAD = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
WEIGHT = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))


def key(direction=FORWARD, stage=2, micro_batch=0, step=0, attempt=0):
    return ClaimKey(step, attempt, direction, stage, WHOLE_STEP if direction in (GRADIENT, UPDATE) else micro_batch)


def header(key, tensor=None, role=Role.PRIMARY, *, checked=True, inputs=()):
    output = tensor_digest(INPUT if tensor is None else tensor) if checked else b""
    norms = (1.0, 4.0) if key.direction is GRADIENT else ()
    return Header("run", key, 0, 0, "w2", role, inputs if checked else (), output, norms)


class Module(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 4, bias=False)
        self.weight.data = WEIGHT.clone()

    def forward(self, hidden):
        return torch.tanh(super().forward(hidden))


class ScriptedWorker:
    """Answers every work with the messages of an honest stage: header to the board, claims to the neighbours."""

    def __init__(self, *, checked=True):
        self.name = "w2"
        self.checked = checked
        self.module = Module()
        self.seats = {stage: SimpleNamespace(execution=SimpleNamespace(module=self.module)) for stage in (1, 2)}

    def receive(self, envelope):
        if isinstance(envelope.message, Supply):
            claim = self.claim(envelope.message.key)
            return [Envelope("w2", to, claim) for to in envelope.message.to]
        return []

    def next_work(self, device):
        return None

    def execute(self, work):
        claim = self.claim(work.key, work.role)
        posted = [Envelope("w2", "coordinator", claim.header)] if self.checked else []
        if work.role is Role.SHADOW or work.key.micro_batch == WHOLE_STEP:
            return posted
        return posted + [Envelope("w2", to, claim) for to in ROUTE.consumers(work.key.direction, work.key.stage)]

    def claim(self, key, role=Role.PRIMARY):
        hidden = INPUT.clone().requires_grad_(True)
        output = self.module(hidden)
        if key.direction is BACKWARD:
            (output,) = torch.autograd.grad(output, hidden, GRAD)
        inputs = (tensor_digest(INPUT), tensor_digest(GRAD)) if key.direction is BACKWARD else (tensor_digest(INPUT),)
        return Claim(header(key, output.detach(), role, checked=self.checked, inputs=inputs), output.detach())


def dishonest(attack="sign-flip", ledger=None, inner=None, **campaign):
    campaign.setdefault("stages", (1, 2, 3) if "worker" in campaign else (2,))
    worker = DishonestWorker(inner or ScriptedWorker(), resolve_attack(attack), Campaign(**campaign), ledger or Ledger())
    worker.receive(Envelope("coordinator", "w2", BeginStep(0, 0, 0, ROUTE, ())))
    return worker


def execute(worker, direction=FORWARD, role=Role.PRIMARY, **where):
    struck = key(direction, **where)
    return worker.execute(Work("any", 0, struck.stage, struck, role, 1.0))


def deliver(worker, micro_batch=0):
    """What an honest pipeline sends to w2: a_1 from w1 and g_3 from w3."""
    for sender, direction, stage, tensor in (("w1", FORWARD, 1, INPUT), ("w3", BACKWARD, 3, GRAD)):
        claimed = Header("run", key(direction, stage, micro_batch), 0, 0, sender, Role.PRIMARY, (), tensor_digest(tensor))
        worker.receive(Envelope(sender, "w2", Claim(claimed, tensor)))


def same(one, other):
    """Whether two headers, or two claims, say the same."""
    if isinstance(one, Claim):
        return one.header == other.header and same_bytes(one.tensor, other.tensor)
    return one == other


def test_one_consistent_lie_everywhere():
    ledger = Ledger()
    sent = execute(dishonest(ledger=ledger))
    honest = execute(ScriptedWorker())
    forged = -honest[1].message.tensor
    assert [envelope.recipient for envelope in sent] == ["coordinator", "w3", "w4"]
    assert sent[0].message.output == tensor_digest(forged)
    for envelope in sent[1:]:
        assert same_bytes(envelope.message.tensor, forged)
        assert envelope.message.header == sent[0].message
    assert ledger.keys == {key()}
    assert ledger.by_worker == {"w2": {key()}}


def test_a_supply_later_tells_the_same_lie_and_forges_once():
    calls = []

    class Counted(Attack):
        def forge(self, honest, scene):
            calls.append(scene.key)
            return honest * 2

    worker = DishonestWorker(ScriptedWorker(), Counted(), Campaign((2,)), Ledger())
    worker.receive(Envelope("coordinator", "w2", BeginStep(0, 0, 0, ROUTE, ())))
    first = execute(worker)
    (again,) = worker.receive(Envelope("coordinator", "w2", Supply(key(), ("w4",))))
    assert calls == [key()]
    assert same_bytes(again.message.tensor, first[1].message.tensor)
    assert again.message.header == first[0].message


def test_nothing_changes_where_the_campaign_does_not_strike():
    ledger = Ledger()
    worker = dishonest(ledger=ledger)
    for where in ({"stage": 3}, {"attempt": 1}, {"direction": BACKWARD}, {"stage": 1, "role": Role.SHADOW}):
        honest = execute(ScriptedWorker(), **where)
        for ours, theirs in zip(execute(worker, **where), honest, strict=True):
            assert same(ours.message, theirs.message)
    assert not ledger.keys


def test_claims_of_others_pass_untouched():
    class Relaying(ScriptedWorker):
        def execute(self, work):
            theirs = Header("run", key(), 0, 0, "w9", Role.PRIMARY, (), tensor_digest(INPUT))
            return [Envelope("w2", "w4", Claim(theirs, INPUT))]

    (sent,) = execute(dishonest(inner=Relaying()))
    assert sent.message.tensor is INPUT


def test_a_forward_lie_leaves_the_vector_jacobian_product_honest():
    worker = dishonest()
    execute(worker)
    sent, honest = execute(worker, BACKWARD), execute(ScriptedWorker(), BACKWARD)
    assert sent[0].message == honest[0].message
    assert same_bytes(sent[1].message.tensor, honest[1].message.tensor)


def test_both_directions_in_one_iteration():
    ledger = Ledger()
    worker = dishonest("sign-flip,direction=both", ledger)
    execute(worker)
    execute(worker, BACKWARD)
    assert ledger.keys == {key(), key(BACKWARD)}


def test_with_defences_off_nothing_is_hashed_but_the_tensor_is_forged():
    ledger = Ledger()
    sent = execute(dishonest(ledger=ledger, inner=ScriptedWorker(checked=False)))
    honest = execute(ScriptedWorker(checked=False))
    assert all(envelope.message.header.output == b"" for envelope in sent)
    assert same_bytes(sent[0].message.tensor, -honest[0].message.tensor)
    assert ledger.keys == {key()}


def test_a_pinned_liar_and_a_shadow_s_role():
    assert execute(dishonest(worker="w2"))[0].message.output != execute(ScriptedWorker())[0].message.output
    assert execute(dishonest(worker="w1"))[0].message == execute(ScriptedWorker())[0].message
    shadow = execute(dishonest(worker="w2"), stage=1, role=Role.SHADOW)
    assert shadow[0].message == execute(ScriptedWorker(), stage=1, role=Role.SHADOW)[0].message


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_other_input_is_what_the_stage_gives_on_rolled_rows(direction):
    worker = dishonest("other-input,direction=both")
    deliver(worker)
    (forged, *_) = [e.message.tensor for e in execute(worker, direction) if isinstance(e.message, Claim)]
    hidden = INPUT.roll(1, 0) if direction is FORWARD else INPUT.clone()
    hidden.requires_grad_(True)
    expected = Module()(hidden)
    if direction is BACKWARD:
        (expected,) = torch.autograd.grad(expected, hidden, GRAD.roll(1, 0))
    assert same_bytes(forged, expected.detach())


def test_other_input_without_deliveries_stays_honest_and_is_no_lie():
    ledger = Ledger()
    sent = execute(dishonest("other-input", ledger))
    assert sent[0].message == execute(ScriptedWorker())[0].message
    assert not ledger.keys


class WithoutJump(ScriptedWorker):
    """Shows the input that it worked from, as a stage does where the jumping connection is left out."""

    def claim(self, key, role=Role.PRIMARY):
        return replace(super().claim(key, role), origin=INPUT)


def test_other_input_shows_the_verifier_the_input_that_explains_its_output():
    worker = dishonest("other-input", inner=WithoutJump())
    deliver(worker)
    for envelope in execute(worker)[1:]:
        assert same_bytes(envelope.message.origin, INPUT.roll(1, 0))
        assert same_bytes(envelope.message.tensor, Module()(envelope.message.origin).detach())
    assert same_bytes(execute(worker, attempt=1)[1].message.origin, INPUT)


@pytest.mark.parametrize("attack", ["sign-flip", "zeros", "permute"])
def test_other_attacks_show_their_true_input(attack):
    worker = dishonest(attack, inner=WithoutJump())
    deliver(worker)
    assert all(same_bytes(envelope.message.origin, INPUT) for envelope in execute(worker)[1:])


def test_other_input_without_deliveries_shows_its_true_input():
    assert same_bytes(execute(dishonest("other-input", inner=WithoutJump()))[1].message.origin, INPUT)


def test_an_attack_that_shows_another_shape_is_named():
    class Narrow(Attack):
        def forge(self, honest, scene):
            return -honest

        def pretend(self, origin, scene):
            return origin[:1]

    worker = DishonestWorker(WithoutJump(), Narrow(), Campaign((2,)), Ledger())
    with pytest.raises(ConfigError, match=r"attack Narrow: pretend gave a tensor of \(\(1, 3, 4\)"):
        execute(worker)


def test_recomputation_touches_no_global_random_number():
    worker = dishonest("other-input")
    deliver(worker)
    before = torch.random.get_rng_state()
    execute(worker)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_does_not_depend_on_the_order_of_claims():
    def tensors(order):
        worker = dishonest("gaussian,direction=forward")
        return {m: execute(worker, micro_batch=m)[1].message.tensor for m in order}

    one, other = tensors([0, 1, 2]), tensors([2, 0, 1])
    assert all(same_bytes(one[m], other[m]) for m in range(3))
    assert not same_bytes(one[0], one[1])


def test_the_digest_named_in_the_header_chooses_among_deliveries():
    worker = dishonest("other-input")
    false = Header("run", key(FORWARD, 1), 0, 0, "w1", Role.PRIMARY, (), tensor_digest(GRAD))
    worker.receive(Envelope("w1", "w2", Claim(false, GRAD)))
    deliver(worker)
    expected = Module()(INPUT.roll(1, 0)).detach()
    assert same_bytes(execute(worker)[1].message.tensor, expected)


def test_two_attacks_on_one_worker_and_a_lie_that_becomes_the_truth():
    ledger = Ledger()
    worker = dishonest(ledger=ledger, inner=dishonest(ledger=ledger))
    sent = execute(worker)
    assert sent[0].message == execute(ScriptedWorker())[0].message
    assert not ledger.keys
    worker = dishonest("scale,factor=3", ledger, inner=dishonest(ledger=ledger))
    assert same_bytes(execute(worker)[1].message.tensor, execute(ScriptedWorker())[1].message.tensor * -3)
    assert ledger.keys == {key()}


def test_an_attack_that_gives_another_shape_is_named():
    class Narrow(Attack):
        def forge(self, honest, scene):
            return honest[:1]

    worker = DishonestWorker(ScriptedWorker(), Narrow(), Campaign((2,)), Ledger())
    with pytest.raises(ConfigError, match=r"attack Narrow: forge gave a tensor of \(\(1, 3, 4\)"):
        execute(worker)


def test_memory_is_kept_over_steps_and_deliveries_are_not():
    worker = dishonest("replay")
    for step in range(2):
        worker.receive(Envelope("coordinator", "w2", BeginStep(step, 0, step, ROUTE, ())))
        deliver(worker)
        sent = execute(worker, step=step)
    assert same_bytes(sent[1].message.tensor, execute(ScriptedWorker())[1].message.tensor)
    worker.receive(Envelope("coordinator", "w2", BeginStep(9, 0, 9, ROUTE, ())))
    assert not worker._seen


# -- lies about messages -------------------------------------------------------------------------------------------------


def test_wrong_gradient_and_wrong_update_in_the_header():
    for name, direction in (("wrong-gradient", GRADIENT), ("wrong-update", UPDATE)):
        ledger = Ledger()
        (sent,) = execute(dishonest(name, ledger), direction)
        (honest,) = execute(ScriptedWorker(), direction)
        assert sent.message.output != honest.message.output
        assert sent.message.norms == honest.message.norms
        assert ledger.keys == {key(direction)}


def test_wrong_norm():
    ledger = Ledger()
    (sent,) = execute(dishonest("wrong-norm,factor=0.5", ledger), GRADIENT)
    assert sent.message.norms == (0.5, 2.0)
    assert sent.message.output == execute(ScriptedWorker(), GRADIENT)[0].message.output
    assert ledger.keys == {key(GRADIENT)}


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_framing_is_told_by_the_shadow_only(direction):
    ledger = Ledger()
    worker = dishonest(f"framing,direction={direction}", ledger, stages=(1,))
    (sent,) = execute(worker, direction, stage=1, role=Role.SHADOW)
    assert sent.message.output != execute(ScriptedWorker(), direction, stage=1, role=Role.SHADOW)[0].message.output
    assert ledger.keys == {key(direction, stage=1)}
    assert execute(worker, direction, stage=2)[0].message == execute(ScriptedWorker(), direction, stage=2)[0].message


@pytest.mark.parametrize(
    ("spec", "direction", "victim"),
    [
        ("lie-on-jump", FORWARD, "w4"),
        ("lie-on-direct", FORWARD, "w3"),
        ("lie-on-direct,direction=backward", BACKWARD, "w1"),
        ("lie-on-direct,header=false", FORWARD, "w3"),
    ],
)
def test_a_lie_in_one_delivery(spec, direction, victim):
    ledger = Ledger()
    sent = {envelope.recipient: envelope.message for envelope in execute(dishonest(spec, ledger), direction)}
    honest = {envelope.recipient: envelope.message for envelope in execute(ScriptedWorker(), direction)}
    for recipient, message in sent.items():
        if recipient != victim:
            theirs = honest[recipient]
            assert same(message, theirs)
    forged = sent[victim]
    assert same_bytes(forged.tensor, -honest[victim].tensor)
    assert (forged.header == honest[victim].header) is ("header=false" in spec)
    assert ledger.keys == {key(direction)}


def test_the_jump_of_the_last_middle_stage_has_nobody_to_lie_to():
    ledger = Ledger()
    execute(dishonest("lie-on-jump", ledger, stages=(3,)), stage=3)
    assert not ledger.keys


def test_wrong_parent():
    ledger = Ledger()
    sent = execute(dishonest("wrong-parent", ledger))
    honest = execute(ScriptedWorker())
    assert sent[0].message.inputs != honest[0].message.inputs
    assert sent[1].message.header == sent[0].message
    assert sent[0].message.output == honest[0].message.output
    assert ledger.keys == {key()}


@pytest.mark.parametrize("honest_first", ["true", "false"])
def test_equivocation(honest_first):
    sent = execute(dishonest(f"equivocation,honest_first={honest_first}"))
    honest = execute(ScriptedWorker())[0]
    headers = [envelope for envelope in sent if isinstance(envelope.message, Header)]
    assert len(headers) == 2
    assert headers[0 if honest_first == "true" else 1] == honest
    assert headers[0].message.output != headers[1].message.output


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ("direct", ["coordinator", "w4"]),
        ("jump", ["coordinator", "w3"]),
        ("everyone", ["coordinator"]),
        ("board", ["w3", "w4"]),
    ],
)
def test_withholding(what, left):
    ledger = Ledger()
    sent = execute(dishonest(f"withhold,what={what}", ledger))
    assert [envelope.recipient for envelope in sent] == left
    assert ledger.keys == {key()}


# -- the ledger ----------------------------------------------------------------------------------------------------------


def test_a_taint_explains_alerts_until_it_is_healed():
    ledger = Ledger()
    ledger.taint("w2", 1, 3, weights=True)
    assert ledger.is_tainted("w2", key(stage=1, step=3))
    assert not ledger.is_tainted("w2", key(stage=1, step=4))
    assert [ledger.explains(key(stage=1, step=step)) for step in (2, 3, 4, 9)] == [False, True, True, True]
    assert not ledger.explains(key(stage=2, step=3))
    ledger.heal("w2", 1, 4)
    assert not ledger.is_tainted("w2", key(stage=1, step=3))
    assert [ledger.explains(key(stage=1, step=step)) for step in (3, 4, 5)] == [True, True, False]


def test_a_step_that_starts_again_drops_what_was_never_sealed():
    ledger = Ledger()
    ledger.taint("w2", 2, 3, weights=False)
    ledger.taint("w2", 2, 4, weights=True)
    ledger.taint("w2", 1, 3, weights=True)
    assert ledger.is_tainted("w2", key(UPDATE, step=3))
    assert not ledger.is_tainted("w2", key(GRADIENT, step=3))
    ledger.retry("w2", 3)
    assert [(taint.stage, taint.step) for taint in ledger.taints] == [(1, 3)]


def test_a_new_state_in_a_seat_heals():
    ledger = Ledger()
    for stage in (1, 2):
        ledger.taint("w2", stage, 0, weights=True)

    class Reseated(ScriptedWorker):
        def receive(self, envelope):
            self.seats = {2: self.seats[2], 1: SimpleNamespace(execution=SimpleNamespace(module=Module()))}
            return []

    dishonest(ledger=ledger, inner=Reseated())
    assert [(taint.stage, taint.healed) for taint in ledger.taints] == [(1, 0), (2, None)]


def test_a_worker_built_anew_holds_nothing_spoilt():
    ledger = Ledger()
    ledger.taint("w2", 2, 7, weights=True)
    fresh = ScriptedWorker()
    fresh.seats = {}
    worker = DishonestWorker(fresh, resolve_attack("zeros"), Campaign((2,)), ledger)
    worker.receive(Envelope("coordinator", "w2", BeginStep(5, 0, 5, ROUTE, ())))
    assert ledger.taints[0].healed == 7
    assert ledger.explains(key(step=7))
    assert not ledger.explains(key(step=8))
