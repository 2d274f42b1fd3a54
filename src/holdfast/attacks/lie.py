"""A lie is what a dishonest worker does to its messages, to its own state around its work, or says though nobody asked.

    execute(work):     before ─> the honest worker computes ─> believe ─> after ─> rewrite (each own claim and header)
                                                                                   hand_over (each state)
    after any work:    worked  ─> leaves besides
    receive(message):  the honest worker takes it ─> the same for what it answers; hear ─> leaves besides

Forging the tensor (`Forgery`, which applies an `Attack`) is the lie about a value; the table of the others is in `registry.py`.
"""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from holdfast.attacks.attack import Attack, Misconduct, Scene
from holdfast.attacks.ledger import Ledger
from holdfast.claim import Claim, ClaimKey, Direction, Header, Role
from holdfast.digest import tensor_digest
from holdfast.errors import ConfigError
from holdfast.message import Envelope, Work
from holdfast.quantise import AS_COMPUTED, Packing
from holdfast.route import Route


@dataclass(frozen=True)
class Backstage:
    """What a lie may look at and touch: the scene, the route, the own stage (an execution, None where not reachable).

    `honest` is the tensor of the claim where one is leaving now. `struck` says whether the campaign strikes here (around the
    own work and for own claims it always does). `packing` is how tensors travel: `honest` is packed, those of the scene are
    not. `sign` is the worker's own hand; `idle` tells whether the honest worker has nothing to do but wait.
    """

    scene: Scene
    route: Route | None
    execution: Any
    ledger: Ledger
    honest: Tensor | None = None
    struck: bool = True
    packing: Packing = AS_COMPUTED
    sign: Callable[[Header], Header] = lambda header: header
    idle: Callable[[], bool] = lambda: True

    @property
    def key(self) -> ClaimKey:
        return self.scene.key

    def record(self, what: str, honest: Hashable, said: Hashable) -> None:
        """Tell the ledger the truth."""
        self.ledger.record(self.scene.worker, self.key, what, honest, said)

    def direct(self) -> str | None:
        """The primary of the stage that the claim feeds."""
        consumers = self._consumers()
        return consumers[0] if consumers else None

    def jump(self) -> str | None:
        """The other holder of that stage: where the jumping connection goes."""
        consumers = self._consumers()
        return consumers[1] if len(consumers) > 1 else None

    def _consumers(self) -> tuple[str, ...]:
        if self.route is None:
            return ()
        consumers = self.route.consumers(self.key.direction, self.key.stage)
        return consumers if self.route.jump else consumers[:1]


class Lie(Misconduct, ABC):
    """Called by the dishonest worker around whatever it does in one of the `roles`. By default it does nothing.

    One object serves all dishonest workers of a campaign: what one of them must remember goes into `scene.memory`. Messages
    that a lie makes up itself, `hear` and `worked`, leave as they are; it signs them with `backstage.sign`, or does not.
    """

    role: ClassVar[Role] = Role.PRIMARY

    @property
    def roles(self) -> frozenset[Role]:
        """In which seats it lies: by default as `role` alone."""
        return frozenset({self.role})

    # -- about a claim that the campaign strikes ---------------------------------------------------------------------

    def before(self, work: Work, backstage: Backstage) -> None:
        """Before the honest worker does `work` on the struck claim."""

    def believe(self, work: Work, output: Tensor, backstage: Backstage) -> Tensor:
        """In the middle of a forward or backward pass: what the worker itself shall take for the `output` of its stage.

        Everything that it says and does afterwards follows from it: header, claims, its other seat. The trace of the pass
        stays honest.
        """
        return output

    def after(self, work: Work, backstage: Backstage) -> None:
        """After it, and before the messages leave."""

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        """What leaves in place of `envelope`, which holds the worker's own `Claim` or `Header` about the struck claim."""
        return [envelope]

    # -- about everything else; the key is that of the whole step, its update ----------------------------------------

    def hand_over(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        """What leaves in place of a `StateTransfer` of a stage that is struck in this step."""
        return [envelope]

    def hear(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        """After the honest worker has taken a message, once for every stage that it holds: what leaves besides.

        Struck or not: a lie that acts only when it is struck asks `backstage.struck`.
        """
        return []

    def worked(self, work: Work, backstage: Backstage) -> Sequence[Envelope]:
        """After any piece of work, once for every stage that it holds: what leaves besides."""
        return []


class Forgery(Lie):
    """The lie about a value, told consistently: every claim, every header says the same forged tensor.

    Where a claim shows the input that it was made from, the attack may show another one.
    """

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self._forged: dict[tuple[str, ClaimKey], Tensor] = {}

    @property
    def directions(self) -> frozenset[Direction]:
        return self.attack.directions

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        told = self._forge(backstage)
        if told is None:
            return [envelope]
        header = header_of(envelope)
        output = tensor_digest(told) if header.output else b""  # with defences off nothing is hashed
        lying = replace(header, output=output)
        if isinstance(envelope.message, Claim):
            origin = self._pretend(envelope.message.origin, backstage)
            return [replace(envelope, message=Claim(lying, told, origin))]
        return [replace(envelope, message=lying)]

    def _pretend(self, origin: Tensor | None, backstage: Backstage) -> Tensor | None:
        """The input that the verifier is shown, for it to come to the forged output by honest work."""
        if origin is None:
            return None
        there = backstage.packing.unpack(origin)
        shown = self.attack.pretend(there.clone(), backstage.scene).detach()
        _check(self.attack, "pretend", there, shown)
        return backstage.packing.pack(shown.contiguous())

    def _forge(self, backstage: Backstage) -> Tensor | None:
        slot = (backstage.scene.worker, backstage.key)
        if slot not in self._forged and backstage.honest is not None:
            self._forged = {old: tensor for old, tensor in self._forged.items() if old[1].step == backstage.key.step}
            self._forged[slot] = forged(self.attack, backstage.honest, backstage)
            backstage.record("output", tensor_digest(backstage.honest), tensor_digest(self._forged[slot]))
        return self._forged.get(slot)


def forged(attack: Attack, honest: Tensor, backstage: Backstage) -> Tensor:
    """What `attack` makes of `honest`, in a buffer of its own; raises ConfigError where it is of another kind.

    Both are packed as they travel; the attack itself is given the numbers, and what it makes of them is packed again.
    """
    numbers = backstage.packing.unpack(honest)
    made = attack.forge(numbers.clone(), backstage.scene).detach()
    _check(attack, "forge", numbers, made)
    return backstage.packing.pack(made.contiguous())


def _check(attack: Attack, method: str, honest: Tensor, made: Tensor) -> None:
    got, needed = ((tuple(t.shape), t.dtype, t.device) for t in (made, honest))
    if got != needed:
        name = type(attack).__name__
        raise ConfigError(f"attack {name}: {method} gave a tensor of {got}, needed {needed}, like the honest one")


def lie_of(misconduct: Misconduct) -> Lie:
    """The lie that tells a misconduct: itself, or the forgery that applies an attack on tensors."""
    if isinstance(misconduct, Lie):
        return misconduct
    assert isinstance(misconduct, Attack), f"{misconduct!r} is neither a lie nor an attack"
    return Forgery(misconduct)


@contextmanager
def computing(execution: Any, direction: Direction, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, `execution` gives `change(output)` where its forward or backward pass would give `output`."""
    honest = getattr(execution, direction, None)
    if honest is None or direction not in (Direction.FORWARD, Direction.BACKWARD):  # nothing to reach into
        yield
        return
    outer = vars(execution).get(direction)  # another liar around this one

    def changed(*given: Any) -> Any:
        result = honest(*given)
        if direction is Direction.FORWARD:
            return change(result)
        of_inputs, of_head = result
        return (of_inputs if of_inputs is None else change(of_inputs)), of_head

    setattr(execution, direction, changed)
    try:
        yield
    finally:
        delattr(execution, direction) if outer is None else setattr(execution, direction, outer)


def header_of(envelope: Envelope) -> Header:
    """The header that an envelope with a claim or a header holds."""
    message = envelope.message
    assert isinstance(message, (Claim, Header))
    return message.header if isinstance(message, Claim) else message


def with_header(envelope: Envelope, change: Callable[[Header], Header]) -> Envelope:
    """The envelope with its header changed, the rest as it was."""
    message = envelope.message
    if isinstance(message, Claim):
        return replace(envelope, message=replace(message, header=change(message.header)))
    assert isinstance(message, Header)
    return replace(envelope, message=change(message))


def other_digest(digest: bytes) -> bytes:
    """A digest that is not `digest`, the same each time; of nothing (defences off), nothing."""
    return hashlib.sha256(b"another " + digest).digest() if digest else b""
