"""A run by hand: the real coordinator, and around it honest workers made of nothing but digests.

    what is ready (headers whose inputs are known, findings, adopted states, losses) --> one is delivered --> orders are obeyed

Lies, silence and deaths are told to the world beforehand; everybody else does his duty. `spoilt` workers send states with the
digest that is given there, `denying` ones say that another state has arrived, whatever has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from holdfast.claim import ClaimKey, Direction, Header, Role, StageState
from holdfast.coordinator import Coordinator
from holdfast.membership import Membership
from holdfast.message import (
    Accepted,
    BeginStep,
    Envelope,
    Examine,
    Finding,
    Lacking,
    NewRoute,
    SendState,
    StateAdopted,
    StateTransfer,
    Update,
)
from holdfast.optimizer import Clipping
from holdfast.recover.replace import Replace
from holdfast.route import Route, plain_route
from holdfast.step import Inspection, Policy
from holdfast.verify.chain import parents
from holdfast.verify.spotcheck import Sampling

LETTERS = {"a": Direction.FORWARD, "g": Direction.BACKWARD, "G": Direction.GRADIENT, "U": Direction.UPDATE}
FORWARD, BACKWARD, GRADIENT, UPDATE = Direction


def state_of(stage: int, version: int, digest: bytes) -> StageState:
    """A state that is nothing but its digest."""
    return StageState(stage, version, version, {"digest": digest}, {})  # type: ignore[dict-item]


def state_digest(state: StageState) -> bytes:
    return state.weights["digest"]  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def _digests_for_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.deliveries.state_digest", state_digest)


@dataclass
class World:
    """K = `size` stages on w0 (the initiator, both ends), w1, w2, ...; the first states have been shown.

    `alone`: claims are signed but nobody shadows anything; `inspection` says what is spot-checked.
    """

    size: int = 5
    micro_batches: int = 2
    remedy: Any = None
    shadowed: bool = True
    ban: str = "never"
    ban_after: int = 3
    alone: bool = False
    inspection: Inspection | None = None

    def __post_init__(self) -> None:
        names = ["w0", *(f"w{i}" for i in range(1, self.size - 1)), "w0"]
        doubled = self.shadowed and not self.alone
        route = plain_route(names, ["w0"], shadowed=doubled)
        members = Membership(route, 0, dict.fromkeys(route.stages, b"v0"), shadowed=doubled)
        for stage, worker in members.missing():
            members.adopted(worker, StateAdopted(stage, 0, Role.PRIMARY, b"v0"))
        self.clipped: list[dict[int, tuple[float, ...]]] = []
        self.coordinator = Coordinator(
            "run",
            members,
            Policy(
                self.shadowed,
                self.remedy or Replace(),
                self.micro_batches,
                self._clip,
                lambda step: 0.5**step,
                64,
                deadline_s=10.0,
                ban=self.ban,  # type: ignore[arg-type]
                ban_after=self.ban_after,
                shadowed=doubled,
                inspection=self.inspection or Inspection(Sampling(0)),
            ),
        )
        self.route: Route = route
        self.began = BeginStep(-1, 0, 0, route, ())
        self.sent: list[Envelope] = []
        self.events: list[Any] = []
        self.accepted: dict[ClaimKey, bytes] = {}
        self.update: Update | None = None
        self.updates: dict[int, Update] = {}
        self.posted: set[tuple[str, object]] = set()
        self.waiting: list[Envelope] = []
        self.dead: set[str] = set()
        self.changes: list[tuple[str, str, int, int, dict[str, Any] | None]] = []
        self.asked: list[tuple[str, int, str]] = []
        self.timers: list[tuple[object, float]] = []
        self.examined: list[Envelope] = []
        self.spoilt: dict[str, bytes] = {}
        self.denying: set[str] = set()
        self.withheld: Callable[[ClaimKey], bool] = lambda _key: False

    def _clip(self, norms: Any) -> Clipping:
        self.clipped.append(dict(norms))
        total = sum(norm for stage in norms for norm in norms[stage])
        return Clipping(total, 1.0 / (1.0 + total))

    # -- what is true ------------------------------------------------------------------------------------------------

    def key(self, text: str, **change: Any) -> ClaimKey:
        """`a21` is the forward claim of stage 2, micro-batch 1, of the present attempt; g is backward, G gradient, U update."""
        m = int(text[2:] or -1)
        return replace(ClaimKey(self.began.step, self.began.attempt, LETTERS[text[0]], int(text[1]), m), **change)

    def truth(self, key: ClaimKey) -> bytes:
        """What an honest holder would claim; an update depends on its clip scale and rate, nothing on the attempt."""
        update = self.updates.get(key.step)
        order = (update.clip_scale, update.learning_rate) if update and key.direction is UPDATE else ()
        version = key.step
        return repr((str(key.direction), key.stage, key.micro_batch, version, self.route.bypassed, order)).encode()

    def honest(self, worker: str, key: ClaimKey) -> Header:
        known = {parent: self.accepted.get(parent, self.truth(parent)) for parent in parents(key, self.route)}
        role = self.route.role(key.stage, worker) or Role.PRIMARY
        norms = (float(key.stage), 1.0) if key.direction is GRADIENT else ()
        version, epoch = self.began.version, self.route.epoch
        return Header("run", key, version, epoch, worker, role, tuple(known.values()), self.truth(key), norms)

    # -- who misbehaves ----------------------------------------------------------------------------------------------

    def lie(self, worker: str, text: str, attempts: int = 1, steps: int = 1, **change: Any) -> World:
        """`worker` says `change` about claims whose name starts with `text`, in the first attempts of the first steps."""
        self.changes.append((worker, text, attempts, steps, change))
        return self

    def silence(self, worker: str, text: str) -> World:
        self.changes.append((worker, text, 99, 99, None))
        return self

    def _told(self, worker: str, key: ClaimKey) -> Header | None:
        letter = next(letter for letter, direction in LETTERS.items() if direction is key.direction)
        name = f"{letter}{key.stage}" + (str(key.micro_batch) if key.micro_batch >= 0 else "")
        header = self.honest(worker, key)
        for who, text, attempts, steps, change in self.changes:
            if who == worker and name.startswith(text) and key.attempt < attempts and key.step < steps:
                if change is None:
                    return None
                header = replace(header, **change)
        return header

    # -- one delivery at a time --------------------------------------------------------------------------------------

    def begin(self, step: int | None = None) -> World:
        self.take(self.coordinator.begin(self.began.step + 1 if step is None else step))
        return self

    def say(self, sender: str, message: Any) -> list[Envelope]:
        """Deliver one message; the answer is what the coordinator sends."""
        return self.take(self.coordinator.receive(Envelope(sender, "coordinator", message)))

    def post(self, sender: str, text: str, **change: Any) -> list[Envelope]:
        """Deliver the header of `sender` about one claim: the honest one, but for `change`."""
        key = self.key(text)
        self.posted.add((sender, key))
        return self.say(sender, replace(self.honest(sender, key), **change))

    def lose(self, worker: str) -> list[Envelope]:
        self.dead.add(worker)
        return self.take(self.coordinator.worker_lost(worker, "killed"))

    def ring(self) -> list[Envelope]:
        """The timer that was set first goes off."""
        self.timers += self.coordinator.pending_timers()
        token, _ = self.timers.pop(0)
        return self.take(self.coordinator.on_timer(token))

    def take(self, envelopes: Iterable[Envelope]) -> list[Envelope]:
        """Obey orders; remember the rest."""
        envelopes = list(envelopes)
        for envelope in envelopes:
            self.sent.append(envelope)
            self._obey(envelope)
        self.events += self.coordinator.pending_events()
        return envelopes

    def _obey(self, envelope: Envelope) -> None:
        match envelope.message:
            case BeginStep() as order if order != self.began:
                self.began, self.route, self.update = order, order.route, None
                self.accepted, self.posted, self.waiting = {}, set(), []
            case NewRoute(route):
                self.route = route
            case Accepted(key, output):
                assert self.accepted.setdefault(key, output) == output, f"two rulings on the {key}"
            case Update() as order:
                assert self.update in (None, order), "two orders to update"
                self.update = self.updates[order.step] = order
            case Examine(key):
                self.examined.append(envelope)
                if not self.withheld(key):
                    norms = (float(key.stage), 1.0) if key.direction is GRADIENT else ()
                    self._later(envelope.recipient, Finding(key, self.truth(key), norms))
                elif self.examined.count(envelope) > 1:
                    self._later(envelope.recipient, Lacking(key, True, ()))
            case SendState(stage, version, to, role) if role is not None:
                self.asked.append((envelope.recipient, stage, to))
                if envelope.recipient not in self.dead:
                    digest = self.spoilt.get(envelope.recipient, self.coordinator.membership.digests[stage])
                    if to == "coordinator":
                        self._later(envelope.recipient, StateTransfer(state_of(stage, version, digest), role))
                    else:
                        self._show(to, stage, version, role, digest)
            case StateTransfer(state, Role() as role):
                self._show(envelope.recipient, state.stage, state.version, role, state_digest(state))
            case _:
                pass

    def _show(self, worker: str, stage: int, version: int, role: Role, digest: bytes) -> None:
        if worker not in self.dead:
            self._later(worker, StateAdopted(stage, version, role, b"" if worker in self.denying else digest))

    def _later(self, sender: str, message: Any) -> None:
        self.waiting.append(Envelope(sender, "coordinator", message))

    def ready(self) -> list[Envelope]:
        """Everything that could reach the coordinator next."""
        if self.coordinator.idle() or self.coordinator.broken or self.began.step < 0:
            return list(self.waiting)
        found = [self._header(worker, key) for key in self._keys() for worker in self.route.holders(key.stage)]
        return self.waiting + [envelope for envelope in found if envelope is not None and envelope.sender not in self.dead]

    def _keys(self) -> list[ClaimKey]:
        active, m_all = self.route.active, range(self.micro_batches)
        step, attempt = self.began.step, self.began.attempt
        keys = [ClaimKey(step, attempt, FORWARD, i, m) for i in active[:-1] for m in m_all if self.shadowed]
        keys += [ClaimKey(step, attempt, BACKWARD, i, m) for i in active[:0:-1] for m in m_all if self.shadowed]
        updating = [i for i in active if i not in self.route.frozen]
        keys += [ClaimKey(step, attempt, GRADIENT, i) for i in updating]
        return keys + [ClaimKey(step, attempt, UPDATE, i) for i in updating if self.update is not None]

    def _header(self, worker: str, key: ClaimKey) -> Envelope | None:
        if (worker, key) in self.posted or not all(self._knows(worker, parent) for parent in self._needs(key)):
            return None
        header = self._told(worker, key)
        return None if header is None else Envelope(worker, "coordinator", header)

    def _needs(self, key: ClaimKey) -> list[ClaimKey]:
        if key.direction is UPDATE or not self.shadowed:
            return []
        if key.direction is not GRADIENT:
            return list(parents(key, self.route))
        whole = [replace(key, direction=BACKWARD, micro_batch=m) for m in range(self.micro_batches)]
        return [parent for each in whole for parent in parents(each, self.route)]

    def _knows(self, worker: str, key: ClaimKey) -> bool:
        """It was ruled on, or the worker has computed it itself."""
        return key in self.accepted or (worker, key) in self.posted

    def deliver(self, pick: Callable[[list[Envelope]], Envelope] = lambda ready: ready[0]) -> bool:
        """Let one ready message arrive; with nothing ready, let the timer go off. False: the step is over."""
        if self.coordinator.broken or (self.coordinator.idle() and not self.waiting):
            return False
        ready = self.ready()
        if not ready:
            self.ring()
            return True
        envelope = pick(ready)
        if envelope in self.waiting:
            self.waiting.remove(envelope)
        if isinstance(envelope.message, Header):
            self.posted.add((envelope.sender, envelope.message.key))
        self.take(self.coordinator.receive(envelope))
        return True

    def run(self, limit: int = 2000, **pick: Any) -> World:
        """Deliver until the step is sealed, or the run is broken."""
        for _ in range(limit):
            if not self.deliver(**pick):
                return self
        raise AssertionError(f"not sealed after {limit} deliveries: {self.coordinator.describe()}")

    def until_computed(self) -> World:
        """Deliver until every forward and backward claim is accepted."""
        while not all(key in self.accepted for key in self._keys() if key.direction in (FORWARD, BACKWARD)):
            assert self.deliver()
        return self

    def step(self, **pick: Any) -> World:
        return self.begin().run(**pick)

    # -- what came of it ---------------------------------------------------------------------------------------------

    def of(self, *kinds: type) -> list[Any]:
        """The events of these kinds, in order."""
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def sealed(self) -> dict[int, bytes]:
        return self.coordinator.membership.digests


@pytest.fixture(scope="session")
def world() -> type[World]:
    """A new world a call: `world(size=6, remedy=Skip())`."""
    return World
