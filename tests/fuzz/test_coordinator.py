"""The coordinator under junk: a worker that says anything, well typed and wrong, changes no bit of what is sealed.

honest run, message by message --+--> coordinator --> the same seals, nobody but the liar named, a log that audits as intact
the liar, besides its duty  -----+
"""

from __future__ import annotations

import math
import random
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role
from holdfast.coordinator import Coordinator
from holdfast.errors import ProtocolError
from holdfast.event import Alert, Banned, Ruling, SpotChecked, WorkerLost
from holdfast.evidence.envelope import sign_header
from holdfast.evidence.identity import derived
from holdfast.evidence.log import EvidenceLog
from holdfast.evidence.notary import Notary, Register
from holdfast.likeness import Likeness
from holdfast.message import Complaint, Envelope, Examine, Finding, Flag, Loss, Message, SendState, StateAdopted
from holdfast.recover.registry import resolve_remedy
from holdfast.step import Inspection, Policy
from holdfast.verify.spotcheck import Sampling
from holdfast.verify.tolerance import Bound, Distance

K, M = 5, 2
NAMES = ("w0", "w1", "w2", "w3")
IDENTITIES = {name: derived(3, name) for name in (*NAMES, "coordinator")}
MESSAGES = typing.get_args(Message)
BY = st.sampled_from([*NAMES, "w9", "coordinator", "referee", ""])


@pytest.fixture(scope="module")
def signed(suite: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A world whose workers sign, and whose coordinator keeps the evidence; `heard` are all honest messages so far."""
    worlds, folder = suite("coordinator"), tmp_path_factory.mktemp("logs")

    class Signed(worlds.World):  # type: ignore[misc, name-defined]
        def __post_init__(self) -> None:
            super().__post_init__()
            self.path: Path = folder / "evidence.jsonl"
            self.path.unlink(missing_ok=True)
            keys = {name: identity.public for name, identity in IDENTITIES.items()}
            log = EvidenceLog(self.path, IDENTITIES["coordinator"])
            self.notary = Notary(Register("run", b"c" * 32, keys, tuple(keys)), log)
            old = self.coordinator
            self.notary.deployed("run", 0, old.membership.route)
            self.coordinator = Coordinator("run", old.membership, self.terms(old._policy), self.notary)
            self.heard: list[Envelope] = []
            self.junk_sent: list[Envelope] = []

        def terms(self, policy: Policy) -> Policy:
            return policy

        def _told(self, worker: str, key: ClaimKey) -> Header | None:
            header = super()._told(worker, key)
            return None if header is None else sign_header(header, IDENTITIES[worker])

        def deliver(self, pick: Any = None) -> bool:
            """One honest message, chosen by `draw`; remembered, for it may come twice."""

            def remembering(ready: list[Envelope]) -> Envelope:
                self.heard.append(pick(ready) if pick is not None else ready[0])
                return self.heard[-1]

            return bool(super().deliver(remembering))

        def junk(self, sender: str, message: Any) -> str:
            """A message of a stranger or of the liar: the only thing that it may raise is a ProtocolError."""
            try:
                answers = list(self.coordinator.receive(Envelope(sender, "coordinator", message)))
            except ProtocolError:
                return "refused"
            self.junk_sent += answers
            self.take(answers)
            return "answered" if answers else "ignored"

    return Signed


CLASSES = {"w0": "one", "w1": "one", "w2": "other", "w3": "one", "referee": "one", "checker": "one"}
NEAR, FAR = (1e-9, 1e-9), (1.0, 1.0)
BOUND = Bound(Distance(1e-6, 1e-5), Distance(3e-6, 3e-5))
WIRE = (Direction.FORWARD, Direction.BACKWARD)


@pytest.fixture(scope="module")
def unlike(signed: Any) -> Any:
    """The same world where w2 computes with other bytes: its stages 1 and 2 have two honest accounts, which are measured."""

    class Unlike(signed):  # type: ignore[misc]
        def terms(self, policy: Policy) -> Policy:
            self.likeness = Likeness(CLASSES, lambda *_: BOUND, lambda _rate: NotImplemented, lambda *_: 1.0)
            return replace(policy, likeness=self.likeness)

        def honest(self, worker: str, key: ClaimKey) -> Header:
            header: Header = super().honest(worker, key)
            other = CLASSES[worker] == "other" and key.direction is not Direction.UPDATE  # a shadow takes the update over
            return replace(header, output=header.output + b"~") if other else header

        def _is_true(self, key: ClaimKey, output: bytes) -> bool:
            return output in (self.truth(key), self.truth(key) + b"~")

        def _knows(self, worker: str, key: ClaimKey) -> bool:
            """Its own result is not what its other seat works from: the primary's is."""
            return key in self.accepted or (not self.likeness.splits(self.route, key.stage) and super()._knows(worker, key))

        def ready(self) -> list[Envelope]:
            return super().ready() + self._compared()

        def _compared(self) -> list[Envelope]:
            """What the comparers have to say of the tensors that both holders claim."""
            now, found = self.coordinator._now, []
            for key in list(now.board.keys()) if now is not None else []:
                by = now.route.comparer(key.direction, key.stage) if key.direction in WIRE else None
                accounts = [now.board.header(key, role) for role in (Role.PRIMARY, Role.SHADOW)]
                if by is None or None in accounts or not now.is_unlike(key.stage) or now.board.header(key, Role.COMPARER):
                    continue
                one, other = accounts
                apart = NEAR if all(self._is_true(key, each.output) for each in accounts) else FAR
                where = "run", key, self.began.version, now.route.epoch
                said = Header(*where, by, Role.COMPARER, (other.output,), one.output, apart)
                found.append(Envelope(by, "coordinator", sign_header(said, IDENTITIES[by])))
            return found

        def _obey(self, envelope: Envelope) -> None:
            before = len(self.waiting)
            super()._obey(envelope)
            case, found = envelope.message, self.waiting[-1].message if len(self.waiting) > before else None
            if not isinstance(case, Examine) or not isinstance(found, Finding):
                return
            true = [
                self._is_true(case.key, each.output) and each.norms in ((), (float(case.key.stage), 1.0))
                for each in case.measure
            ]
            far = [NEAR if each else FAR for each in true]
            measured = tuple(
                replace(each, overall=apart[0], worst_row=apart[1]) for each, apart in zip(case.measure, far, strict=True)
            )
            between = (NEAR if all(true) else FAR) if len(true) == 2 and case.key.direction in WIRE else ()
            finding = replace(found, measured=measured, apart=between)
            self.waiting[-1] = replace(self.waiting[-1], message=finding)

    return Unlike


def of_kind(kind: str, signed: Any, unlike: Any, **settings: Any) -> Any:
    """A world: `plain`, with a class of its own for w2, or with spot checks."""
    if kind == "unlike":
        return unlike(size=K, micro_batches=M, **settings)
    inspection = Inspection(Sampling(7, claims=0.2, steps=0.3), window=4, flag_budget=2.0) if kind == "spot-checked" else None
    return signed(size=K, micro_batches=M, inspection=inspection, **settings)


@pytest.mark.parametrize("kind", ["plain", "unlike", "spot-checked"])
def test_without_junk_the_worlds_are_the_same(signed: Any, unlike: Any, clean: Any, suite: Any, kind: str) -> None:
    world = of_kind(kind, signed, unlike)
    for sealed in clean:
        assert world.step().sealed == sealed
    assert world.of(Alert, Ruling) == []
    if kind == "unlike":
        assert any(each.message.role is Role.COMPARER for each in world.heard if isinstance(each.message, Header))
    if kind == "spot-checked":
        assert world.of(SpotChecked)
    audited(world, suite)


@pytest.fixture(scope="module")
def clean(signed: Any) -> list[dict[int, bytes]]:
    """What stands after each of two honest steps."""
    world = signed(size=K, micro_batches=M)
    found = [dict(world.step().sealed) for _ in range(2)]
    world.notary.close("finished")
    return found


def words(speech: Callable[..., Any]) -> dict[str, st.SearchStrategy[Any]]:
    """What the fields of junk hold: mostly what could be, so that it gets past the door, and now and then what could not."""
    keys = [(direction, stage, m) for direction in Direction for stage in range(K) for m in range(-1, M)]
    truths = [repr((str(direction), stage, m, 0, (), ())).encode() for direction, stage, m in keys]
    digests = st.sampled_from(truths) | st.sampled_from([b"", b"v0", b"d" * 32, b"d" * 31, b"x" * 1000])
    fields: dict[str, st.SearchStrategy[Any]] = {
        "step": st.sampled_from([0, 0, 0, 0, 1, 1, 2, -1, 2**63 - 1]),
        "attempt": st.sampled_from([0, 0, 0, 0, 1, 32, -1]),
        "stage": st.sampled_from([1, 2, 3, 1, 2, 3, 0, K - 1, K, -1, -2, 99]),
        "micro_batch": st.sampled_from([0, 1, 0, 1, -1, -2, M, 10**6]),
        "version": st.sampled_from([0, 0, 0, 1, 1, 2, -1]),
        "run": st.sampled_from(["run", "run", "run", "", "other"]),
        "norms": st.sampled_from([(), (1.0, 1.0), (2.0, 1.0), (math.nan,), (math.inf, -0.0), (0.5,) * 500, (1e308, 1e308)]),
        "inputs": st.lists(digests, max_size=3).map(tuple),
        "signature": st.sampled_from([None, b"", b"s" * 64]),
        **dict.fromkeys(("output", "got", "digest", "state_digest"), digests),
        **dict.fromkeys(("worker", "sender", "to"), BY),
    }
    fields["key"] = speech(ClaimKey, fields)
    fields["evidence"] = st.none() | speech(Header, fields)
    return fields


def said_by(world: Any, liar: str, message: Any, near: float, draw: random.Random) -> Any:
    """The message as the liar would send it: with some of its fields as they ought to be now, under its own hand or not."""

    def better(value: Any, honest: Any, *names: str) -> Any:
        return replace(value, **{name: getattr(honest, name) for name in names if draw.random() < near})

    def key_of(key: ClaimKey, stages: Sequence[int]) -> ClaimKey:
        now = (world.began.step, world.began.attempt)
        whole = key.direction in (Direction.GRADIENT, Direction.UPDATE)
        right = ClaimKey(*now, key.direction, draw.choice(stages), -1 if whole else draw.randrange(M))
        return better(key, right, "step", "attempt", "stage", "micro_batch")

    def header_of(header: Header) -> Header:
        mine = [stage for stage, _ in world.route.seats_of(liar)] or [1]
        key = key_of(header.key, mine)
        if not 0 <= key.stage < K:
            return replace(header, key=key)
        right = world.honest(liar, key)
        compares = [(d, i) for d in WIRE for i in (1, 2, 3) if world.route.comparer(d, i) == liar]
        if compares and draw.random() < 0.2:  # a word about two others, which only it may say
            key = replace(key, **dict(zip(("direction", "stage"), draw.choice(compares), strict=True)))
            holders = [holder for holder in (world.route.primaries[key.stage], world.route.shadows[key.stage]) if holder]
            one, other = (world.honest(holder, key).output for holder in holders)
            apart = draw.choice([header.norms, FAR, NEAR, (math.nan, math.nan), (-1.0, -1.0), (0.0,)])
            right = replace(right, key=key, role=Role.COMPARER, inputs=(other,), output=one, norms=apart)
        found = better(
            replace(header, key=key), right, "run", "version", "epoch", "worker", "role", "inputs", "output", "norms"
        )
        return sign_header(found, IDENTITIES[liar]) if draw.random() < near else found

    match message:
        case Header():
            return header_of(message)
        case Claim():
            return replace(message, header=header_of(message.header))
        case Complaint():
            key = key_of(message.key, [1, 2, 3])
            shown = [each.message for each in world.heard if isinstance(each.message, Header)]
            about = [header for header in shown if header.key == key] or shown
            evidence = draw.choice([message.evidence, None, *about[:2]])
            if evidence is not None and draw.random() < 0.3:
                evidence = header_of(evidence)
            sender = world.route.primaries[key.stage] if 0 <= key.stage < K and draw.random() < near else message.sender
            return replace(message, key=key, sender=sender, evidence=evidence)
        case StateAdopted():
            seats = [seat for seat in world.coordinator.membership.missing() if seat[1] == liar] or [(message.stage, liar)]
            right = StateAdopted(draw.choice(seats)[0], world.coordinator.membership.version, message.role, message.digest)
            return better(message, right, "stage", "version")
    return message


def storm(world: Any, liar: str, messages: Sequence[Any], near: float, seed: int) -> list[str]:
    """Two steps with the messages said in between, anywhere, in any order of the honest ones, with some of those twice."""
    draw, waiting, told = random.Random(seed), list(messages), []
    often = 0.4 if len(waiting) <= 20 else 0.7
    for step in range(2):
        world.begin()
        left = len(waiting) // (2 - step)
        for _ in range(3000):
            if left and draw.random() < often:
                left -= 1
                sender = liar if draw.random() < 0.9 else draw.choice(["w9", ""])
                told.append(world.junk(sender, said_by(world, liar, waiting.pop(), near, draw)))
            elif world.heard and draw.random() < 0.05:
                again = draw.choice(world.heard)
                told.append(world.junk(again.sender, again.message))
            elif not world.deliver(pick=draw.choice):
                break
        assert world.coordinator.broken is None, world.coordinator.broken
        assert world.coordinator.idle(), world.coordinator.describe()
        while left:
            left -= 1
            told.append(world.junk(liar, said_by(world, liar, waiting.pop(), near, draw)))
    return told


def only_the_liar(world: Any, *liars: str) -> None:
    """Nobody else was convicted, banned or lost, and the evidence says the same to somebody who was not there."""
    culprits = {worker for ruling in world.of(Ruling) for worker in ruling.culprits}
    gone = {event.worker for event in world.of(WorkerLost, Banned)}
    assert culprits | gone <= set(liars)
    assert {worker for alert in world.of(Alert) for worker in alert.suspects} <= set(NAMES), (
        "somebody is suspected who is nobody"
    )
    assert set(world.coordinator.membership.lies) <= set(liars)


def audited(world: Any, suite: Any, *liars: str) -> None:
    from holdfast.evidence.audit_log import Status, audit

    world.notary.close("finished")
    found = audit(world.path.read_bytes(), suite("evidence").LAW)
    assert (found.status, found.fault) == (Status.INTACT, "")
    assert set(found.guilty) <= set(liars)


REMEDIES = st.sampled_from(["replace", "replace", "relay", "restart"])
"""Those that change no bit; what `skip` leaves out is another question."""

LIARS = st.sampled_from(["w1", "w2", "w3"])
HEARD = (Header, Claim, Complaint, StateAdopted, Flag)


def per_run(kind: type) -> int:
    """Junk messages in one run; of kinds that a coordinator takes from no worker many fit in."""
    return 20 if kind in (*HEARD, Examine, Finding) else 50


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_junk_of_every_kind_in_an_honest_run(
    hammer: Any, signed: Any, unlike: Any, clean: Any, suite: Any, speech: Any, kind: type
) -> None:
    def check(where: str, liar: str, messages: list[Any], near: float, remedy: str, seed: int) -> list[str]:
        world = of_kind(where, signed, unlike, remedy=resolve_remedy(remedy, 1))
        told = storm(world, liar, messages, near, seed)
        assert world.sealed == clean[1], "what stands is not what honest workers computed"
        only_the_liar(world, liar)
        audited(world, suite, liar)
        return told + ["convicted"] * len(world.of(Ruling))

    count = per_run(kind)
    junk = st.lists(speech(kind, words(speech)), min_size=count, max_size=count)
    near = st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.97])
    where = st.sampled_from(["plain", "unlike", "spot-checked"])
    quick = 3 if kind in HEARD else 1
    hammer(check, where, LIARS, junk, near, REMEDIES, st.integers(0, 2**32), quick=quick, inputs=count)


# -- floods --------------------------------------------------------------------------------------------------------------


def entries(value: Any, seen: set[int] | None = None) -> int:
    """Everything that a member remembers: the entries of its tables, and of what is in them."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (str, bytes, int, float, torch.Tensor, type(None), Path)) or callable(value):
        return 0
    seen.add(id(value))
    if isinstance(value, Mapping):
        return len(value) + sum(entries(each, seen) for pair in value.items() for each in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) + sum(entries(each, seen) for each in value)
    names = [
        *getattr(value, "__dict__", ()),
        *(name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())),
    ]
    return sum(entries(getattr(value, name, None), seen) for name in names)


def relayed(signed: Any) -> Any:
    """A step that goes through the coordinator: w3 has lied, and the step was begun again."""
    world = signed(size=K, micro_batches=M, remedy=resolve_remedy("relay", 5)).lie("w3", "a30", output=b"false")
    world.begin()
    while not world.route.relay:
        assert world.deliver()
    return world


def flood(world: Any, liar: str, kind: str, number: int) -> Any:
    """The message number `number`: new each time, so that no two are the same by chance."""
    key = world.key(f"a{number % 3 + 1}{number // 3 % M}")
    mine = world.key(f"a1{number % M}")
    name, junk = f"x{number}\x1b", b"%032d" % number
    right = world.honest(liar, mine)
    match kind:
        case "relayed tensors":
            return Claim(replace(right, signature=b"x" * 64), torch.full((2, 2), float(number)))
        case "complaints":
            return Complaint(replace(key, stage=number % 3), name, junk)
        case "shown headers":
            other = f"w{number % 3 + 1}"
            header = replace(world.honest(other, key), output=junk, worker=other)
            return Complaint(key, other, junk, sign_header(header, IDENTITIES[liar if number % 2 else other]))
        case "second headers":
            return sign_header(replace(right, output=junk), IDENTITIES[liar])
        case "unsigned headers":
            return replace(right, output=junk, signature=junk * 2)
        case "headers in other names":
            return sign_header(replace(right, worker=name), IDENTITIES[liar])
        case "later steps":
            return sign_header(replace(right, key=replace(mine, step=number + 1), output=junk), IDENTITIES[liar])
        case "states adopted":
            return StateAdopted(number % K, number, Role.SHADOW, junk)
        case _:
            return Loss(world.began.step, world.began.attempt, number, 0.5)


FLOODS = (
    *("relayed tensors", "complaints", "shown headers", "second headers", "unsigned headers", "headers in other names"),
    *("later steps", "states adopted", "losses"),
)


@pytest.mark.parametrize("relay", [False, True], ids=["direct", "relay"])
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_leaves_no_more_behind_than_a_step_has_claims(
    depth: int, signed: Any, clean: Any, suite: Any, kind: str, relay: bool
) -> None:
    """Tables, events, evidence and orders grow with the claims of the step, not with what one worker says about them."""
    world = relayed(signed) if relay else signed(size=K, micro_batches=M).begin()
    if kind != "second headers":  # with some keys accepted, and some not
        for _ in range(8):
            world.deliver()
    before, events, lines = entries(world.coordinator), len(world.events), world.notary._log.seq
    for number in range(depth):
        world.junk("w1", flood(world, "w1", kind, number))
    claims = K * M * 8
    assert entries(world.coordinator) - before <= 20 * claims
    assert len(world.events) - events <= claims
    assert world.notary._log.seq - lines <= 4 * claims
    states = [envelope for envelope in world.junk_sent if isinstance(envelope.message, SendState)]
    assert len(states) <= claims
    assert len(world.junk_sent) <= 4 * claims
    world.run()
    assert world.sealed == clean[0]
    only_the_liar(world, "w1", "w3")
    audited(world, suite, "w1", "w3")


def test_a_worker_that_shows_false_states_for_ever_is_not_sent_the_right_one_for_ever(
    depth: int, signed: Any, clean: Any, suite: Any
) -> None:
    """Its own version was rejected at the seal, so it gets the sealed one again; each time it says that another one came."""
    world = signed(size=K, micro_batches=M).lie("w1", "U1", output=b"false").step()
    assert world.sealed == clean[0]
    world.begin()
    assert world.coordinator.membership.missing() == [(1, "w1")]
    for number in range(depth):
        world.junk("w1", StateAdopted(1, 1, Role.PRIMARY, b"%032d" % number))
    states = [envelope for envelope in world.junk_sent if isinstance(envelope.message, SendState)]
    assert len(states) <= 4
    world.run()
    assert world.sealed == clean[1]
    only_the_liar(world, "w1")
    audited(world, suite, "w1")
