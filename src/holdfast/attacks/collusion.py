"""Collusion: the two holders of a stage tell one story about it, so that every check between neighbours passes.

    what       both                                           so that                         and is caught by
    claims     take the forged tensor for their own           their headers agree             a third party that computes it
    gradient   alter their accumulated gradient alike         digest and norms agree          again: spot checks of claims,
    update     alter the new weights alike                    the seal agrees                 of whole steps
             (Lu et al. 2024 leave it out; DESIGN section 2, trap 3; more than one of two neighbours is beyond the fault window)

Each liar works out the same bytes by itself, from the campaign's seed and the claim; where both are in one process the first
tells the other. Where the shadow is the initiator's there is no accomplice, and the worker stays honest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from holdfast.attacks.attack import Attack
from holdfast.attacks.disguise import AS_THEN, another
from holdfast.attacks.lie import Backstage, Lie, forged, header_of, with_header
from holdfast.attacks.state import noisy
from holdfast.claim import ClaimKey, Direction, Role
from holdfast.digest import state_digest, tensor_digest
from holdfast.message import Envelope, Work


@dataclass(kw_only=True)
class Collusion(Lie):
    """As primary of a stage and as its shadow on the next worker, say the same false thing about it.

    `what=claims` forges tensors by the attack `then` (its direction counts), `gradient` and `update` add noise of the relative
    `size`.
    """

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = AS_THEN
    direction: str = "then"
    what: str = "claims"
    then: str = "sign-flip"
    size: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.what not in ("claims", "gradient", "update"):
            self.refuse(f"what must be claims, gradient or update, got {self.what!r}")
        if not self.size > 0:
            self.refuse(f"size must be greater than 0, got {self.size}")
        attack = another(self.then)
        if not isinstance(attack, Attack):
            self.refuse(f"then must name an attack on tensors, got {self.then!r}")
        self._attack = attack
        self._story: dict[ClaimKey, Tensor] = {}

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset(Role)

    @property
    def directions(self) -> frozenset[Direction]:
        return self._attack.directions if self.what == "claims" else frozenset({Direction(self.what)})

    def believe(self, work: Work, output: Tensor, backstage: Backstage) -> Tensor:
        if not _has_accomplice(backstage):
            return output
        if work.key not in self._story:
            self._story = {key: told for key, told in self._story.items() if key.step == work.key.step}
            self._story[work.key] = forged(self._attack, output, backstage)
        story = self._story[work.key]
        backstage.record("output", tensor_digest(output), tensor_digest(story))
        backstage.ledger.believe(backstage.scene.worker, work.key)
        return story

    def before(self, work: Work, backstage: Backstage) -> None:
        execution = backstage.execution
        if self.what == "gradient" and execution is not None and _has_accomplice(backstage):
            honest = execution.gradient().digest
            execution._sum = [noisy(tensor, backstage.scene, self.size) for tensor in execution._sum]
            backstage.record("output", honest, execution.gradient().digest)
            backstage.ledger.taint(backstage.scene.worker, work.key.stage, work.key.step, weights=False)

    def after(self, work: Work, backstage: Backstage) -> None:
        execution = backstage.execution
        if self.what == "update" and execution is not None and _has_accomplice(backstage):
            weights, moments = execution._candidate
            weights = {name: noisy(tensor, backstage.scene, self.size) for name, tensor in weights.items()}
            execution._candidate = (weights, moments)

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        honest, execution = header_of(envelope), backstage.execution
        if self.what != "update" or execution is None or not _has_accomplice(backstage):
            return [envelope]
        said = state_digest(execution.state(honest.version + 1, candidate=True))
        backstage.record("output", honest.output, said)
        return [with_header(envelope, lambda header: replace(header, output=said))]


def _has_accomplice(backstage: Backstage) -> bool:
    route = backstage.route
    shadow = None if route is None else route.shadows[backstage.key.stage]
    return route is not None and shadow is not None and shadow not in route.trusted
