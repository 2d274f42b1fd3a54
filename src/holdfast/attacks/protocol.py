"""Lies that are not about a tensor on the wire: about gradients, norms, updates, shadows, verdicts, parents, deliveries.

    name             who       lies about                                   and is caught by
    wrong-gradient   primary   the sum of its weight gradients              the agreement before the update
    wrong-norm       primary   the norms that make the clip scale           the agreement before the update
    wrong-update     primary   weights and optimizer state after the step   the seal, or its next claims
    corrupt-shadow   shadow    nothing yet: it spoils the weights it keeps  its own next verdict
    framing          shadow    what an honest stage should have said        the referee
    lie-on-jump      primary   the tensor to the next stage's shadow        the board's digest, its own signature
    lie-on-direct    primary   the tensor to the next stage's primary       the board's digest, its own signature
    wrong-parent     primary   the input that it worked from                the chain of digests
    equivocation     primary   one thing, then another, to the board        the board's first header
    withhold         primary   nothing: it does not deliver                 the receiver's complaint, the deadline

DESIGN section 2, traps 1 and 2. Where a lie is in a state (`mode=state`, `mode=secret`) the liar alters its own memory, in new
buffers, since what it has sent may share the old ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from holdfast.attacks.attack import ON_THE_WIRE, Scene
from holdfast.attacks.lie import Backstage, Lie, header_of, other_digest, with_header
from holdfast.claim import Claim, Direction, Header, Role
from holdfast.digest import state_digest, tensor_digest
from holdfast.message import Envelope, Work

FORWARD_ONLY = {"forward": frozenset({Direction.FORWARD})}
GRADIENT_ONLY = {"gradient": frozenset({Direction.GRADIENT})}
UPDATE_ONLY = {"update": frozenset({Direction.UPDATE})}


@dataclass(kw_only=True)
class _WholeStep(Lie):
    """A lie about a gradient or an update.

    mode=header   the state is honest, its digest in the header is not
    mode=state    the state is altered, and the header says so
    mode=secret   the state is altered after the honest header was made
    """

    mode: str = "header"
    size: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("header", "state", "secret"):
            self.refuse(f"mode must be header, state or secret, got {self.mode!r}")
        if not self.size > 0:
            self.refuse(f"size must be greater than 0, got {self.size}")

    @abstractmethod
    def alter(self, execution: Any, scene: Scene, size: float) -> None:
        """Spoil what `execution` holds, by noise of the relative `size`."""

    @abstractmethod
    def digest(self, execution: Any, version: int) -> bytes:
        """What an honest header would say of what `execution` holds now."""

    def after(self, work: Work, backstage: Backstage) -> None:
        if self.mode != "header" and backstage.execution is not None:
            self.alter(backstage.execution, backstage.scene, self.size)
            in_use = self.mode == "secret" and work.key.direction is Direction.UPDATE  # sealed, it spoils the next step
            backstage.ledger.taint(backstage.scene.worker, work.key.stage, work.key.step + in_use, weights=in_use)

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        honest = header_of(envelope)
        if self.mode == "secret" or not honest.output:
            return [envelope]
        said = other_digest(honest.output)
        if self.mode == "state" and backstage.execution is not None:
            said = self.digest(backstage.execution, honest.version + 1)
        backstage.record("output", honest.output, said)
        return [with_header(envelope, lambda header: replace(header, output=said))]


@dataclass(kw_only=True)
class WrongGradient(_WholeStep):
    """Lie about the accumulated weight gradient: in the header, in the state, or secretly after the header."""

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = GRADIENT_ONLY
    direction: str = "gradient"

    def alter(self, execution: Any, scene: Scene, size: float) -> None:
        execution._sum = [_noisy(tensor, scene, size) for tensor in execution._sum]

    def digest(self, execution: Any, version: int) -> bytes:
        gradient: bytes = execution.gradient().digest
        return gradient


@dataclass(kw_only=True)
class WrongUpdate(_WholeStep):
    """Lie about the new weights: in the header, in the state, or secretly after the header."""

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = UPDATE_ONLY
    direction: str = "update"

    def alter(self, execution: Any, scene: Scene, size: float) -> None:
        weights, moments = execution._candidate
        execution._candidate = ({name: _noisy(tensor, scene, size) for name, tensor in weights.items()}, moments)

    def digest(self, execution: Any, version: int) -> bytes:
        return state_digest(execution.state(version, candidate=True))


@dataclass(kw_only=True)
class WrongNorm(Lie):
    """Multiply the norms in the gradient's header by `factor`: below 1 it escapes clipping, above 1 it stalls all others."""

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = GRADIENT_ONLY
    direction: str = "gradient"
    factor: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 0 or self.factor == 1:
            self.refuse(f"factor must be at least 0 and not 1, got {self.factor}")

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        honest = header_of(envelope).norms
        said = tuple(norm * self.factor for norm in honest)
        backstage.record("norms", honest, said)
        return [with_header(envelope, lambda header: replace(header, norms=said))]


@dataclass(kw_only=True)
class CorruptShadow(Lie):
    """Spoil the weights of the shadow that it keeps, once, by noise of the relative `size`; its verdicts follow from them."""

    role: ClassVar[Role] = Role.SHADOW
    choices: ClassVar[Mapping[str, frozenset[Direction]]] = FORWARD_ONLY
    size: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.size > 0:
            self.refuse(f"size must be greater than 0, got {self.size}")

    def before(self, work: Work, backstage: Backstage) -> None:
        worker, execution = backstage.scene.worker, backstage.execution
        if execution is None or backstage.ledger.is_tainted(worker, work.key):
            return
        for _, parameter in execution.module.named_owned_parameters():
            parameter.data = _noisy(parameter.data, backstage.scene, self.size)
        backstage.ledger.taint(worker, work.key.stage, work.key.step, weights=True)


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
        forged = -claim.tensor
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
class Withhold(Lie):
    """Do not deliver: the tensor to the `direct` receiver, over the `jump`, to `everyone`, or the header to the `board`."""

    what: str = "direct"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.what not in ("direct", "jump", "everyone", "board"):
            self.refuse(f"what must be direct, jump, everyone or board, got {self.what!r}")

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        if not self._is_meant(envelope, backstage):
            return [envelope]
        backstage.record(f"delivery to {envelope.recipient}", header_of(envelope).output or b"a tensor", b"")
        return []

    def _is_meant(self, envelope: Envelope, backstage: Backstage) -> bool:
        if isinstance(envelope.message, Header):
            return self.what == "board"
        targets = {"direct": backstage.direct(), "jump": backstage.jump(), "everyone": envelope.recipient}
        return envelope.recipient == targets.get(self.what)


def _noisy(tensor: Tensor, scene: Scene, size: float) -> Tensor:
    """The tensor with noise of `size` times its root mean square, never none; a new buffer of the same layout."""
    scale = size * (float(tensor.float().square().mean().sqrt()) + 1e-3)
    noisy = torch.empty_like(tensor)
    noisy.copy_(tensor + scene.normal_like(tensor) * scale)
    return noisy
