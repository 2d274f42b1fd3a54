"""Attacks that hide another attack: honest until one is trusted, or while one is watched.

    name        runs `then`, but                                       after
    sleeper     not in its first `sleep` strikes                       Sun et al. 2008: the on-off attack
    clean-twin  not for `shy` steps after its stage was looked at      Sun et al. 2008; emission tests met a defeat device

Sun, Han and Liu 2008: "Defense of trust management vulnerabilities in distributed networks". What catches them is what catches
`then`: no worker is ever trusted for its past here, and what is checked is drawn after it was signed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from holdfast.attacks.attack import Misconduct
from holdfast.attacks.lie import Backstage, Lie, lie_of
from holdfast.claim import ClaimKey, Direction, Role
from holdfast.message import BeginStep, Envelope, Message, SendState, Supply, Work

WATCHERS = ("referee", "checker")
"""Who asks for states and tensors in order to compute a claim again: the names are part of the protocol."""

AS_THEN: Mapping[str, frozenset[Direction]] = {"then": frozenset()}
"""For whoever lies about what `then` lies about."""


def another(then: str) -> Misconduct:
    """The attack that a parameter names, with its own parameters behind plus signs: `then=perturb+epsilon=0.01`.

    >>> another("scale+factor=3")
    Scale(direction='forward', factor=3)
    """
    from holdfast.attacks.registry import resolve_attack  # which knows the modules that call this

    return resolve_attack(then.replace("+", ","))


@dataclass(kw_only=True)
class Disguise(Lie):
    """Another attack, as long as it `acts`; whatever its kind, on tensors or not. Its direction is that of `then`."""

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = AS_THEN
    direction: str = "then"
    then: str = "sign-flip"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lie = lie_of(another(self.then))

    @abstractmethod
    def acts(self, backstage: Backstage) -> bool:
        """Whether the other attack does anything about a struck claim now."""

    @property
    def roles(self) -> frozenset[Role]:
        return self._lie.roles

    @property
    def directions(self) -> frozenset[Direction]:
        return self._lie.directions

    def before(self, work: Work, backstage: Backstage) -> None:
        if self.acts(backstage):
            self._lie.before(work, backstage)

    def believe(self, work: Work, output: Tensor, backstage: Backstage) -> Tensor:
        return self._lie.believe(work, output, backstage) if self.acts(backstage) else output

    def after(self, work: Work, backstage: Backstage) -> None:
        if self.acts(backstage):
            self._lie.after(work, backstage)

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        return self._lie.rewrite(envelope, backstage) if self.acts(backstage) else [envelope]

    def hand_over(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        return self._lie.hand_over(envelope, backstage) if self.acts(backstage) else [envelope]

    def hear(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        return self._lie.hear(envelope, self._seen_by_then(backstage))

    def worked(self, work: Work, backstage: Backstage) -> Sequence[Envelope]:
        return self._lie.worked(work, self._seen_by_then(backstage))

    def _seen_by_then(self, backstage: Backstage) -> Backstage:
        return replace(backstage, struck=backstage.struck and self.acts(backstage))


@dataclass(kw_only=True)
class Sleeper(Disguise):
    """Be honest for the first `sleep` strikes (steps that the campaign draws), then run another attack."""

    sleep: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sleep < 0:
            self.refuse(f"sleep must be at least 0 strikes, got {self.sleep}")

    def acts(self, backstage: Backstage) -> bool:
        return backstage.scene.earlier_strikes() >= self.sleep


@dataclass(kw_only=True)
class CleanTwin(Disguise):
    """Run another attack, but be honest for `shy` steps after the own stage was looked at.

    A holder notices: the referee or a checker asks it for the stage's state, or for what the stage worked from. What it has
    said already it does not take back, since two headers for one claim would be proof.
    """

    shy: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shy < 1:
            self.refuse(f"shy must be at least 1 step, got {self.shy}")

    def acts(self, backstage: Backstage) -> bool:
        memory, key = backstage.scene.memory, backstage.key
        said: dict[ClaimKey, bool] = memory.get("said", {})
        return said.get(key, "looked" not in memory or key.step > memory["looked"] + self.shy)

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        backstage.scene.memory.setdefault("said", {}).setdefault(backstage.key, self.acts(backstage))
        return super().rewrite(envelope, backstage)

    def hear(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        memory, step = backstage.scene.memory, backstage.key.step
        if isinstance(envelope.message, BeginStep):
            memory.pop("said", None)
        if envelope.sender in WATCHERS and self._is_about(envelope.message, backstage):
            memory["looked"] = step
        return super().hear(envelope, backstage)

    def _is_about(self, message: Message, backstage: Backstage) -> bool:
        stage, route = backstage.key.stage, backstage.route
        if isinstance(message, SendState):
            return message.stage == stage
        if not isinstance(message, Supply) or route is None:
            return False
        feeds = {Direction.FORWARD: route.before(stage), Direction.BACKWARD: route.after(stage)}
        return message.key.stage == feeds.get(message.key.direction)
