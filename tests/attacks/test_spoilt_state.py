"""Lies that sit in a worker's state, told by a real worker: w2, primary of stage 2 and shadow of stage 1 of a tiny Llama.

The same messages are fed to an honest w2 and to a dishonest one; what they post to the board is compared.
"""

import functools

import pytest
import torch
import transformers

from holdfast.attacks import Campaign, DishonestWorker, Ledger, resolve_attack
from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.config import OptimizerConfig
from holdfast.digest import state_digest, tensor_digest
from holdfast.execution import StageExecution, StepShape
from holdfast.inbox import Boundary
from holdfast.message import Accepted, BeginStep, Envelope, Seal, StateTransfer, Update
from holdfast.optimizer import AdamW
from holdfast.partition.module import StageModule
from holdfast.partition.plan import make_plan
from holdfast.partition.skeleton import prepare_config
from holdfast.route import plain_route
from holdfast.schedule.gpipe import gpipe
from holdfast.stage import Terms
from holdfast.worker import Hardware, Worker

ROUTE = plain_route(("w0", "w1", "w2", "w3", "w4"), ("w0", "w4"), shadowed=True)
MICRO_BATCHES = 2
SHAPE = (2, 4, 16)


@functools.cache
def split():
    config = prepare_config(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=5,
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    return config, make_plan(config, 5)


def execution(stage):
    config, plan = split()
    return StageExecution(StageModule(config, plan, stage), AdamW(OptimizerConfig()), StepShape(MICRO_BATCHES))


@functools.cache
def state(stage):
    generator = torch.Generator().manual_seed(stage)
    parameters = dict(execution(stage).module.named_owned_parameters())
    weights = {name: torch.randn(p.shape, generator=generator) * 0.2 for name, p in parameters.items()}
    moments = {f"{name}.{kind}": torch.zeros_like(p) for name, p in weights.items() for kind in ("exp_avg", "exp_avg_sq")}
    return StageState(stage, 0, 0, weights, moments)


def digests():
    return tuple(state_digest(state(stage)) if stage in (1, 2) else b"" for stage in range(5))


def tensor(step, direction, stage, micro_batch):
    seed = hash((step, direction is Direction.FORWARD, stage, micro_batch))
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


class Rig:
    """Plays everybody else: feeds w2 the inputs of its stages and the orders of the coordinator."""

    def __init__(self, spec=None, **campaign):
        terms = Terms("run", True, lambda i: list(gpipe(5, i, MICRO_BATCHES)), lambda i: MICRO_BATCHES, True)
        self.ledger = Ledger()
        self.worker = Worker("w2", execution, terms, Boundary(SHAPE, torch.float32), Hardware((1.0,) * 5))
        if spec is not None:
            self.worker = DishonestWorker(self.worker, resolve_attack(spec), Campaign(**campaign), self.ledger)
        self.posted = {}
        self.hand_out_states()

    def hand_out_states(self):
        for stage, role in ((1, Role.SHADOW), (2, Role.PRIMARY)):
            self.tell(StateTransfer(state(stage), role), "w0")

    def tell(self, message, sender="coordinator"):
        self.note(self.worker.receive(Envelope(sender, "w2", message)))
        while (work := self.worker.next_work(0)) is not None:
            self.note(self.worker.execute(work))

    def note(self, envelopes):
        for envelope in envelopes:
            if isinstance(envelope.message, Header):
                self.posted[envelope.message.key] = envelope.message

    def begin(self, step=0, attempt=0):
        self.tell(BeginStep(step, attempt, step, ROUTE, digests()))
        for m in range(MICRO_BATCHES):
            for direction, stage in ((Direction.FORWARD, 0), (Direction.FORWARD, 1), (Direction.BACKWARD, 3)):
                self.deliver(ClaimKey(step, attempt, direction, stage, m))
            self.accept_own(ClaimKey(step, attempt, Direction.BACKWARD, 2, m))

    def deliver(self, key):
        sent = tensor(key.step, key.direction, key.stage, key.micro_batch)
        header = Header("run", key, key.step, 1, f"w{key.stage}", Role.PRIMARY, (), tensor_digest(sent))
        self.tell(Claim(header, sent), f"w{key.stage}")
        self.tell(Accepted(key, header.output))

    def accept_own(self, key):
        """g_2 goes from the primary of 2 to the shadow of 1, which is the same worker."""
        sent = tensor(key.step, key.direction, key.stage, key.micro_batch)
        header = Header("run", key, key.step, 1, "w3", Role.SHADOW, (), tensor_digest(sent))
        self.tell(Accepted(key, header.output))
        self.tell(Claim(header, sent), "w3")

    def finish(self, step=0, attempt=0, *, seal=True):
        self.tell(Update(step, attempt, 1.0, 1e-3))
        if seal:
            self.tell(Seal(step + 1))


def key(direction, stage=2, step=0, attempt=0, micro_batch=0):
    whole = direction in (Direction.GRADIENT, Direction.UPDATE)
    return ClaimKey(step, attempt, direction, stage, WHOLE_STEP if whole else micro_batch)


def run(spec=None, steps=1, **campaign):
    rig = Rig(spec, **{"stages": (2,), **campaign}) if spec else Rig()
    for step in range(steps):
        rig.begin(step)
        rig.finish(step)
    return rig


def differing(rig, steps=1):
    """Keys whose headers are not those of an honest w2."""
    honest = run(steps=steps).posted
    assert rig.posted.keys() == honest.keys()
    return {key for key, header in rig.posted.items() if header.output != honest[key].output}


def test_an_honest_worker_posts_the_same_twice_and_everything():
    rig = run(steps=2)
    assert not differing(rig, steps=2)
    assert len(rig.posted) == 2 * 2 * (2 * MICRO_BATCHES + 2)


def test_a_gradient_altered_in_the_state_is_said_and_goes_into_the_update():
    rig = run("wrong-gradient,mode=state")
    assert differing(rig) == {key(Direction.GRADIENT), key(Direction.UPDATE)}
    assert rig.posted[key(Direction.GRADIENT)].norms == run().posted[key(Direction.GRADIENT)].norms
    assert rig.ledger.keys == differing(rig)


def test_a_gradient_altered_in_secret_shows_in_the_update_only():
    rig = run("wrong-gradient,mode=secret")
    assert differing(rig) == {key(Direction.UPDATE)} == rig.ledger.keys


def test_an_update_altered_in_the_state_says_the_digest_of_what_it_holds():
    rig = run("wrong-update,mode=state")
    assert differing(rig) == {key(Direction.UPDATE)} == rig.ledger.keys
    held = rig.worker.seats[2].execution.state(1)
    assert rig.posted[key(Direction.UPDATE)].output == state_digest(held)


def test_an_update_altered_in_secret_shows_in_the_next_step():
    rig = run("wrong-update,mode=secret", steps=2, first_step=0, rate=1.0)
    wrong = differing(rig, steps=2)
    assert key(Direction.UPDATE) not in wrong
    assert {key(Direction.FORWARD, step=1, micro_batch=m) for m in range(MICRO_BATCHES)} <= wrong
    assert rig.ledger.keys == {lie for lie in wrong if lie.stage == 2}
    assert all(rig.ledger.explains(lie) for lie in wrong), "it believes itself: its shadow of stage 1 is wrong as well"
    assert not rig.ledger.explains(key(Direction.BACKWARD, stage=1, step=0))


def test_a_secret_update_that_is_never_sealed_spoils_nothing():
    rig = Rig("wrong-update,mode=secret", stages=(2,))
    rig.begin()
    rig.finish(seal=False)
    assert rig.ledger.tainted_stages("w2") == {2}
    rig.begin(attempt=1)
    rig.finish(attempt=1)
    assert not rig.ledger.tainted_stages("w2")
    honest = Rig()
    honest.begin(attempt=1)
    honest.finish(attempt=1)
    assert {k: h.output for k, h in honest.posted.items()}.items() <= {k: h.output for k, h in rig.posted.items()}.items()


def test_a_corrupt_shadow_gives_false_verdicts_and_an_honest_primary():
    rig = run("corrupt-shadow", stages=(1,))
    wrong = differing(rig)
    assert {claim.stage for claim in wrong} == {1}
    assert {key(direction, stage=1) for direction in (Direction.FORWARD, Direction.BACKWARD, Direction.GRADIENT)} <= wrong
    assert rig.ledger.keys == wrong


def test_a_corrupt_shadow_is_sound_again_after_a_new_state():
    rig = Rig("corrupt-shadow", stages=(1,), rate=1.0)
    rig.begin()
    rig.hand_out_states()
    rig.posted.clear()
    rig.begin(attempt=1)
    honest = Rig()
    honest.begin(attempt=1)
    assert {k: h.output for k, h in rig.posted.items()} == {k: h.output for k, h in honest.posted.items()}
    assert not rig.ledger.tainted_stages("w2")


def test_a_spoilt_state_shares_no_memory_with_what_was_sent():
    before = {name: weight.clone() for name, weight in state(1).weights.items()}
    run("corrupt-shadow", stages=(1,))
    assert all(torch.equal(before[name], state(1).weights[name]) for name in before)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_other_input_runs_the_real_stage_and_leaves_no_trace(direction):
    rig = run(f"other-input,direction={direction}")
    wrong = {key(Direction(direction), micro_batch=m) for m in range(MICRO_BATCHES)}
    assert differing(rig) == wrong == rig.ledger.keys
