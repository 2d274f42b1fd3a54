"""One attempt of one step as the coordinator sees it: the route, the board, what is disputed, what has been agreed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header
from holdfast.config import BanPolicy
from holdfast.message import Finding, Update
from holdfast.optimizer import Clipping
from holdfast.recover.remedy import Dispute, Redo, Remedy
from holdfast.route import Route
from holdfast.verify.board import Board
from holdfast.verify.chain import expected_inputs


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


@dataclass(slots=True)
class StepState:
    """Scratch of one attempt; a new attempt starts with a new one, and nothing of it survives the seal."""

    step: int
    attempt: int
    version: int
    route: Route
    micro_batches: int
    board: Board = field(default_factory=Board)
    losses: dict[int, float] = field(default_factory=dict)
    accounts: dict[int, tuple[float, ...]] = field(default_factory=dict)
    disputes: dict[ClaimKey, Dispute] = field(default_factory=dict)
    examined: set[ClaimKey] = field(default_factory=set)
    findings: dict[ClaimKey, Finding] = field(default_factory=dict)
    relayed: dict[ClaimKey, tuple[str, Claim]] = field(default_factory=dict)
    carried: set[tuple[ClaimKey, str]] = field(default_factory=set)
    complained: set[tuple[ClaimKey, str]] = field(default_factory=set)
    shown: dict[tuple[ClaimKey, str], tuple[Header, str]] = field(default_factory=dict)
    equivocators: set[tuple[ClaimKey, str]] = field(default_factory=set)
    unheard: set[ClaimKey] = field(default_factory=set)
    redo: tuple[Redo, str] | None = None
    update: Update | None = None
    clipping: Clipping = field(default_factory=lambda: Clipping(0.0, 1.0))

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
    def at_the_referee(self) -> set[ClaimKey]:
        return self.examined - self.findings.keys()

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
        """What an honest header of `key` names as its inputs; not checked where the jump is left out."""
        return expected_inputs(key, self.route, self.board.accepted) if self.route.jump else None
