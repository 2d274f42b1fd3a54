"""Lies in a state: about gradients, norms and updates, in a shadow, in weights that are handed over.

    name            who       lies about                                   after               and is caught by
    wrong-gradient  primary   the sum of its weight gradients              DESIGN 2, trap 2    the agreement before the update
    wrong-norm      primary   the norms that make the clip scale           DESIGN 2, trap 2    the agreement before the update
    wrong-update    primary   weights and optimizer state after the step   DESIGN 2, trap 2    the seal, or its next claims
    corrupt-shadow  shadow    nothing yet: it spoils the weights it keeps  DESIGN 2, trap 2    its own next verdict
    substitute      primary   the sealed state that it is told to send     DESIGN 2, takeover  the digest that was sealed

Where a lie is in a state (`mode=state`, `mode=secret`) the liar alters its own memory, in new buffers, since what it has sent
may share the old ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from holdfast.attacks.attack import FORWARD_ONLY, Scene
from holdfast.attacks.lie import Backstage, Lie, header_of, other_digest, with_header
from holdfast.claim import Direction, Role
from holdfast.digest import state_digest
from holdfast.message import Envelope, StateTransfer, Work

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
        execution._sum = [noisy(tensor, scene, size) for tensor in execution._sum]

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
        execution._candidate = ({name: noisy(tensor, scene, size) for name, tensor in weights.items()}, moments)

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
            parameter.data = noisy(parameter.data, backstage.scene, self.size)
        backstage.ledger.taint(worker, work.key.stage, work.key.step, weights=True)


@dataclass(kw_only=True)
class Substitute(Lie):
    """Told to send the sealed state of a stage, send another one: its weights with noise of the relative `size`.

    To whoever asks, a new holder, the archive of a checkpoint, the referee or a checker; `times` a step, or (0) every time.
    All of them hold what arrives against the sealed digest, so that it is refused and asked for again, of another holder
    where there is one; and who sends it to a trusted party is convicted. It is no claim: the ledger keeps it among the
    misdeeds, under the update that the state is the result of.
    """

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = UPDATE_ONLY
    direction: str = "update"
    size: float = 0.1
    times: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.size > 0:
            self.refuse(f"size must be greater than 0, got {self.size}")
        if self.times < 0:
            self.refuse(f"times must be at least 0 (every time), got {self.times}")

    def hand_over(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        transfer, memory = envelope.message, backstage.scene.memory
        assert isinstance(transfer, StateTransfer)
        step, sent = memory.get("substituted", (-1, 0))
        sent = sent + 1 if step == backstage.key.step else 1
        if self.times and sent > self.times:
            return [envelope]
        memory["substituted"] = (backstage.key.step, sent)
        weights = {name: noisy(weight, backstage.scene, self.size) for name, weight in transfer.state.weights.items()}
        made_by = replace(
            backstage.key, step=transfer.state.version - 1, attempt=0
        )  # the update that this state is the result of
        backstage.ledger.offend(backstage.scene.worker, made_by)
        return [replace(envelope, message=replace(transfer, state=replace(transfer.state, weights=weights)))]


def noisy(tensor: Tensor, scene: Scene, size: float) -> Tensor:
    """The tensor with noise of `size` times its root mean square, never none; a new buffer of the same layout."""
    scale = size * (float(tensor.float().square().mean().sqrt()) + 1e-3)
    noisy = torch.empty_like(tensor)
    noisy.copy_(tensor + scene.normal_like(tensor) * scale)
    return noisy
