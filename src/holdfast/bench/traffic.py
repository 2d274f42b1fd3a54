"""What a stage sees of its neighbours in an honest run, and what each attack would have shown it instead.

    worker ──claim──> Understudy: every attack forges it too, nobody sends that ──the claim, as it was──> out
                          └──> Window: one stage, one direction, one step: honest [M, B*S*D] and forged ones by attack

So every test meets the same honest traffic, and lies of every kind about all of it. The forging is that of the attacks
themselves, with what a dishonest worker would know there. What a lie that is used does to honest stages is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from holdfast import seeds
from holdfast.attacks import Attack, Campaign, DishonestWorker, Ledger, resolve_attack
from holdfast.attacks.lie import Backstage, Lie, forged
from holdfast.cast import Troupe
from holdfast.claim import ClaimKey, Direction
from holdfast.config import RunConfig
from holdfast.engine import names_of_workers
from holdfast.job import Job
from holdfast.message import Actor, Envelope, Work
from holdfast.result import RunResult
from holdfast.trainer import Trainer

WEIGHTS = "weight gradient"
"""The third kind of traffic: what a stage adds up for each micro-batch. It is never sent; federated learning would send it."""


@dataclass(frozen=True)
class Window:
    """What one stage said in one step, by micro-batch: `shape` is that of one tensor, [B, S, D].

    `forged[attack]` has the same form; `replicas` counts micro-batches that were computed a second time, and `equal` those that
    came out with the same bytes.
    """

    step: int
    stage: int
    kind: str
    honest: Tensor
    shape: tuple[int, ...] = ()
    forged: Mapping[str, Tensor] = field(default_factory=dict)
    replicas: int = 0
    equal: int = 0


Sink = Callable[[Window], None]


def watch(config: RunConfig, job: Job, attacks: Sequence[str], sink: Sink, *, weights: bool = True) -> tuple[RunResult, Ledger]:
    """Run `config`; `sink` gets a window for every untrusted stage, direction and step, with what `attacks` would have said.

    With `weights`, windows of weight gradients [M, parameters] too, which nobody forges. Attacks whose spec names no direction
    are measured in both. Where `config` has attacks of its own, those lie in earnest: `honest` is then what was said, and the
    ledger that comes back knows which claims are lies. Raises ConfigError for an attack that does not exist, or forges nothing.
    """
    gathering = _Gathering(config.pipeline.micro_batches, sink)
    cast = _Understudies(config, [forger(spec) for spec in attacks], gathering, weights=weights)
    result = Trainer(config, observers=(cast.observe,), cast=cast, job=replace(job, config=config)).run()
    return result, cast.ledger


def forger(spec: str) -> tuple[str, Attack]:
    """The attack that a spec names, in both directions where it names none. Raises ConfigError."""
    made = resolve_attack(spec if "direction=" in spec else f"{spec},direction=both")
    if not isinstance(made, Attack):
        raise made.refuse("it forges no tensor, and nothing else is compared here")
    return spec, made


class _Understudies(Troupe):
    """The cast of such a run: each worker has an understudy for its first stage, who says nothing."""

    def __init__(
        self, config: RunConfig, attacks: Sequence[tuple[str, Attack]], gathering: _Gathering, *, weights: bool
    ) -> None:
        super().__init__(config)
        self._names = names_of_workers(config.pipeline.stages)
        self._seed = config.training.seed
        self._lies = [Understudy(attacks, gathering, self._seed, weights=weights) for _ in self._names]

    def play(self, actor: Actor) -> Actor:
        stage = self._names.index(actor.name)
        campaign = Campaign(stages=(stage,), seed=seeds.derive(self._seed, "understudy"))
        return DishonestWorker(super().play(actor), self._lies[stage], campaign, self.ledger)


class Understudy(Lie):
    """Forges whatever its worker claims, for the record, and lets the truth go out."""

    def __init__(self, attacks: Sequence[tuple[str, Attack]], gathering: _Gathering, seed: int, *, weights: bool) -> None:
        self._attacks = attacks
        self._gathering = gathering
        self._seed = seed
        self._weights = weights
        self._memory: dict[str, dict[str, Any]] = {spec: {} for spec, _ in attacks}

    @property
    def directions(self) -> frozenset[Direction]:
        return frozenset({Direction.FORWARD, Direction.BACKWARD})

    def before(self, work: Work, backstage: Backstage) -> None:
        if self._weights and backstage.execution is not None and "_accumulate" not in vars(backstage.execution):
            self._overhear(backstage.execution, work)

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        if backstage.honest is not None and not self._gathering.has(backstage.key):
            told = {spec: forged(attack, backstage.honest, self._play(spec, backstage)) for spec, attack in self._attacks}
            numbers = {spec: backstage.packing.unpack(tensor) for spec, tensor in told.items()}
            self._gathering.add(backstage.key, backstage.packing.unpack(backstage.honest), numbers, _again(backstage))
        return [envelope]

    def _play(self, spec: str, backstage: Backstage) -> Backstage:
        """The same scene with what is private to one attack."""
        key = backstage.key
        seed = seeds.derive(self._seed, "forge", spec, key.step, str(key.direction), key.stage, key.micro_batch)
        generator = torch.Generator().manual_seed(seed)
        return replace(backstage, scene=replace(backstage.scene, generator=generator, memory=self._memory[spec]))

    def _overhear(self, execution: Any, work: Work) -> None:
        """From now on every weight gradient of the stage is gathered before it is added to the sum."""
        accumulate, stage = execution._accumulate, work.key.stage

        def overheard(micro_batch: int, gradients: Sequence[Tensor]) -> None:
            self._gathering.add_weights(execution._step, stage, micro_batch, gradients)
            accumulate(micro_batch, gradients)

        execution._accumulate = overheard


def _again(backstage: Backstage) -> bool | None:
    """Whether the stage, run again on the same input, says the same bytes; None where it is not looked at."""
    if backstage.key.micro_batch or backstage.honest is None or not backstage.scene.inputs:
        return None
    again = backstage.packing.pack(backstage.scene.recompute(backstage.scene.inputs[0]))
    return torch.equal(again, backstage.honest)


class _Gathering:
    """Puts micro-batches together to windows, and gives each away as soon as it is full."""

    def __init__(self, micro_batches: int, sink: Sink) -> None:
        self._count = micro_batches
        self._sink = sink
        self._open: dict[tuple[int, int, str], dict[int, tuple[Tensor, Mapping[str, Tensor], bool | None]]] = {}

    def has(self, key: ClaimKey) -> bool:
        return key.micro_batch in self._open.get((key.step, key.stage, str(key.direction)), {})

    def add(self, key: ClaimKey, honest: Tensor, forgeries: Mapping[str, Tensor], again: bool | None) -> None:
        self._put((key.step, key.stage, str(key.direction)), key.micro_batch, honest, forgeries, again)

    def add_weights(self, step: int, stage: int, micro_batch: int, gradients: Sequence[Tensor]) -> None:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._put((step, stage, WEIGHTS), micro_batch, flat, {}, None)

    def _put(
        self,
        where: tuple[int, int, str],
        micro_batch: int,
        honest: Tensor,
        forgeries: Mapping[str, Tensor],
        again: bool | None,
    ) -> None:
        window = self._open.setdefault(where, {})
        window[micro_batch] = honest, forgeries, again
        if len(window) == self._count:
            entries = [window[m] for m in range(self._count)]
            looked = [again for _, _, again in entries if again is not None]
            stacks = {spec: _stack([given[spec] for _, given, _ in entries]) for spec in forgeries}
            own = _stack([tensor for tensor, _, _ in entries])
            del self._open[where]
            self._sink(Window(*where, own, tuple(honest.shape), stacks, len(looked), sum(looked)))


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """[M, numbers of one], in fp32."""
    return torch.stack([tensor.detach().float().flatten() for tensor in tensors])
