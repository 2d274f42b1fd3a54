"""A worker that speaks the protocol out of turn: states that nobody asked for, claims of nothing, orders to strangers.

Each of these once unseated an honest worker or ended the run. None may change a bit, convict or lose anybody honest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.cluster import Cluster, Deployment
from holdfast.config import resolve
from holdfast.digest import weights_digest
from holdfast.engine import MemoryEngine
from holdfast.event import Event, Reseated, Ruling, WorkerLost
from holdfast.job import Job, prepare
from holdfast.message import (
    BeginStep,
    Complaint,
    Envelope,
    Finding,
    Loss,
    Message,
    SendState,
    StateAdopted,
    StateTransfer,
    Supply,
    TiedGradient,
)
from holdfast.stage import ARCHIVE, INITIATOR, TRUSTED_PARTIES
from holdfast.toml import assign

STEPS = 2
LIAR = "w1"
SETTINGS = [
    "model.name=gpt2:layers=6,width=16,heads=2",
    "data.name=synthetic",
    "data.sequence_length=8",
    "pipeline.micro_batches=2",
    "pipeline.micro_batch_size=2",
    f"training.steps={STEPS}",
]
Speech = Callable[["Hostile", BeginStep], Sequence[tuple[str, Message]]]


class Hostile:
    """An honest worker that says `speech` besides, at the beginning of every step, and may be deaf to some orders."""

    def __init__(self, inner: Any, speech: Speech, deaf: Callable[[Message], bool] = lambda _message: False) -> None:
        self.inner, self.speech, self.deaf = inner, speech, deaf

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def receive(self, envelope: Envelope) -> list[Envelope]:
        if self.deaf(envelope.message):
            return []
        told = list(self.inner.receive(envelope))
        if isinstance(envelope.message, BeginStep):
            told += [Envelope(self.inner.name, to, message) for to, message in self.speech(self, envelope.message)]
        return told

    def state(self, stage: int, **changes: Any) -> StageState:
        """Right names and shapes, junk inside."""
        state = self.inner._execution(stage).state(0)
        weights = {name: torch.zeros_like(tensor) for name, tensor in state.weights.items()}
        moments = {name: torch.zeros_like(tensor) for name, tensor in state.moments.items()}
        return replace(StageState(stage, 0, 0, weights, moments), **changes)


def junk_states(hostile: Hostile, begin: BeginStep) -> list[tuple[str, Message]]:
    """To both holders of a stage, to an heir of its own, to the initiator and to the archive."""
    to = [(3, "w3"), (3, "w4"), (1, "w2"), (0, INITIATOR), (2, ARCHIVE)]
    return [(name, StateTransfer(hostile.state(stage, version=begin.version), Role.PRIMARY)) for stage, name in to]


def broken_states(hostile: Hostile, begin: BeginStep) -> list[tuple[str, Message]]:
    """Stages that do not exist, states without weights, impossible numbers of updates."""
    broken = [
        StageState(99, begin.version, 0, {}, {}),
        StageState(-1, begin.version, 0, {}, {}),
        StageState(3, begin.version, 0, {}, {}),
        hostile.state(3, updates=-1),
    ]
    return [(name, StateTransfer(state, Role.SHADOW)) for state in broken for name in ("w3", "w4", "referee", ARCHIVE)]


def boasts(hostile: Hostile, begin: BeginStep) -> list[tuple[str, Message]]:
    """It claims to hold every stage: the sealed digests are told to all."""
    return [
        ("coordinator", StateAdopted(stage, begin.version, Role.PRIMARY, digest)) for stage, digest in enumerate(begin.digests)
    ]


def claims_of_nothing(hostile: Hostile, begin: BeginStep) -> list[tuple[str, Message]]:
    """Headers for micro-batches and stages that do not exist, whole-step claims too early, complaints about them."""
    key = ClaimKey(begin.step, begin.attempt, Direction.FORWARD, 1)
    keys = [
        replace(key, micro_batch=-1),
        replace(key, micro_batch=7),
        replace(key, direction=Direction.GRADIENT, micro_batch=1),
        replace(key, direction=Direction.UPDATE, micro_batch=WHOLE_STEP),
        replace(key, stage=99),
        replace(key, step=10**6, micro_batch=0),
    ]
    name, run = hostile.inner.name, hostile.inner._terms.run
    headers = [Header(run, k, begin.version, 0, name, Role.PRIMARY, (b"x",), b"y" * 32, (float("nan"),)) for k in keys]
    tensor = torch.zeros(2, 8, 16)
    return [
        *(("coordinator", hostile.inner.sign(header)) for header in headers),
        *(("coordinator", Complaint(k, "w2", b"")) for k in keys),
        *((worker, Claim(header, tensor)) for header in headers for worker in ("w2", "w3", "coordinator", "referee")),
    ]


def orders_of_strangers(hostile: Hostile, begin: BeginStep) -> list[tuple[str, Message]]:
    """What only the coordinator, the referee or the initiator may say."""
    key = ClaimKey(begin.step, begin.attempt, Direction.FORWARD, 2, 0)
    return [
        ("w2", replace(begin, attempt=5)),
        ("w3", Supply(key, (LIAR,))),
        ("w3", SendState(3, begin.version, LIAR, None)),
        ("coordinator", Finding(key, b"z" * 32)),
        ("coordinator", Loss(begin.step, begin.attempt, 0, float("nan"))),
        (INITIATOR, TiedGradient(begin.step, begin.attempt, 0, torch.ones(3, 3))),
    ]


class Company:
    def __init__(self, speech: Speech, deaf: Callable[[Message], bool] = lambda _message: False) -> None:
        self.speech, self.deaf = speech, deaf

    def play(self, actor: Any) -> Any:
        return Hostile(actor, self.speech, self.deaf) if actor.name == LIAR else actor


def train(job: Job, company: Company | None = None) -> tuple[str, list[Event]]:
    events: list[Event] = []
    cluster = Cluster(Deployment("run"), job, lambda event, _seconds: events.append(event), MemoryEngine(job.config, company))
    cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
    for step in range(STEPS):
        assert cluster.run_step(step) is None
        states = cluster.collect()
    return weights_digest({name: t for state in states.values() for name, t in state.weights.items()}), events


@pytest.fixture(scope="module")
def job() -> Job:
    return prepare(resolve(assign({}, SETTINGS)))


@pytest.fixture(scope="module")
def clean(job: Job) -> str:
    return train(job)[0]


@pytest.mark.parametrize("speech", [junk_states, broken_states, boasts, claims_of_nothing, orders_of_strangers])
def test_what_is_said_out_of_turn_changes_nothing(job: Job, clean: str, speech: Speech) -> None:
    digest, events = train(job, Company(speech))
    assert digest == clean
    convicted = {worker for event in events if isinstance(event, Ruling) for worker in event.culprits}
    lost = {event.worker for event in events if isinstance(event, WorkerLost)}
    assert convicted | lost <= {LIAR}


def test_who_does_not_show_its_state_is_not_waited_for(job: Job, clean: str) -> None:
    """The other holder has it too, and the archive takes only what was sealed."""
    company = Company(lambda _hostile, _begin: [], lambda message: isinstance(message, SendState) and message.to == ARCHIVE)
    assert train(job, company)[0] == clean


class TwoFaced(Hostile):
    """It sends trusted parties true states and workers false ones, so that nobody can prove anything against it."""

    def receive(self, envelope: Envelope) -> list[Envelope]:
        return [self.forged(told) for told in super().receive(envelope)]

    def forged(self, told: Envelope) -> Envelope:
        if not isinstance(told.message, StateTransfer) or told.recipient in (*TRUSTED_PARTIES, ARCHIVE):
            return told
        state = told.message.state
        return replace(told, message=replace(told.message, state=replace(state, updates=state.updates + 1)))


class TwoFacedCompany(Company):
    def play(self, actor: Any) -> Any:
        return TwoFaced(actor, self.speech) if actor.name == LIAR else actor


def test_a_true_state_reaches_its_new_holder_through_the_coordinator_and_nobody_loses_a_seat(clean: str) -> None:
    """Without shadows nobody else has what the liar holds, and every step others sit on its stage."""
    job = prepare(resolve(assign({}, [*SETTINGS, "defence.name=spot-check", "defence.redraw_every=1"])))
    digest, events = train(job, TwoFacedCompany(lambda _hostile, _begin: []))
    assert digest == clean
    assert any(isinstance(event, Reseated) and event.primaries[1] != LIAR for event in events), "it kept its stage"
    assert not [event for event in events if isinstance(event, (Ruling, WorkerLost))]


class Unshown(Hostile):
    """Where the jump is left out: it keeps its forward claims from the shadow, and shows the coordinator `instead` of them."""

    def __init__(self, inner: Any, instead: Callable[[Claim], Claim | None]) -> None:
        super().__init__(inner, lambda _hostile, _begin: [])
        self.instead = instead

    def receive(self, envelope: Envelope) -> list[Envelope]:
        return self.shown(super().receive(envelope))

    def execute(self, work: Any) -> list[Envelope]:
        return self.shown(self.inner.execute(work))

    def shown(self, told: Sequence[Envelope]) -> list[Envelope]:
        found = []
        for envelope in told:
            claim = envelope.message
            if isinstance(claim, Claim) and claim.header.key.direction is Direction.FORWARD:
                other = self.instead(claim) if envelope.recipient == "coordinator" else None
                found += [] if other is None else [replace(envelope, message=other)]
            else:
                found.append(envelope)
        return found


class UnshownCompany(Company):
    def __init__(self, instead: Callable[[Claim], Claim | None]) -> None:
        self.instead = instead

    def play(self, actor: Any) -> Any:
        return Unshown(actor, self.instead) if actor.name == LIAR else actor


@pytest.mark.parametrize(
    ("instead", "convicted"),
    [
        (lambda _claim: None, set()),
        (lambda claim: replace(claim, tensor=claim.tensor + 1), {LIAR}),
        (lambda claim: replace(claim, origin=claim.origin + 1), {LIAR}),
        (lambda claim: replace(claim, origin=None), {LIAR}),
    ],
    ids=["nothing", "another output", "another input", "no input"],
)
def test_without_the_jump_who_does_not_show_the_coordinator_either_is_replaced(
    clean: str, instead: Callable[[Claim], Claim | None], convicted: set[str]
) -> None:
    job = prepare(resolve(assign({}, [*SETTINGS, "defence.name=duplicate-only"])))
    digest, events = train(job, UnshownCompany(instead))
    assert digest == clean
    assert {event.worker for event in events if isinstance(event, WorkerLost)} == {LIAR}
    assert {worker for event in events if isinstance(event, Ruling) for worker in event.culprits} == convicted
