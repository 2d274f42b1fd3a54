"""One attempt of one step as the coordinator sees it: the route, the board, what is disputed, what has been agreed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header
from holdfast.config import BanPolicy
from holdfast.likeness import Likeness
from holdfast.message import Finding, Lacking, Update
from holdfast.optimizer import Clipping
from holdfast.placement.room import Room
from holdfast.recover.remedy import Dispute, Redo, Remedy
from holdfast.recover.skip import leave_out
from holdfast.route import Route
from holdfast.verify.board import Board
from holdfast.verify.chain import expected_inputs
from holdfast.verify.spotcheck import Sampling


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is done about lies that both holders of a stage may tell, or its only one.

    `window` is how many sealed steps can be computed again; `flag_budget` how many checks a step the flags of one receiver may
    cause on average; after `redraw_every` steps workers and stages are matched anew (0: never).
    """

    sampling: Sampling
    window: int = 0
    flag_budget: float = 0.0
    redraw_every: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What the coordinator does about lies and silence, and how large a step is."""

    checked: bool
    remedy: Remedy
    micro_batches: int
    clip: Callable[[Mapping[int, Sequence[float]]], Clipping]
    learning_rate: Callable[[int], float]
    tokens_per_step: int
    deadline_s: float
    ban: BanPolicy = "never"
    ban_after: int = 3
    transfer_s: float = 0.0
    """What a whole state may take on its way, beyond the deadline."""
    shadowed: bool = True
    """Whether a second account of every claim is waited for; without one the signed claim stands until it is drawn."""
    inspection: Inspection = field(default_factory=lambda: Inspection(Sampling(0)))
    likeness: Likeness | None = None
    dtype: torch.dtype = torch.float32
    """Of gradients and their norms."""
    bypass: Mapping[int, Collection[int]] = field(default_factory=dict)
    """Stages that a step leaves out from its start, by step."""
    room: Room | None = None
    """What machines can hold (None: everything)."""
    seated: bool = False
    """Whether seats were chosen with care: then a spare relieves nobody as long as nobody is lost."""

    def planned(self, step: int, route: Route) -> Route:
        """The route on which a step is meant to run, if nobody raises an alert."""
        return leave_out(route, self.bypass.get(step, ()))


@dataclass(slots=True)
class Awaited:
    """A tensor that `sources` owe the coordinator itself, on its way to `consumers`."""

    sources: tuple[str, ...]
    consumers: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class StepState:
    """Scratch of one attempt; a new attempt starts with a new one. `digests` are the sealed ones of all stages at `version`."""

    step: int
    attempt: int
    version: int
    route: Route
    micro_batches: int
    digests: Mapping[int, bytes] = field(default_factory=dict)
    likeness: Likeness | None = None
    board: Board = field(default_factory=Board)
    losses: dict[int, float] = field(default_factory=dict)
    accounts: dict[int, tuple[float, ...]] = field(default_factory=dict)
    disputes: dict[ClaimKey, Dispute] = field(default_factory=dict)
    examined: dict[ClaimKey, None] = field(default_factory=dict)
    findings: dict[ClaimKey, Finding] = field(default_factory=dict)
    relayed: dict[ClaimKey, tuple[str, Claim]] = field(default_factory=dict)
    carried: set[tuple[ClaimKey, str]] = field(default_factory=set)
    complained: dict[tuple[ClaimKey, str], set[str]] = field(default_factory=dict)
    shown: dict[tuple[ClaimKey, str], tuple[Header, str]] = field(default_factory=dict)
    equivocators: set[tuple[ClaimKey, str]] = field(default_factory=set)
    unheard: set[ClaimKey] = field(default_factory=set)
    awaited: dict[ClaimKey, Awaited] = field(default_factory=dict)
    handed: set[tuple[ClaimKey, str]] = field(default_factory=set)
    unfounded: set[tuple[ClaimKey, str]] = field(default_factory=set)
    lacking: dict[ClaimKey, Lacking] = field(default_factory=dict)
    redo: tuple[Redo, str] | None = None
    update: Update | None = None
    clipping: Clipping = field(default_factory=lambda: Clipping(0.0, 1.0))

    def is_unlike(self, stage: int) -> bool:
        """Whether the two holders of the stage compute with other bytes."""
        return self.likeness is not None and self.likeness.splits(self.route, stage)

    @property
    def updating(self) -> set[int]:
        """The stages that take part in this step's update."""
        return set(self.route.active) - set(self.route.frozen)

    @property
    def gradients_agreed(self) -> bool:
        return self.accounts.keys() >= self.updating

    @property
    def claims_settled(self) -> bool:
        """Whether the board has ruled on every claim of an untrusted stage; who believes its own check does not wait for it."""
        stages = [i for i in self.route.active if not self.route.is_trusted(i)]
        keys = (
            ClaimKey(self.step, self.attempt, direction, i, m)
            for direction in (Direction.FORWARD, Direction.BACKWARD)
            for i in stages
            for m in range(self.micro_batches)
        )
        return all(key in self.board.accepted for key in keys)

    @property
    def updates_agreed(self) -> bool:
        return all(self.update_key(i) in self.board.accepted for i in self.updating)

    @property
    def at_the_referee(self) -> list[ClaimKey]:
        """What it has not computed yet, in the order in which it was asked."""
        return [key for key in self.examined if key not in self.findings]

    @property
    def unopened(self) -> list[int]:
        """Stages whose holders have not shown the referee what it was sent for, though asked again."""
        open_cases = [self.lacking[key] for key in self.at_the_referee if key in self.lacking]
        found = [[case.key.stage] if case.state else [parent.stage for parent in case.inputs] for case in open_cases]
        return list(dict.fromkeys(stage for stages in found for stage in stages))

    def update_key(self, stage: int) -> ClaimKey:
        return ClaimKey(self.step, self.attempt, Direction.UPDATE, stage)

    def is_current(self, key: ClaimKey) -> bool:
        """Whether `key` belongs to this attempt: a stage that computes, a micro-batch that exists, an ordered update."""
        if (key.step, key.attempt) != (self.step, self.attempt):
            return False
        if key.direction in (Direction.FORWARD, Direction.BACKWARD):
            return key.stage in self.route.active and 0 <= key.micro_batch < self.micro_batches
        ordered = key.direction is Direction.GRADIENT or self.update is not None  # none before the clip scale is known
        return ordered and key.stage in self.updating and key.micro_batch == WHOLE_STEP

    def inputs(self, key: ClaimKey) -> tuple[bytes, ...] | None:
        """What an honest header of `key` names as its inputs; not checked where the jump is left out.

        Nor are those of an update whose two holders computed gradients of other bytes: each names its own.
        """
        if key.direction is Direction.UPDATE and self.is_unlike(key.stage):
            return None
        return expected_inputs(key, self.route, self.board.accepted) if self.route.jump else None
