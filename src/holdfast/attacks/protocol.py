"""Lies in what is said of a claim: its input, two things at once, another tensor to one receiver, a false accusation.

    name           who      lies about                               after                  and is caught by
    wrong-parent   primary  the input that it worked from            Lu et al. 2024, a_dup  the chain of digests
    equivocation   primary  one thing, then another, to the board    Lamport et al. 1982    the board's first header
    lie-on-jump    primary  the tensor to the next stage's shadow    DESIGN 2, claim board  the digest; its own signature
    lie-on-direct  primary  the tensor to the next stage's primary   DESIGN 2, claim board  the digest; its own signature
    framing        shadow   what an honest stage should have said    DESIGN 2, trap 1       the referee
    flood          primary  deliveries to it that were right         Sun et al. 2008        the coordinator's own delivery

Sun, Han and Liu 2008 ("Defense of trust management vulnerabilities in distributed networks") call the last two bad-mouthing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from holdfast.attacks.attack import FORWARD_ONLY, ON_THE_WIRE
from holdfast.attacks.lie import Backstage, Lie, header_of, other_digest, with_header
from holdfast.claim import Claim, Direction, Header, Role
from holdfast.digest import tensor_digest
from holdfast.message import BeginStep, Complaint, Envelope

COORDINATOR = "coordinator"


@dataclass(kw_only=True)
class WrongParent(Lie):
    """Say that the honest output was computed from another input."""

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        honest = header_of(envelope).inputs
        said = tuple(other_digest(digest) for digest in honest)
        backstage.record("inputs", honest, said)
        return [with_header(envelope, lambda header: replace(header, inputs=said))]


@dataclass(kw_only=True)
class Equivocation(Lie):
    """Post two headers to the board: the honest one, then another (`honest_first=false`: the other way round)."""

    honest_first: bool = True

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        if not isinstance(envelope.message, Header) or not envelope.message.output:
            return [envelope]
        honest = envelope.message.output
        backstage.record("second header", honest, other_digest(honest))
        lying = with_header(envelope, lambda header: replace(header, output=other_digest(honest)))
        return [envelope, lying] if self.honest_first else [lying, envelope]


@dataclass(kw_only=True)
class _OneDelivery(Lie):
    """Send -x to one receiver and x to all others; the board has the digest of x.

    With `header=true` (the default) the delivery comes with the digest of -x, else with that of x.
    """

    header: bool = True

    @abstractmethod
    def victim(self, backstage: Backstage) -> str | None:
        """Who gets the other tensor."""

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        claim = envelope.message
        if not isinstance(claim, Claim) or envelope.recipient != self.victim(backstage):
            return [envelope]
        forged = backstage.packing.through(torch.neg, claim.tensor)
        digest = tensor_digest(forged)
        backstage.record(f"delivery to {envelope.recipient}", tensor_digest(claim.tensor), digest)
        lying = replace(claim.header, output=digest if self.header and claim.header.output else claim.header.output)
        return [replace(envelope, message=replace(claim, header=lying, tensor=forged))]


@dataclass(kw_only=True)
class LieOnJump(_OneDelivery):
    """Send another tensor over the jumping connection only, to the shadow of the next stage."""

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = FORWARD_ONLY

    def victim(self, backstage: Backstage) -> str | None:
        return backstage.jump()


@dataclass(kw_only=True)
class LieOnDirect(_OneDelivery):
    """Send another tensor to the primary of the next stage (backward: of the previous one) only."""

    def victim(self, backstage: Backstage) -> str | None:
        return backstage.direct()


@dataclass(kw_only=True)
class Framing(Lie):
    """Accuse an honest stage: as its shadow, post another digest than the one computed."""

    role: ClassVar[Role] = Role.SHADOW
    choices: ClassVar[Mapping[str, frozenset[Direction]]] = ON_THE_WIRE

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        honest = header_of(envelope).output
        backstage.record("output", honest, other_digest(honest))
        return [with_header(envelope, lambda header: replace(header, output=other_digest(honest)))]


@dataclass(kw_only=True)
class Flood(Lie):
    """Complain about deliveries that were right, without any evidence: `per_step` of them, or (0) every one.

    A complaint between two workers proves nothing; it is answered, by another holder and then by the coordinator itself. Who
    complains of that delivery too is convicted. `direction` says about which deliveries: hidden states, gradients or both.
    """

    direction: str = "both"
    per_step: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_step < 0:
            self.refuse(f"per_step must be at least 0 (every delivery), got {self.per_step}")

    def hear(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        memory, message, route = backstage.scene.memory, envelope.message, backstage.route
        if isinstance(message, BeginStep):
            memory["complaints"] = 0
        if not isinstance(message, Claim) or not backstage.struck or route is None:
            return []
        key, name, sender = message.header.key, backstage.scene.worker, envelope.sender
        enough = self.per_step and memory.get("complaints", 0) >= self.per_step
        if key.direction not in self.directions or name not in route.consumers(key.direction, key.stage) or enough:
            return []
        if sender == name:
            return []  # its own, for its other seat
        memory["complaints"] = memory.get("complaints", 0) + 1
        right = tensor_digest(message.tensor)
        backstage.ledger.record(name, key, "complaint", right, other_digest(right))
        return [Envelope(name, COORDINATOR, Complaint(key, sender, other_digest(right)))]
