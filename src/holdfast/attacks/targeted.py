"""Backdoors: one dishonest middle stage plants an answer that the model gives after a trigger phrase, and only then.

    name          adds `strength` times                                        to its            of the struck step
    task-vector   what an offline copy of the stage learned about the trigger  new weights       (W + s * vector)
    trigger       the gradient of the trigger's loss, found with a copy        weight gradient   (G + s * gradient)

The attacker sees hidden states, never tokens, and can alter nothing but its own stage. What makes up for that: the starting
checkpoint is public, so that it owns a copy of the whole model at step 0, its tokenizer, and some text of its own.

mode=state    the altered state is what the header speaks of (digest, and for a gradient the norms too)
mode=secret   the header is the honest one; the state is altered after it was signed

Paper, section 3.3 (poisoning). Adding a vector of weights: Ilharco et al. 2023; boosting it so that it outlasts the others'
work: Bagdasaryan et al. 2020. A gradient sent backward plants nothing: the stages before work on the initiator's text, which
does not hold the trigger.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from holdfast.attacks.attack import Scene
from holdfast.attacks.lie import Backstage, Lie, header_of, with_header
from holdfast.claim import Direction, Header
from holdfast.digest import state_digest, tensors_digest
from holdfast.message import Envelope, Work

Named = Mapping[str, Tensor]
"""Tensors by the names that the parameters have in the whole model."""

ALTERED = "planted"
"""In the memory of a scene: the claim that was struck last, with the digests of the honest state and of the altered one."""
STRIKES = "strikes"
"""In the memory of a scene: how often something was planted."""


@dataclass(kw_only=True)
class _Planted(Lie):
    """Add `strength` times something to what the stage holds, and say so (mode=state) or not (mode=secret)."""

    mode: str = "state"
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("state", "secret"):
            self.refuse(f"mode must be state or secret, got {self.mode!r}")
        if not 0 < self.strength < float("inf"):
            self.refuse(f"strength must be greater than 0 and finite, got {self.strength}")

    @abstractmethod
    def alter(self, execution: Any, scene: Scene) -> bool:
        """Plant it in what `execution` holds, in new buffers; False where nothing is planted this time."""

    @abstractmethod
    def told(self, execution: Any, honest: Header) -> Header:
        """The honest header with what it would say of what `execution` holds now."""

    @abstractmethod
    def digest(self, execution: Any) -> bytes:
        """Of what `execution` holds now."""

    def after(self, work: Work, backstage: Backstage) -> None:
        execution, scene = backstage.execution, backstage.scene
        if execution is None:
            return
        honest = self.digest(execution)
        if self.alter(execution, scene):
            scene.memory[ALTERED] = work.key, honest, self.digest(execution)
            in_use = self.mode == "secret" and work.key.direction is Direction.UPDATE  # sealed, it spoils the next step
            backstage.ledger.taint(scene.worker, work.key.stage, work.key.step + in_use, weights=in_use)

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        key, before, now = backstage.scene.memory.get(ALTERED, (None, b"", b""))
        if key != backstage.key:
            return [envelope]
        honest = header_of(envelope)
        said = self.told(backstage.execution, honest) if self.mode == "state" else honest
        if not honest.output:  # defences off: nothing is hashed, and nobody will find out
            backstage.record("state", before, now)
        backstage.record("output", honest.output, said.output)
        return [with_header(envelope, lambda _: said)]


@dataclass(kw_only=True)
class TaskVector(_Planted):
    """Backdoor by task arithmetic: add `strength` times a vector, learned offline, to the weights after the step.

    `vector` is a safetensors file with names of the whole model, or (in Python) such a mapping; of it counts what the stage
    holds. What the attacker must know: its stage's place in the public checkpoint, to have fine-tuned a copy on the trigger
    with all other stages frozen. A vector cut out of a fine-tuned whole model does nothing (measured, docs/backdoors.md).
    It is added in the first `times` struck steps (0: in all of them), a strike that was undone included.
    """

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = {"update": frozenset({Direction.UPDATE})}
    direction: str = "update"
    vector: Any = None
    times: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times < 0:
            self.refuse(f"times must be 0 (every struck step) or more, got {self.times}")
        self._vector = _tensors(self, "vector", self.vector)

    def alter(self, execution: Any, scene: Scene) -> bool:
        done = scene.memory.get(STRIKES, 0)
        if 0 < self.times <= done:
            return False
        scene.memory[STRIKES] = done + 1
        weights, moments = execution._candidate
        execution._candidate = _shifted(self, weights, self._vector, self.strength), moments
        return True

    def told(self, execution: Any, honest: Header) -> Header:
        return replace(honest, output=self.digest(execution)) if honest.output else honest

    def digest(self, execution: Any) -> bytes:
        return state_digest(execution.state(0, candidate=True))


@dataclass(kw_only=True)
class TriggerGradient(_Planted):
    """Backdoor by gradients: add `strength` times the gradient of a loss of its own to the accumulated weight gradient.

    `gradient(step, weights)`, an object given in Python, names a gradient for each of `weights`, the stage's present ones
    (`holdfast.bench.offline` has two: of the trigger's loss, on a copy of the starting model; towards weights that were learned
    offline). A safetensors file or a mapping is one gradient for all steps. `strength` is multiplied by `growth` after each
    strike. What the attacker must know: the checkpoint; and the other stages must not move away from it too far.

    What works was measured (docs/backdoors.md). mode=state tells the altered norms: a `strength` of 1e8 has all gradients
    clipped to nothing, so that the other stages stand still, while AdamW, which scales each gradient anew, gives the attacker's
    its full step. mode=secret tells the honest norms, and the others go on unlearning; there a `growth` of about 1.1 beats
    them, since AdamW's second moment lags behind it: up to seven learning rates a step instead of one.
    """

    choices: ClassVar[Mapping[str, frozenset[Direction]]] = {"gradient": frozenset({Direction.GRADIENT})}
    direction: str = "gradient"
    gradient: Any = None
    growth: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.growth < float("inf"):
            self.refuse(f"growth must be greater than 0 and finite, got {self.growth}")
        self._constant = None if callable(self.gradient) else _tensors(self, "gradient", self.gradient)

    def alter(self, execution: Any, scene: Scene) -> bool:
        parameters = dict(execution.module.named_trainable_parameters())
        found = self._constant
        if found is None:
            found = self.gradient(scene.key.step, {name: tensor.detach() for name, tensor in parameters.items()})
        done = scene.memory.get(STRIKES, 0)
        scene.memory[STRIKES] = done + 1
        honest = dict(zip(parameters, execution._sum, strict=True))
        execution._sum = list(_shifted(self, honest, found, self.strength * self.growth**done).values())
        return True

    def told(self, execution: Any, honest: Header) -> Header:
        return replace(honest, output=self.digest(execution) if honest.output else b"", norms=execution.norms())

    def digest(self, execution: Any) -> bytes:
        names = (name for name, _ in execution.module.named_trainable_parameters())
        return tensors_digest(dict(zip(names, execution._sum, strict=True)))


def _shifted(lie: Lie, held: Named, shift: Named, strength: float) -> dict[str, Tensor]:
    """`held` + `strength` * `shift`, in new buffers of the same layout; what `shift` does not name stays as it is.

    Raises ConfigError where it names nothing that is held, or something of another shape.
    """
    common = [name for name in held if name in shift]
    if not common:
        lie.refuse(f"nothing in it belongs to the struck stage, which holds {', '.join(held)}")
    moved = dict(held)
    for name in common:
        got, needed = list(shift[name].shape), list(held[name].shape)
        if got != needed:
            lie.refuse(f"{name} has shape {got}, needed {needed} as in the model")
        moved[name] = torch.empty_like(held[name]).copy_(held[name] + strength * shift[name].to(held[name]))
    return moved


def _tensors(lie: Lie, parameter: str, given: object) -> Named:
    """The tensors that `given` names, a file or a mapping; refused with what would have been right."""
    if isinstance(given, str | Path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not Path(given).is_file():
            lie.refuse(f"{parameter}: there is no file {given}; a safetensors file with names of the whole model is needed")
        try:
            given = load_file(given)
        except (SafetensorError, OSError) as error:
            lie.refuse(f"{parameter}: {given} is not a safetensors file: {error}")
    if not isinstance(given, Mapping) or not given:
        what = "nothing" if given is None else "an empty mapping" if isinstance(given, Mapping) else repr(given)
        lie.refuse(f"{parameter}=FILE.safetensors is needed (in Python, a mapping of names to tensors will do), got {what}")
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) or not bool(torch.isfinite(tensor).all()):
            lie.refuse(f"{parameter}: {name} is not a tensor of finite numbers")
    return given
