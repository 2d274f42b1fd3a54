"""The cast of a run: who of the untrusted workers lies or breaks, and the ground truth of it, which the run itself never sees.

worker --> DishonestWorker (one for each attack) --> FaultyActor (where there are faults) --> the engine
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from holdfast.attacks import Campaign, DishonestWorker, Ledger, Misconduct, resolve_attack
from holdfast.claim import ClaimKey
from holdfast.cluster import INITIATOR, names_of_workers
from holdfast.config import RunConfig
from holdfast.event import Event, RolledBack
from holdfast.faults import FaultPlan, Faults, FaultyActor
from holdfast.message import Actor


class Troupe:
    """The adversaries that `config` asks for; an attack with an entry in `objects` (by its index) is that object.

    Raises ConfigError for an attack or a fault that does not exist or cannot strike where it is told to.
    """

    def __init__(self, config: RunConfig, objects: Mapping[int, Misconduct] | None = None) -> None:
        pipeline, given = config.pipeline, objects or {}
        untrusted = [name for name in names_of_workers(pipeline.stages) if name != INITIATOR]
        self.ledger = Ledger()
        self._attacks = [given.get(index) or resolve_attack(attack.spec) for index, attack in enumerate(config.attack)]
        self._campaigns = [
            Campaign.from_config(
                attack,
                stages=pipeline.stages,
                seed=config.training.seed,
                index=index,
                micro_batches=pipeline.micro_batches,
                workers=untrusted,
            )
            for index, attack in enumerate(config.attack)
        ]
        faults = Faults.parse(config.faults)
        faults.validate(pipeline.stages, untrusted, (INITIATOR,))
        self._plan = FaultPlan(faults) if len(faults) else None

    def play(self, actor: Actor) -> Actor:
        """The worker as the run meets it; called for each untrusted worker, and again after a rollback."""
        for attack, campaign in zip(self._attacks, self._campaigns, strict=True):
            if campaign.worker in (None, actor.name):
                actor = DishonestWorker(actor, attack, campaign, self.ledger)
        return actor if self._plan is None else FaultyActor(actor, self._plan)

    @property
    def keys(self) -> Collection[ClaimKey]:
        """Every claim that somebody forged so far."""
        return self.ledger.keys

    @property
    def standing(self) -> Collection[ClaimKey]:
        """Those that no rollback has undone."""
        return self.ledger.standing

    def observe(self, event: Event, _seconds: float) -> None:
        """Keep the ledger true when the run goes back."""
        if isinstance(event, RolledBack):
            self.ledger.undo(event.version)

    def explains(self, key: ClaimKey) -> bool:
        """Whether an alert about `key` has a lie behind it."""
        return self.ledger.explains(key)
