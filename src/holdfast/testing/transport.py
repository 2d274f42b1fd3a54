"""The contract of a transport: what `Transport` promises, checked on a real one through its two methods.

factory(names) -> Transport                 all members `names` reachable; several ends may hide behind one object
check_transport(factory)                    AssertionError where a promise is broken
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.digest import state_digest, tensor_digest
from holdfast.errors import NetworkError
from holdfast.message import (
    Accepted,
    BeginStep,
    Complaint,
    Deploy,
    Deployed,
    Dismiss,
    Envelope,
    Examine,
    Finding,
    Flag,
    Lacking,
    Loss,
    Message,
    NewRoute,
    Offer,
    Peers,
    Present,
    Seal,
    SendState,
    StateAdopted,
    StateRefused,
    StateTransfer,
    Supply,
    Tally,
    TallyUp,
    TiedGradient,
    TiedWeight,
    Update,
)
from holdfast.route import plain_route
from holdfast.transport import Transport

Factory = Callable[[Sequence[str]], Transport]

NAMES = ("coordinator", "w0", "w1")
PATIENCE_S = 30.0
TRIES = 3
"""Of what an idle machine always does, and one that stands still at a bad moment may not."""


def sample_messages() -> tuple[Message, ...]:
    """One message of every kind, with the values that a careless encoding loses: NaN, -0.0, empty, odd strides, bfloat16."""
    key = ClaimKey(3, 1, Direction.FORWARD, 2, 0)
    whole = ClaimKey(3, 1, Direction.GRADIENT, 2)
    norms = (0.1, float("nan"), float("inf"), float("-inf"), -0.0, 1e-320)
    header = Header("run", whole, 3, 7, "w1", Role.SHADOW, (b"\0" * 32, b""), b"\xff" * 32, norms, b"signed")
    odd = torch.tensor([-0.0, float("nan"), float("inf"), 1e-40] * 6).reshape(4, 6).t()
    payload = torch.tensor([0x7FC00001, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    block = torch.arange(24.0).reshape(2, 3, 4).sin()
    route = plain_route(["w0", "w1", "w2", "w3"], ["w0", "w3"], shadowed=True)
    state = StageState(
        1, 3, 2, {"a.weight": odd, "b.bias": payload, "ü": torch.zeros(())}, {"b.bias.exp_avg": torch.ones(0, 3)}
    )
    return (
        BeginStep(3, 1, 3, route, (b"0" * 32, b"", b"2" * 32)),
        NewRoute(route),
        Accepted(key, b"\x01" * 32),
        Supply(key, ("w0", "w1")),
        Update(3, 1, float("nan"), 3e-3),
        Seal(2**40),
        SendState(1, 3, "w1", None),
        StateTransfer(state, Role.SHADOW),
        Offer(1, state),
        StateAdopted(1, 3, Role.PRIMARY, b"d"),
        StateRefused(1, 3, "w1", b"g", b"s"),
        Complaint(key, "w1", b""),
        Complaint(whole, "w1", b"\x02" * 32, header),
        Loss(3, 1, 2, float("inf")),
        TiedGradient(3, 1, 2, odd.bfloat16()),
        TiedWeight(3, torch.arange(5)[::2]),
        Examine(whole, 3, b"s", ((key, b"i"), (whole, b"")), ("w0",), 0.5, 1e-3),
        Examine(whole, 3, b"s", (), (), route=route),
        Lacking(whole, True, (key, whole)),
        Flag(key, "norm", float("inf")),
        Present("127.0.0.1:4711", "cpu", "native, float32", 1 << 40, 0.5, ((1, bytes(range(32))),)),
        Peers((("host", ("coordinator", "initiator"), None), ("w1", ("w1",), "127.0.0.1:1"))),
        Deploy(2**31, b"{}"),
        Deployed(0, "too little memory"),
        TallyUp(1),
        Tally(1, (("forward", 0.25),), 2**40),
        Dismiss("the run is over"),
        Finding(whole, b"o", norms),
        header,
        Claim(header, payload),
        Claim(header, block.half(), block.double().transpose(0, 1)),
    )


def same_message(a: Message, b: Message) -> bool:
    """Whether two messages are equal to the bit: NaN equals itself, -0.0 differs from 0.0, strides do not count."""
    return type(a) is type(b) and _fingerprint(a) == _fingerprint(b)


def check_transport(factory: Factory) -> None:
    """Run the whole contract, each part on a transport of its own."""
    for check in (_everything_arrives, _control_keeps_its_order, _control_overtakes, _silence, _oneself, _counting, _closing):
        transport = factory(NAMES)
        try:
            check(transport)
        finally:
            transport.close()


def _everything_arrives(transport: Transport) -> None:
    """Every kind of message, to the bit, once, from its sender to its recipient."""
    sent = [Envelope("w0", "w1", message) for message in sample_messages()]
    sent += [Envelope("w1", "coordinator", message) for message in sample_messages()]
    for envelope in sent:
        transport.send(envelope)
    missing = list(sent)
    for got in _receive(transport, len(sent)):
        places = [i for i, e in enumerate(missing) if _ends(e) == _ends(got) and same_message(e.message, got.message)]
        assert places, f"{got} was never sent, or arrived twice, or was changed on its way"
        del missing[places[0]]
    assert transport.receive(0.0) is None, "more arrived than was sent"


def _control_keeps_its_order(transport: Transport) -> None:
    """Messages without tensors of one pair arrive in the order of sending."""
    count = 50
    for version in range(count):
        transport.send(Envelope("coordinator", "w0", Seal(version)))
        transport.send(Envelope("coordinator", "w1", Seal(version)))
    arrived = _receive(transport, 2 * count)
    for name in ("w0", "w1"):
        versions = [e.message.version for e in arrived if e.recipient == name and isinstance(e.message, Seal)]
        assert versions == list(range(count)), f"{name} got the orders of one sender as {versions}"


def _control_overtakes(transport: Transport) -> None:
    """A message without tensors does not wait behind those with tensors."""
    tensor = torch.zeros(1 << 20)
    for _ in range(TRIES):
        for version in range(8):
            transport.send(Envelope("w0", "w1", TiedWeight(version, tensor)))
        transport.send(Envelope("w0", "w1", Seal(0)))
        if type(_receive(transport, 9)[-1].message) is TiedWeight:
            return
    raise AssertionError("a control message waited until 32 MB of tensors had left")


def _silence(transport: Transport) -> None:
    """Nothing comes where nothing was sent, and asking does not block."""
    began = time.monotonic()
    assert transport.receive(0.01) is None
    assert time.monotonic() - began < PATIENCE_S


def _oneself(transport: Transport) -> None:
    """What one says to oneself arrives, and is not traffic."""
    transport.send(Envelope("w0", "w0", TiedWeight(1, torch.ones(3))))
    (got,) = _receive(transport, 1)
    assert _ends(got) == ("w0", "w0")
    assert transport.traffic.bytes_sent == 0


def _counting(transport: Transport) -> None:
    """Traffic is counted by sender, and a tensor counts for at least its bytes."""
    transport.send(Envelope("w0", "w1", TiedWeight(1, torch.ones(1000))))
    transport.send(Envelope("w1", "w0", Seal(1)))
    _receive(transport, 2)
    by_sender = transport.traffic.by_sender
    assert by_sender["w0"] >= 4000, f"4000 bytes of tensor counted as {by_sender['w0']}"
    assert 0 < by_sender["w1"] < 1000, f"a seal counted as {by_sender['w1']} bytes"
    assert transport.traffic.bytes_sent == by_sender["w0"] + by_sender["w1"]


def _closing(transport: Transport) -> None:
    """After `close` nothing goes, and a second one does nothing."""
    transport.close()
    transport.close()
    uses: dict[str, Callable[[], object]] = {
        "send": lambda: transport.send(Envelope("w0", "w1", Seal(1))),
        "receive": lambda: transport.receive(0.0),
    }
    for name, use in uses.items():
        try:
            use()
        except NetworkError:
            continue
        raise AssertionError(f"{name} after close did not raise NetworkError")


def _receive(transport: Transport, count: int) -> list[Envelope]:
    arrived: list[Envelope] = []
    while len(arrived) < count:
        envelope = transport.receive(PATIENCE_S)
        assert envelope is not None, f"{len(arrived)} of {count} messages arrived within {PATIENCE_S} s each"
        arrived.append(envelope)
    return arrived


def _ends(envelope: Envelope) -> tuple[str, str]:
    return envelope.sender, envelope.recipient


def _fingerprint(message: Message) -> str:
    """Text in which equal messages are equal: `repr` tells NaN and -0.0, digests tell tensors."""
    match message:
        case Claim(header, tensor, origin):
            return f"{header!r} {tensor_digest(tensor).hex()} {origin is not None and tensor_digest(origin).hex()}"
        case StateTransfer(state, role):
            names = sorted(state.weights), sorted(state.moments)
            return f"{role!r} {state.stage} {state.version} {names} {state_digest(state).hex()}"
        case TiedGradient(step, attempt, micro_batch, tensor):
            return f"{step} {attempt} {micro_batch} {tensor_digest(tensor).hex()}"
        case TiedWeight(version, tensor):
            return f"{version} {tensor_digest(tensor).hex()}"
        case _:
            return repr(message)
