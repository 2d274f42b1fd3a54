"""A member that speaks the wire with code of its own: caught or shut out, and the weights are those of a run without it."""

from __future__ import annotations

import secrets
from functools import cache
from typing import Any

import pytest

from holdfast.claim import Role
from holdfast.config import RunConfig, resolve
from holdfast.event import Alert, Banned, Event, RolledBack, Ruling, StepSealed, WorkerLost
from holdfast.evidence.authority import Authority
from holdfast.evidence.identity import generate
from holdfast.machines import HOST, TRUSTED, Machines, Patience
from holdfast.result import RunResult
from holdfast.settings import merge
from holdfast.station import ANYTIME
from holdfast.toml import assign
from holdfast.trainer import Trainer
from holdfast.transport import Credentials, Endpoint, WireOptions
from holdfast.transport.grpc import GrpcTransport

from . import hostile as h
from .hosted import PATIENCE_S, wait_for

LIAR = "w2"
SMALL: dict[str, Any] = {
    "model": {"name": "gpt2:layers=5,width=32,heads=2"},
    "data": {"name": "synthetic:order=1,symbols=32,tokens=40000", "sequence_length": 16, "validation_tokens": 512},
    "pipeline": {"stages": 5, "micro_batches": 2, "micro_batch_size": 2},
    "training": {"steps": 6},
}
OPTIONS = WireOptions(heartbeat_s=1.0, silence_s=10.0, reconnect_s=3.0, linger_s=0.5)

pytestmark = pytest.mark.timeout(280)


def config_of(*assignments: str) -> RunConfig:
    ban = ["defence.ban_policy=ban", "defence.ban_after=2", "defence.deadline_s=8"]
    return resolve(assign(merge(SMALL, {}), [*ban, *assignments]))


@cache
def clean() -> str:
    return Trainer(resolve(merge(SMALL, {}))).run().weights_digest


class Siege:
    """A run with the hostile machine `LIAR` in it."""

    def __init__(self, mischief: h.Mischief, *assignments: str) -> None:
        self.config = config_of(*assignments)
        self.events: list[Event] = []
        self.crew: h.Infiltrated
        self._mischief = mischief
        self.is_shut_out = False
        trainer = Trainer(self.config, observers=[self._observe], open_engine=self._open)
        self.result: RunResult = trainer.run()
        assert self.result.weights_digest == clean()
        blamed = {worker for ruling in self.of(Ruling) for worker in ruling.culprits}
        lost = {lost.worker for lost in self.of(WorkerLost)} | {banned.worker for banned in self.of(Banned)}
        assert blamed | lost <= {LIAR}, f"somebody honest was blamed or lost: {self.of(Ruling)}, {self.of(WorkerLost)}"
        assert self.of(RolledBack) == []

    def _observe(self, event: Event, _seconds: float) -> None:
        """The step in which the liar is lost or banned ends when it has been shut out: at the end of the run all are."""
        self.events.append(event)
        gone = [lost.worker for lost in (*self.of(WorkerLost), *self.of(Banned))]
        if isinstance(event, StepSealed) and LIAR in gone and not self.is_shut_out:
            self.is_shut_out = bool(wait_for(lambda: self.crew.hostile.is_shut_out))

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def is_convicted(self) -> bool:
        return any(LIAR in ruling.culprits for ruling in self.of(Ruling))

    @property
    def is_banned(self) -> bool:
        """By the run, by the crew, and at the wire."""
        return [banned.worker for banned in self.of(Banned)] == self.crew.banned == [LIAR] and self.is_shut_out

    @property
    def reasons(self) -> str:
        return "; ".join(lost.reason for lost in self.of(WorkerLost))

    def _open(self) -> Machines:
        run, identity = secrets.token_hex(16), generate()
        authority = Authority.generate(identity, run)
        credentials = Credentials(authority.certificate, *authority.credentials(HOST, identity))
        wire = GrpcTransport(Endpoint(HOST, TRUSTED), credentials, run=run, options=OPTIONS, anytime=ANYTIME)
        host = Endpoint(HOST, TRUSTED, wire.address)

        def crew(_ended: Any) -> h.Infiltrated:
            self.crew = h.Infiltrated(self.config, LIAR, self._mischief, run, host, authority, OPTIONS)
            return self.crew

        return Machines(wire, crew, Patience(PATIENCE_S, PATIENCE_S, 2.0, PATIENCE_S))


def test_one_that_means_no_harm_is_one_of_them() -> None:
    """Else nothing below would show anything."""
    siege = Siege(h.Mischief())
    assert siege.of(Alert) == siege.of(WorkerLost) == []
    assert siege.result.claims_replaced == 0


LIES = {
    "flipped signs": h.SignFlip(),
    "digests of nothing": h.Headers(Role.PRIMARY),
    "two accounts": h.Headers(Role.PRIMARY, beside=True),
    "framing": h.Headers(Role.SHADOW),
}


@pytest.mark.parametrize("lie", [pytest.param(lie, marks=[pytest.mark.slow] * (lie != "flipped signs")) for lie in LIES])
def test_who_lies_under_its_signature_is_named_and_banned(lie: str) -> None:
    siege = Siege(LIES[lie])
    assert siege.is_convicted
    assert siege.is_banned


@pytest.mark.slow
@pytest.mark.parametrize("speech", [h.everything_again, h.orders, h.states_of_itself], ids=lambda speech: speech.__name__)
def test_what_it_may_not_say_is_not_heard(speech: h.Speech) -> None:
    siege = Siege(h.AtEveryStep(speech))
    assert siege.result.claims_replaced == 0


@pytest.mark.slow
def test_thousands_of_false_complaints_ban_who_makes_them() -> None:
    Siege(h.AtEveryStep(h.complaints), "defence.ban_policy=never")


@pytest.mark.slow
def test_who_says_again_that_it_is_there_is_out() -> None:
    siege = Siege(h.AtEveryStep(h.present_again))
    assert "without having left" in siege.reasons
    assert siege.is_shut_out


CRIMES: dict[str, tuple[h.Deed, str]] = {
    "the name of another": (h.as_another("w1", "coordinator"), "for whom it does not speak"),
    "the name of the coordinator": (h.as_another("coordinator", "coordinator"), "for whom it does not speak"),
    "an envelope in disguise": (h.in_disguise("w1"), "in a frame from"),
    "a frame beyond all limits": (h.announces(1 << 50), "the limit is"),
    "a bomb": (h.bomb, ""),
    "a packet beyond all limits": (h.huge_packet, "not back within"),
    "a gap": (h.gap, "arrived after part"),
    "noise": (h.noise, "packet"),
    "the relay in another's name": (h.relays_as_another, "relayed"),
    "silence of the machine in a frame": (h.dead_in_mid_frame, "nothing was heard"),
    "silence of the worker in a frame": (h.silent_in_mid_frame, "no progress"),
}


@pytest.mark.parametrize("crime", [pytest.param(c, marks=[pytest.mark.slow] * (c != "the name of another")) for c in CRIMES])
def test_who_breaks_the_wire_s_rules_is_shut_out(crime: str) -> None:
    deed, reason = CRIMES[crime]
    siege = Siege(h.AtEveryStep(deed=deed))
    assert [lost.worker for lost in siege.of(WorkerLost)] == [LIAR]
    assert reason in siege.reasons
    assert siege.is_shut_out


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["w1", "w3"])
def test_orders_in_the_coordinator_s_name_to_another_worker_do_no_harm(victim: str) -> None:
    """The worker shuts its link with the forger; what the two owe each other then goes through the coordinator."""
    Siege(h.AtEveryStep(deed=h.as_another("coordinator", victim)))
