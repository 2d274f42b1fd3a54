"""A lie is what a dishonest worker does to the messages about a struck claim, or to its own state around its work.

    execute(work):   before(work) ─> the honest worker computes ─> after(work) ─> rewrite(each outgoing claim and header)

Forging the tensor (`Forgery`, which applies an `Attack`) is the lie about a value; the others are in `protocol.py`.
"""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from holdfast.attacks.attack import Attack, Misconduct, Scene
from holdfast.attacks.ledger import Ledger
from holdfast.claim import Claim, ClaimKey, Direction, Header, Role
from holdfast.digest import tensor_digest
from holdfast.errors import ConfigError
from holdfast.message import Envelope, Work
from holdfast.route import Route


@dataclass(frozen=True)
class Backstage:
    """What a lie may look at and touch: the scene, the route, the own stage (an execution, None where not reachable).

    `honest` is the tensor of the claim where one is leaving now.
    """

    scene: Scene
    route: Route | None
    execution: Any
    ledger: Ledger
    honest: Tensor | None = None

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
    """Called by the dishonest worker for claims that the campaign strikes, where it acts in `role`. Keeps no state of its own.

    By default it does nothing: a lie overrides what it needs.
    """

    role: ClassVar[Role] = Role.PRIMARY

    def before(self, work: Work, backstage: Backstage) -> None:
        """Before the honest worker does `work` on the struck claim."""

    def after(self, work: Work, backstage: Backstage) -> None:
        """After it, and before the messages leave."""

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        """What leaves in place of `envelope`, which holds the worker's own `Claim` or `Header` about the struck claim."""
        return [envelope]


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
        forged = self._forge(backstage)
        if forged is None:
            return [envelope]
        header = header_of(envelope)
        output = tensor_digest(forged) if header.output else b""  # with defences off nothing is hashed
        lying = replace(header, output=output)
        if isinstance(envelope.message, Claim):
            origin = self._pretend(envelope.message.origin, backstage)
            return [replace(envelope, message=Claim(lying, forged, origin))]
        return [replace(envelope, message=lying)]

    def _pretend(self, origin: Tensor | None, backstage: Backstage) -> Tensor | None:
        """The input that the verifier is shown, for it to come to the forged output by honest work."""
        if origin is None:
            return None
        shown = self.attack.pretend(origin.clone(), backstage.scene).detach()
        self._check("pretend", origin, shown)
        return shown.contiguous()

    def _forge(self, backstage: Backstage) -> Tensor | None:
        slot = (backstage.scene.worker, backstage.key)
        if slot not in self._forged and backstage.honest is not None:
            self._forged = {old: tensor for old, tensor in self._forged.items() if old[1].step == backstage.key.step}
            honest = backstage.honest
            forged = self.attack.forge(honest.clone(), backstage.scene).detach()
            self._check("forge", honest, forged)
            self._forged[slot] = forged.contiguous()
            backstage.record("output", tensor_digest(honest), tensor_digest(forged))
        return self._forged.get(slot)

    def _check(self, method: str, honest: Tensor, made: Tensor) -> None:
        got, needed = ((tuple(t.shape), t.dtype, t.device) for t in (made, honest))
        if got != needed:
            name = type(self.attack).__name__
            raise ConfigError(f"attack {name}: {method} gave a tensor of {got}, needed {needed}, like the honest one")


def lie_of(misconduct: Misconduct) -> Lie:
    """The lie that tells a misconduct: itself, or the forgery that applies an attack on tensors."""
    if isinstance(misconduct, Lie):
        return misconduct
    assert isinstance(misconduct, Attack), f"{misconduct!r} is neither a lie nor an attack"
    return Forgery(misconduct)


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
