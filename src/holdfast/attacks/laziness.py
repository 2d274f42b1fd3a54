"""Laziness: a worker that wants its seat and not its work, and says something cheap instead.

    name               who      says or does                                after               and is caught by
    lazy,mode=forward  primary  its input, as its output                    Lin et al. 2019     the shadow
    lazy,mode=update   primary  the old weights, as the new ones            Lin et al. 2019     the seal
    lazy,mode=copy     shadow   the primary's digest, where it sees the     Luu et al. 2015     its blind accounts, by the
                                tensor, and what it likes elsewhere                             referee
    stale-weights      primary  what comes of weights `lag` steps old       Ho et al. 2013      the shadow, the agreement

Lin, Du and Liu 2019 is "Free-riders in federated learning"; Luu et al. 2015, "Demystifying incentives in the consensus
computer", the verifier's dilemma: whose check never finds anything stops checking. Ho et al. 2013 bound staleness; here nobody
announces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from holdfast.attacks.attack import ON_THE_WIRE, Attack, Scene
from holdfast.attacks.lie import Backstage, Forgery, Lie, header_of, other_digest, with_header
from holdfast.claim import Claim, ClaimKey, Direction, Role
from holdfast.digest import same_bytes, state_digest
from holdfast.message import BeginStep, Envelope, Work


class PassOn(Attack):
    """What came in goes out: the hidden states forward, the gradient backward; the truth where nothing has come in."""

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        return scene.inputs[0].clone() if scene.inputs else honest


@dataclass(kw_only=True)
class Lazy(Lie):
    """Do not compute: pass the input on (`mode=forward`), keep the old weights (`update`), or copy as a shadow (`copy`).

    `direction` says of which passes; `copy` knows a fourth, `all`: gradient and update too. A copier sees the forward tensor,
    since that is its own input, and waits for it with its header. Such a header is honest where the primary was; the others
    are blind, and it must make them up.
    """

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = {**ON_THE_WIRE, "all": frozenset(Direction)}
    mode: str = "forward"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("forward", "update", "copy"):
            self.refuse(f"mode must be forward, update or copy, got {self.mode!r}")
        if self.mode != "copy" and self.direction == "all":
            self.refuse(f"direction=all is for mode=copy, got mode={self.mode}")
        self._forgery = Forgery(PassOn(direction="both"))

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset({Role.SHADOW if self.mode == "copy" else Role.PRIMARY})

    @property
    def directions(self) -> frozenset[Direction]:
        return frozenset({Direction.UPDATE}) if self.mode == "update" else self.choices[self.direction]

    def after(self, work: Work, backstage: Backstage) -> None:
        if self.mode == "update" and backstage.execution is not None:
            execution = backstage.execution
            old = {name: parameter.data for name, parameter in execution.module.named_trainable_parameters()}
            execution._candidate = (old, execution._moments)

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        if self.mode == "forward":
            return self._forgery.rewrite(envelope, backstage)
        honest = header_of(envelope)
        if self.mode == "update":
            if backstage.execution is None or not honest.output:
                return [envelope]
            said = state_digest(backstage.execution.state(honest.version + 1, candidate=True))
            return [self._saying(said, envelope, backstage)]
        seen: dict[ClaimKey, bytes] = backstage.scene.memory.get("seen", {})
        if backstage.key in seen:
            return [self._saying(seen[backstage.key], envelope, backstage)]
        if backstage.key.direction is Direction.FORWARD:
            backstage.scene.memory.setdefault("owed", {})[backstage.key] = envelope
            return []
        return [self._saying(other_digest(honest.output), envelope, backstage)]

    def hear(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        """The tensor that a copier has waited for."""
        message, memory = envelope.message, backstage.scene.memory
        if isinstance(message, BeginStep):
            memory.pop("seen", None)
            memory.pop("owed", None)
        if self.mode != "copy" or not isinstance(message, Claim) or message.header.key.stage != backstage.key.stage:
            return []
        memory.setdefault("seen", {}).setdefault(message.header.key, message.header.output)
        owed: Envelope | None = memory.get("owed", {}).pop(message.header.key, None)
        if owed is None:
            return []
        copied = self._saying(message.header.output, owed, backstage)
        return [with_header(copied, backstage.sign)]

    def _saying(self, said: bytes, envelope: Envelope, backstage: Backstage) -> Envelope:
        honest = header_of(envelope)
        backstage.ledger.record(backstage.scene.worker, honest.key, "output", honest.output, said)
        return with_header(envelope, lambda header: replace(header, output=said))


@dataclass(kw_only=True)
class StaleWeights(Lie):
    """Work with the weights of `lag` steps ago, as if the last updates had never been applied, in all that a struck step takes.

    Both passes, the gradient and the update follow from them. As long as there are none so old, the worker is honest.
    """

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = {"both": ON_THE_WIRE["both"]}
    direction: str = "both"
    lag: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lag < 1:
            self.refuse(f"lag must be at least 1, got {self.lag}")

    def hear(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        begin, memory = envelope.message, backstage.scene.memory
        if not isinstance(begin, BeginStep) or backstage.execution is None:
            return []
        parameters: dict[str, Any] = dict(backstage.execution.module.named_trainable_parameters())
        self._put_back(parameters, backstage)
        versions: dict[int, dict[str, Tensor]] = memory.setdefault("versions", {})
        versions[begin.version] = {name: parameter.data for name, parameter in parameters.items()}
        memory["versions"] = {version: old for version, old in versions.items() if version >= begin.version - self.lag}
        stale = memory["versions"].get(begin.version - self.lag)
        if backstage.struck and stale is not None and self._differ(stale, versions[begin.version]):
            memory["stale"] = stale
            for name, parameter in parameters.items():
                parameter.data = stale[name]
            backstage.ledger.taint(backstage.scene.worker, backstage.key.stage, begin.step, weights=True)
        return []

    def _put_back(self, parameters: Mapping[str, Any], backstage: Backstage) -> None:
        """Where a stale step was not sealed here (it starts again, or the stage was frozen), put the true weights back."""
        memory = backstage.scene.memory
        stale: dict[str, Tensor] = memory.pop("stale", {})
        kept = [name for name, old in stale.items() if parameters[name].data_ptr() == old.data_ptr()]
        if not kept:
            return
        newest = memory["versions"][max(memory["versions"])]
        for name in kept:
            parameters[name].data = newest[name]
        backstage.ledger.heal(backstage.scene.worker, backstage.key.stage, 0)

    def _differ(self, stale: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> bool:
        return any(not same_bytes(stale[name], now[name]) for name in now)
