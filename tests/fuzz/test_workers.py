"""Workers and the referee under junk: what a stranger or a lying neighbour says changes nothing that they compute or post.

honest messages of one step --+--> worker   --> the headers, losses and states of an honest step, and complaints about the liar
junk of a neighbour  ---------+--> referee  --> the finding that it makes without the junk
"""

from __future__ import annotations

import random
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from holdfast.checker import Checker
from holdfast.claim import Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.config import OptimizerConfig
from holdfast.digest import state_digest, tensor_digest
from holdfast.errors import ProtocolError
from holdfast.implied import implied_by
from holdfast.inbox import Boundary
from holdfast.likeness import Likeness
from holdfast.message import (
    Accepted,
    BeginStep,
    Complaint,
    Envelope,
    Examine,
    Finding,
    Loss,
    Message,
    Offer,
    Seal,
    SendState,
    StateAdopted,
    StateRefused,
    StateTransfer,
    TiedGradient,
    Update,
)
from holdfast.referee import Referee
from holdfast.verify.chain import ingredients
from holdfast.verify.tolerance import Bound, Distance, distance
from holdfast.worker import Hardware, Worker

K, M = 4, 2
MESSAGES = typing.get_args(Message)
LIKENESS = Likeness(
    {"w0": "one", "w1": "one", "w2": "other"},
    lambda *_: Bound(Distance(1e-6, 1e-5), Distance(3e-6, 3e-5)),
    lambda rate: implied_by(OptimizerConfig(), rate),
    lambda *_: 1.0,
)
"""w2 holds stage 2, and shadows stage 1, with other bytes than the other holder: as far as anybody knows."""

CLAIMS = {"w2": ("a00", "a01", "a10", "a11", "g30", "g31"), "w0": ("a10", "a11", "a20", "a21", "g10", "g11", "g20", "g21")}
JUNK_BY = ["w1", "w1", "w1", "w9", ""]


def per_run(kind: type) -> int:
    """Junk messages in one run; of kinds that a member takes from nobody but the coordinator many fit in."""
    return 20 if kind in (Claim, StateTransfer, Offer, Examine, Finding) else 50


@pytest.fixture(scope="module")
def toy(suite: Any) -> Any:
    return suite("workers")


def states(toy: Any) -> st.SearchStrategy[StageState]:
    """The states of the toy with something wrong, or nothing."""
    shapes = st.sampled_from([(4, 4), (5, 4), (4,), (), (0, 4), (1, 1, 1, 1), (4, 5)])
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int8])
    tensors = st.builds(lambda shape, dtype: torch.zeros(shape, dtype=dtype), shapes, dtypes)
    names = st.sampled_from(["w0", "w1", "w2", "w3", "head", "", "w1.exp_avg", "w1.exp_avg_sq", "\x00"])
    junk = st.dictionaries(names, tensors, max_size=3)

    def build(stage: int, version: int, updates: int, weights: Any, moments: Any, keep: int) -> StageState:
        right = toy.state(min(max(stage, 0), K - 1))
        return StageState(
            stage,
            version,
            updates if keep & 1 else 0,
            weights if keep & 2 else right.weights,
            moments if keep & 4 else right.moments,
        )

    numbers = st.sampled_from([0, 1, -1, 2**62, 2**63, 2**64 - 1])
    return st.builds(build, st.sampled_from([1, 2, 1, 2, 0, 3, -1, 4, 99]), numbers, numbers, junk, junk, st.integers(0, 7))


def words(toy: Any, speech: Callable[..., Any]) -> dict[str, st.SearchStrategy[Any]]:
    shape = (toy.B, toy.S, toy.D)
    tensors = st.sampled_from(
        [(shape, torch.float32)] * 4 + [(shape, torch.bfloat16), ((1, *shape), torch.float32), ((), torch.float32)]
    )
    digests = st.sampled_from([b"", b"d" * 32, b"d" * 31, toy.sealed(1), toy.sealed(2)])
    names = st.sampled_from(["w0", "w1", "w2", "w9", "coordinator", "referee", ""])
    fields: dict[str, st.SearchStrategy[Any]] = {
        "step": st.sampled_from([0, 0, 0, 0, 1, 2, -1, 2**63]),
        "attempt": st.sampled_from([0, 0, 0, 0, 1, -1, 2**63]),
        "stage": st.sampled_from([0, 1, 2, 3, -1, 4, 99]),
        "micro_batch": st.sampled_from([0, 1, 0, 1, -1, 2, 10**6]),
        "version": st.sampled_from([0, 0, 1, -1, 2]),
        "norms": st.sampled_from([(), (1.0,), (float("nan"),) * 300]),
        "tensor": st.builds(
            lambda form, value: torch.full(*form[:1], value, dtype=form[1]), tensors, st.sampled_from([0.0, 1.0, float("nan")])
        ),
        "state": states(toy),
        "route": st.just(toy.ROUTE),
        "digests": st.lists(digests, max_size=4).map(tuple),
        **dict.fromkeys(("output", "got", "digest", "state_digest"), digests),
        **dict.fromkeys(("worker", "sender"), names),
        "to": names,
    }
    fields["origin"] = st.none() | fields["tensor"]
    fields["key"] = speech(ClaimKey, fields)
    fields["evidence"] = st.none() | speech(Header, fields)
    return fields


def junk_of(kind: type, toy: Any, speech: Any) -> st.SearchStrategy[Any]:
    fields = words(toy, speech)
    if "to" in typing.get_type_hints(kind) and kind.__name__ == "Supply":
        fields["to"] = st.lists(fields["to"], max_size=3).map(tuple)
    return speech(kind, fields)


def plainly(header: Header) -> Any:
    """What a header says, in words that can be compared: NaN is itself."""
    return header.key, header.role, header.version, header.inputs, header.output, repr(header.norms)


class Seated:
    """A worker at the start of a step, and everybody around it."""

    def __init__(self, toy: Any, name: str, draw: random.Random, *, checked: bool = True, unlike: bool = False) -> None:
        mine = name == "w0"
        boundary = Boundary(toy.BOUNDARY.shape, toy.BOUNDARY.dtype, 4 * K * M)
        hardware = Hardware((1.0,) * K, devices=2 if mine else 1)
        self.toy, self.draw, self.honest = toy, draw, toy.Honest()
        terms = replace(toy.terms(checked=checked), likeness=LIKENESS if unlike else None)
        self.worker = Worker(name, toy.execution, terms, boundary, hardware, toy.tokens if mine else None)
        self.unlike = unlike
        self.heard: list[Any] = []
        self.sent: list[Envelope] = []
        self.told: list[str] = []

    def say(self, sender: str, message: Any) -> None:
        self.heard.append(message)
        answers = list(self.worker.receive(Envelope(sender, self.worker.name, message)))
        self.sent += [answer for answer in answers if answer.recipient != self.worker.name]
        for answer in answers:
            if answer.recipient == self.worker.name:
                self.say(answer.sender, answer.message)

    def junk(self, sender: str, message: Any) -> None:
        if isinstance(message, TiedGradient):  # its own name is the only one that it would hear this from
            assert sender != self.worker.name
        before = len(self.sent)
        try:
            self.say(sender, message)
        except ProtocolError:
            self.told.append("refused")
            return
        self.told.append("answered" if len(self.sent) > before else "ignored")

    def work(self) -> None:
        for device in range(self.worker.devices):
            found = self.worker.next_work(device)
            if found is not None:
                for envelope in self.worker.execute(found):
                    if envelope.recipient == self.worker.name:
                        self.say(envelope.sender, envelope.message)
                    else:
                        self.sent.append(envelope)

    def script(self) -> list[Callable[[], None]]:
        """An honest step: the states, the beginning, tensors and rulings in any order, the order to update, the seal."""
        toy, name = self.toy, self.worker.name
        digests = tuple(toy.sealed(stage) for stage in range(K))
        seats = [lambda s=s, r=r: self.say("w3", StateTransfer(toy.state(s), r)) for s, r in toy.ROUTE.seats_of(name)]
        claims = [self.honest.claim(text, "w3") for text in CLAIMS[name]]
        by = toy.ROUTE.primaries if self.unlike else ("w3",) * K
        given = [lambda c=c: self.say(by[c.header.key.stage], c) for c in claims]
        if self.unlike and name == "w0":  # it compares the two accounts of stage 1's gradients
            shown = [self.honest.claim(text, "w2", Role.SHADOW) for text in ("g10", "g11")]
            given += [lambda c=c: self.say("w2", c) for c in shown]
        ruled = [lambda c=c: self.say("coordinator", Accepted(c.header.key, c.header.output)) for c in claims]
        between = given + ruled
        self.draw.shuffle(between)
        if self.unlike:  # what a liar sent in an honest holder's place comes again, through the coordinator
            between += [lambda c=c: self.say("coordinator", c) for c in claims]
        begin: list[Callable[[], None]] = [lambda: self.say("coordinator", BeginStep(0, 0, 0, toy.ROUTE, digests))]
        return [*seats, *begin, *between]

    def finish(self) -> None:
        for _ in range(40):
            self.work()
        self.say("coordinator", Update(0, 0, 0.5, 0.1))
        if self.unlike:
            stage = 1 if self.worker.name == "w2" else 2
            self.honest.update(stage)
            self.say(self.toy.ROUTE.primaries[stage], Offer(0, self.honest.executions[stage].state(1, candidate=True)))
        for _ in range(6):
            self.work()
        self.say("coordinator", Seal(1))

    def run(self, junk: Sequence[Any] = (), near: float = 0.0) -> Seated:
        waiting = list(junk)
        for act in self.script():
            while waiting and self.draw.random() < 0.5:
                self.junk(self.draw.choice(JUNK_BY), nearer(self, waiting.pop(), near))
            act()
            if self.draw.random() < 0.5:
                self.work()
        while waiting:
            self.junk(self.draw.choice(JUNK_BY), nearer(self, waiting.pop(), near))
            self.work()
        self.finish()
        return self

    @property
    def outcome(self) -> Any:
        """What it posted, what it computed, and what it holds now."""
        posted = [e.message for e in self.sent if isinstance(e.message, Header)]
        headers = {plainly(header) for header in posted if header.role is not Role.COMPARER}
        losses = {(e.message.micro_batch, e.message.value) for e in self.sent if isinstance(e.message, Loss)}
        held = {stage: (seat.role, seat.version, state_digest(seat.state())) for stage, seat in self.worker.seats.items()}
        tensors = {
            (e.recipient, e.message.header.key, tensor_digest(e.message.tensor))
            for e in self.sent
            if isinstance(e.message, Claim)
        }
        return headers, losses, held, tensors


def nearer(seated: Any, message: Any, near: float) -> Any:
    """Junk about the tensors that the worker waits for, or with the very header of an honest claim."""
    draw = seated.draw
    if isinstance(message, Claim) and draw.random() < near:
        right = seated.honest.claim(draw.choice(CLAIMS.get(seated.worker.name, CLAIMS["w2"])), "w1")
        header = right.header if draw.random() < near else replace(message.header, key=right.header.key)
        return replace(message, header=header)
    return message


@pytest.fixture(scope="module")
def clean(toy: Any) -> Mapping[str, Any]:
    return {name: Seated(toy, name, random.Random(0)).run().outcome for name in CLAIMS}


def test_an_honest_step_is_the_same_in_any_order(hammer: Any, toy: Any, clean: Any) -> None:
    """Without this, nothing below could be told from chance."""

    def check(name: str, seed: int) -> str:
        assert Seated(toy, name, random.Random(seed)).run().outcome == clean[name]
        return "the same"

    hammer(check, st.sampled_from(sorted(CLAIMS)), st.integers(0, 2**32), quick=5, inputs=20)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_junk_to_a_worker(hammer: Any, toy: Any, clean: Any, speech: Any, kind: type) -> None:
    def check(name: str, junk: list[Any], near: float, seed: int) -> list[str]:
        seated = Seated(toy, name, random.Random(seed)).run(junk, near)
        assert seated.outcome == clean[name]
        complaints = [e.message for e in seated.sent if isinstance(e.message, Complaint)]
        assert {complaint.sender for complaint in complaints} <= set(JUNK_BY), "an honest sender was accused"
        assert all(e.recipient == "coordinator" for e in seated.sent if not isinstance(e.message, Claim))
        return seated.told

    count = per_run(kind)
    junk = st.lists(junk_of(kind, toy, speech), min_size=count, max_size=count)
    near = st.sampled_from([0.0, 0.5, 0.9])
    quick = 2 if count == 20 else 1
    hammer(check, st.sampled_from(sorted(CLAIMS)), junk, near, st.integers(0, 2**32), quick=quick, inputs=count)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_junk_to_a_worker_that_checks_nothing(hammer: Any, toy: Any, speech: Any, kind: type) -> None:
    """With defences off anybody can spoil the result; nobody can make a worker crash."""

    def check(junk: list[Any], seed: int) -> list[str]:
        return Seated(toy, "w2", random.Random(seed), checked=False).run(junk, 0.5).told

    count = per_run(kind)
    junk = st.lists(junk_of(kind, toy, speech), min_size=count, max_size=count)
    hammer(check, junk, st.integers(0, 2**32), quick=1, inputs=count)


@pytest.mark.parametrize("kind", [Claim, Offer, StateTransfer], ids=lambda kind: kind.__name__)
def test_junk_to_a_worker_that_compares(hammer: Any, toy: Any, speech: Any, kind: type) -> None:
    """Where the two holders of a stage compute with other bytes: what it says of them is the truth about what they sent."""
    right = {name: Seated(toy, name, random.Random(0), unlike=True).run().outcome for name in CLAIMS}

    def check(name: str, junk: list[Any], near: float, seed: int) -> list[str]:
        seated = Seated(toy, name, random.Random(seed), unlike=True).run(junk, near)
        assert seated.outcome == right[name]
        came = [seated.honest.tensors.values(), (message.tensor for message in seated.heard if isinstance(message, Claim))]
        tensors = {tensor_digest(tensor): tensor for several in came for tensor in several}
        said = [e.message for e in seated.sent if isinstance(e.message, Header) and e.message.role is Role.COMPARER]
        for header in said:
            apart = distance(tensors[header.output], tensors[header.inputs[0]])
            assert repr(header.norms) == repr((apart.overall, apart.worst_row))
        assert len({header.key for header in said}) == len(said)
        return [*seated.told, *["compared"] * len(said)]

    junk = st.lists(junk_of(kind, toy, speech), min_size=20, max_size=20)
    near = st.sampled_from([0.0, 0.5, 0.9])
    hammer(check, st.sampled_from(sorted(CLAIMS)), junk, near, st.integers(0, 2**32), quick=3, inputs=20)


# -- the referee ---------------------------------------------------------------------------------------------------------


class Bench:
    """A referee, or a checker, with one case, and everybody who answers it."""

    def __init__(self, toy: Any, text: str, draw: random.Random, name: str = "referee") -> None:
        self.toy, self.draw, self.honest, self.worker, self.name = toy, draw, toy.Honest(), self, name
        checks = name == "checker"
        terms = "run", toy.execution, M, (1.0,) * K
        self.referee = Checker(*terms) if checks else Referee(*terms)
        self.told: list[str] = []
        self.accused: list[tuple[int, int, str]] = []
        if not checks:
            self.say("coordinator", BeginStep(0, 0, 0, toy.ROUTE, (b"",) * K))
        key = self.honest.key(text)
        needed = tuple((parent, tensor_digest(self.honest.tensors[parent])) for parent in ingredients(key, toy.ROUTE, M))
        holders, route = toy.ROUTE.holders(key.stage), toy.ROUTE if checks else None
        self.case = Examine(key, 0, toy.sealed(key.stage), needed, holders, 0.5, 0.1, route)

    def say(self, sender: str, message: Any) -> list[Envelope]:
        return list(self.referee.receive(Envelope(sender, self.name, message)))

    def junk(self, sender: str, message: Any) -> None:
        try:
            answers = self.say(sender, message)
        except ProtocolError:
            self.told.append("refused")
            return
        for answer in answers:  # a false state that came to a trusted party is its sender's lie, told once
            refused = answer.message
            assert (type(refused), answer.recipient) == (StateRefused, "coordinator"), "the referee answered a stranger"
            assert (refused.sender, refused.got) == (sender, state_digest(message.state))
            assert refused.got != refused.sealed
            self.accused.append((refused.stage, refused.version, refused.sender))
        assert len(set(self.accused)) == len(self.accused)
        self.told.append("accused" if answers else "ignored")

    def answers(self, orders: Iterable[Envelope]) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for order in orders:
            if isinstance(order.message, SendState):
                found.append((order.recipient, StateTransfer(self.toy.state(order.message.stage), None)))
            else:
                key = order.message.key
                found.append(
                    (
                        order.recipient,
                        self.honest.claim(
                            f"{'a' if key.direction == 'forward' else 'g'}{key.stage}{key.micro_batch}", order.recipient
                        ),
                    )
                )
        self.draw.shuffle(found)
        return found

    def run(self, junk: Sequence[Any] = (), near: float = 0.0) -> Any:
        waiting = list(junk)
        for sender, message in [("coordinator", None), *self.answers(self.say("coordinator", self.case))]:
            while waiting and self.draw.random() < 0.6:
                self.junk(self.draw.choice(JUNK_BY), nearer(self, waiting.pop(), near))
            if message is not None:
                self.say(sender, message)
        while waiting:
            self.junk(self.draw.choice(JUNK_BY), nearer(self, waiting.pop(), near))
        work = self.referee.next_work(0)
        assert work is not None, self.referee.describe()
        (answer,) = self.referee.execute(work)
        return answer.message.output, repr(answer.message.norms)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_junk_to_the_referee_and_the_checker(hammer: Any, toy: Any, speech: Any, kind: type) -> None:
    texts = ["a10", "g11", "a21", "G1", "U2"]
    right = {text: Bench(toy, text, random.Random(0)).run() for text in texts}

    def check(name: str, text: str, junk: list[Any], near: float, seed: int) -> list[str]:
        bench = Bench(toy, text, random.Random(seed), name)
        assert bench.run(junk, near) == right[text]
        return bench.told

    count = per_run(kind)
    junk = st.lists(junk_of(kind, toy, speech), min_size=count, max_size=count)
    names, near = st.sampled_from(["referee", "checker"]), st.sampled_from([0.0, 0.9])
    quick = 2 if count == 20 else 1
    hammer(check, names, st.sampled_from(texts), junk, near, st.integers(0, 2**32), quick=quick, inputs=count)


# -- floods --------------------------------------------------------------------------------------------------------------


def held(value: Any, seen: set[int]) -> int:
    """Tensors and entries that a member keeps."""
    if id(value) in seen or isinstance(value, (str, bytes, int, float, torch.nn.Module, type(None), Path)) or callable(value):
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return 1
    if isinstance(value, Mapping):
        return len(value) + sum(held(each, seen) for pair in value.items() for each in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) + sum(held(each, seen) for each in value)
    names = [
        *getattr(value, "__dict__", ()),
        *(name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())),
    ]
    return sum(held(getattr(value, name, None), seen) for name in names)


FLOODS = ("later steps", "other stages", "other tensors", "misfits", "states", "states of one stage", "of this step")


def flood(toy: Any, kind: str, number: int) -> Any:
    tensor = torch.full((toy.B, toy.S, toy.D), float(number))
    header = Header("run", ClaimKey(0, 0, Direction.FORWARD, 1, 0), 0, 1, "w1", Role.PRIMARY, (), tensor_digest(tensor))
    match kind:
        case "later steps":
            return Claim(replace(header, key=replace(header.key, step=number + 1)), tensor)
        case "other stages":
            return Claim(replace(header, key=replace(header.key, stage=number)), tensor)
        case "other tensors":
            return Claim(header, tensor)
        case "misfits":
            return Claim(header, torch.zeros(number % 7))
        case "of this step":
            return Claim(replace(header, key=replace(header.key, micro_batch=number)), tensor)
    stage = 1 if kind == "states of one stage" else number % K
    return StateTransfer(replace(toy.state(stage), updates=number + 1), Role.SHADOW)


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_one_sender_leaves_a_bounded_heap(depth: int, toy: Any, clean: Any, kind: str, checked: bool) -> None:
    """What may wait is a constant times M K for each sender, whatever it sends and however long."""
    seated = Seated(toy, "w2", random.Random(0), checked=checked)
    script = seated.script()
    for act in script[:3]:
        act()
    before, sent = held(seated.worker, set()), len(seated.sent)
    for number in range(depth):
        seated.junk("w1", flood(toy, kind, number))
    assert held(seated.worker, set()) - before <= 4 * (4 * K * M)
    assert len(seated.sent) - sent <= depth
    for act in script[3:]:
        act()
    if checked:
        seated.finish()
        assert seated.outcome == clean["w2"]


@pytest.mark.parametrize("name", ["referee", "checker"])
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_at_the_referee_leaves_one_false_state_on_record(depth: int, toy: Any, kind: str, name: str) -> None:
    bench = Bench(toy, "G1", random.Random(0), name)
    orders = bench.say("coordinator", bench.case)
    before = held(bench.referee, set())
    for number in range(depth):
        bench.junk("w1", flood(toy, kind, number))
    told = [(1, 0, "w1")] if kind.startswith("states") else []
    assert bench.accused == told
    assert held(bench.referee, set()) - before <= 4 * len(told)
    for sender, message in bench.answers(orders):
        bench.say(sender, message)
    assert bench.referee.next_work(0) is not None


def test_a_state_is_shown_for_each_that_came(toy: Any) -> None:
    seated = Seated(toy, "w2", random.Random(0))
    seated.junk("w1", StateTransfer(toy.state(1), Role.SHADOW))
    assert [type(envelope.message) for envelope in seated.sent] == [StateAdopted]
