"""The cast of a run: who of the untrusted workers lies or breaks, and the ground truth of it, which the run itself never sees.

worker --> DishonestWorker (one for each attack) --> FaultyActor (where there are faults) --> the engine
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from holdfast.attacks import Campaign, DishonestWorker, Ledger, Misconduct, resolve_attack
from holdfast.attacks.journal import replay
from holdfast.claim import ClaimKey
from holdfast.config import RunConfig
from holdfast.engine import names_of_workers
from holdfast.event import Event, RolledBack, StepSealed
from holdfast.faults import FaultPlan, Faults, FaultyActor
from holdfast.message import Actor
from holdfast.stage import INITIATOR


class Troupe:
    """The adversaries that `config` asks for; an attack with an entry in `objects` (by its index) is that object.

    They write into `ledger` (None: a fresh one); faults of steps before `struck_before` have struck already; where
    time is real, `pause` makes it pass for a slow machine. Raises
    ConfigError for an attack or a fault that does not exist or cannot strike where it is told to.
    """

    def __init__(
        self,
        config: RunConfig,
        objects: Mapping[int, Misconduct] | None = None,
        *,
        ledger: Ledger | None = None,
        struck_before: int = 0,
        pause: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        pipeline, given = config.pipeline, objects or {}
        self.latest = -1
        untrusted = [name for name in names_of_workers(pipeline.stages) if name != INITIATOR]
        self.ledger = Ledger() if ledger is None else ledger
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
        coming = Faults(tuple(fault for fault in faults if fault.step >= struck_before))
        self._pause = pause
        self._plan = FaultPlan(coming) if len(coming) else None

    def play(self, actor: Actor) -> Actor:
        """The worker as the run meets it; called for each untrusted worker, and again after a rollback."""
        for attack, campaign in zip(self._attacks, self._campaigns, strict=True):
            if campaign.worker in (None, actor.name):
                actor = DishonestWorker(actor, attack, campaign, self.ledger)
        return actor if self._plan is None else FaultyActor(actor, self._plan, self._pause)

    @property
    def keys(self) -> Collection[ClaimKey]:
        """Every claim that somebody forged so far."""
        return self.ledger.keys

    @property
    def standing(self) -> Collection[ClaimKey]:
        """Those that no rollback has undone."""
        return self.ledger.standing

    def observe(self, event: Event, _seconds: float) -> None:
        """Keep the ledger true when the run goes back; `latest` is the last step that was ever sealed."""
        if isinstance(event, StepSealed):
            self.latest = max(self.latest, event.step)
        if isinstance(event, RolledBack):
            self.ledger.undo(event.version)

    def absorb(self, _worker: str, line: bytes) -> None:
        """What the process of a worker says of its lies; nothing else is expected from there."""
        replay(self.ledger, line)

    def explains(self, key: ClaimKey) -> bool:
        """Whether an alert about `key` has a lie behind it."""
        return self.ledger.explains(key)
