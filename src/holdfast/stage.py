"""A stage: receive, verify, compute, claim. The page to read first.

    inbox (verified) --> next_action --> compute --> claim ---> every holder of the neighbour     (primary only)
                                                     header --> the coordinator's board           (primary and shadow)

A `Stage` is one seat of a worker: the primary or the shadow of stage i. Both compute the same lines on the same inputs; what
differs is who is told: a primary sends tensors, a shadow only posts the digest of its own. Nothing is computed from a
tensor that the board has not accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.digest import state_digest, tensor_digest
from holdfast.execution import StageExecution
from holdfast.inbox import Inbox
from holdfast.likeness import Likeness
from holdfast.message import Envelope, Loss, Message, Offer, TiedGradient, TiedWeight, Update
from holdfast.route import Route
from holdfast.schedule import Action, Kind
from holdfast.verify.chain import parents
from holdfast.verify.resync import Budget, Candidate, compare_updates, judge_update
from holdfast.verify.tolerance import Agreement

INITIATOR = "initiator"
COORDINATOR = "coordinator"
REFEREE = "referee"
CHECKER = "checker"
ARCHIVE = "archive"
TRUSTED_PARTIES = (COORDINATOR, REFEREE, CHECKER)
"""Members that are no workers: who may order, or ask for, what a worker holds."""


def unsigned(header: Header) -> Header:
    """The signer of a run whose claims nobody checks."""
    return header


Batch = Callable[[int], Tensor]
"""Step number to tokens [M, B, S+1]: only the initiator has it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What every worker of a run has agreed to: its id, whether claims are checked, and the order of work.

    `actions(i)` is the order in which a worker of stage i works; `limit(i)` how many micro-batches it may hold between their
    forward and backward pass; `sign` is this worker's own hand under its headers; `window` is how many sealed steps it keeps
    so that they can be checked; where traffic is `watched`, it flags inputs that look odd; `likeness` says who computes with
    other bytes than whom (None: nobody does).
    """

    run: str
    checked: bool
    actions: Callable[[int], Iterable[Action]]
    limit: Callable[[int], int]
    backward_waits: bool
    sign: Callable[[Header], Header] = unsigned
    window: int = 0
    watched: bool = False
    likeness: Likeness | None = None


@dataclass(slots=True)
class _Progress:
    """Scratch of one attempt of one step."""

    step: int = -1
    attempt: int = 0
    actions: dict[Action, int] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    outputs: dict[ClaimKey, Claim] = field(default_factory=dict)
    tied: dict[int, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None
    digest: bytes = b""
    posted: bool = False
    update: Update | None = None
    waiting: Update | None = None
    offered: StageState | None = None


class Stage:
    """One seat: `role` of stage `execution.module.stage` on worker `worker`."""

    def __init__(self, worker: str, execution: StageExecution, role: Role, terms: Terms, batch: Batch | None) -> None:
        self.index = execution.module.stage
        self.role = role
        self.execution = execution
        self.version = -1
        self._worker = worker
        self._terms = terms
        self._batch = batch
        self._tied_version = -1
        self._now = _Progress()
        self._route: Route | None = None
        self._budget: Budget | None = None

    # -- state -------------------------------------------------------------------------------------------------------

    def load(self, state: StageState) -> None:
        """Take the seat over from a sealed state."""
        self.execution.load(state)
        self.version = state.version

    def state(self) -> StageState:
        return self.execution.state(self.version)

    def seal(self, version: int) -> list[Envelope]:
        """Version `version` stands; does nothing where it stood already."""
        if version != self.version + 1:
            return []
        self.execution.seal()
        self.version = version
        return self.share_tied()

    def take_tied(self, message: TiedGradient | TiedWeight) -> None:
        """The last stage takes the embedding's weight, the first takes the head's gradient."""
        if isinstance(message, TiedWeight):
            if self.execution.module.tied_parameter() is not None:
                self.execution.set_tied(message.tensor)
                self._tied_version = message.version
        elif self.index == 0 and (message.step, message.attempt) == (self._now.step, self._now.attempt):
            self._now.tied[message.micro_batch] = message.tensor

    def share_tied(self) -> list[Envelope]:
        """The first stage tells the last, on the same machine, the embedding that is its head."""
        tied = self.execution.module.plan.tied
        if self.index != 0 or tied is None:
            return []
        weight = self.execution.module.weights()[tied[1]]
        return [self._to(self._worker, TiedWeight(self.version, weight))]

    # -- one step ----------------------------------------------------------------------------------------------------

    def begin(self, step: int, attempt: int, route: Route, *, active: bool = True) -> None:
        """Start an attempt of a step: everything unsealed of the last one is dropped; a bypassed seat sits it out."""
        self._route = route
        self.execution.begin(step)
        works = active and self.index not in route.bypassed
        home = self.index + (self.role is Role.SHADOW)  # a shadow works in its host's order
        order = self._terms.actions(home) if works else ()
        self._now = _Progress(step, attempt, {action: place for place, action in enumerate(order)}, posted=not works)

    def reroute(self, route: Route) -> list[Envelope]:
        """Follow a new route. A shadow that becomes primary sends what the lost primary may have left unsent."""
        self._route = route
        role = route.role(self.index, self._worker)
        promoted = role is Role.PRIMARY and self.role is Role.SHADOW
        self.role = role or self.role
        return [envelope for key in self._now.outputs for envelope in self.supply(key)] if promoted else []

    def order_update(self, message: Update) -> None:
        if (message.step, message.attempt) == (self._now.step, self._now.attempt) and not self._frozen:
            self._now.update = message

    @property
    def outputs(self) -> Mapping[ClaimKey, Claim]:
        """Everything that this seat has claimed in this attempt, with the tensors."""
        return self._now.outputs

    def offer(self, message: Offer) -> None:
        """The primary's new state, for a shadow of another numerics class."""
        current = (message.attempt, message.state.version) == (self._now.attempt, self.version + 1)
        if current and self._is_unlike_primary:
            self._now.offered = message.state

    def candidate(self) -> StageState:
        """The state that waits for its seal."""
        return self.execution.state(self.version + 1, candidate=True)

    def supply(self, key: ClaimKey, to: Iterable[str] | None = None) -> list[Envelope]:
        """Send the own output for `key` to `to` (None: to its consumers), if this seat has computed it."""
        claim = self._now.outputs.get(key)
        if claim is None or self._route is None:
            return []
        recipients = self._route.consumers(key.direction, key.stage) if to is None else to
        return [self._to(recipient, claim) for recipient in recipients]

    @property
    def moment(self) -> tuple[int, int]:
        """Step and attempt that this seat is in."""
        return self._now.step, self._now.attempt

    def next_action(self, inbox: Inbox) -> tuple[int, Action] | None:
        """The first action in schedule order whose inputs are verified, with its place in the order."""
        for action, place in self._now.actions.items():
            if self._is_ready(action, inbox):
                return place, action
        return None

    def wants_gradient(self) -> bool:
        return not (self._now.posted or self._frozen) and self._now.step >= 0 and self.execution.complete

    def wants_update(self) -> bool:
        return self._now.update is not None or (self._now.waiting is not None and self._now.offered is not None)

    def perform(self, action: Action, inbox: Inbox) -> list[Envelope]:
        """Compute one action and claim its result."""
        del self._now.actions[action]
        if action.kind is Kind.FORWARD:
            return self._forward(action.micro_batch, inbox)
        return self._backward(action.micro_batch, inbox)

    def claim_gradient(self) -> list[Envelope]:
        """Sign the accumulated gradient: its digest, and the norm of each parameter."""
        self._now.posted = True
        if self._stays_home:
            return [self._to(COORDINATOR, self._header(self._key(Direction.GRADIENT), (), b"", self.execution.norms()))]
        gradient = self.execution.gradient()
        self._now.digest = gradient.digest
        return [self._to(COORDINATOR, self._header(self._key(Direction.GRADIENT), (), gradient.digest, gradient.norms))]

    def claim_update(self) -> list[Envelope]:
        """Compute the new version beside the old one and sign its digest; it counts once it is sealed.

        A shadow of another numerics class waits for the primary's, and signs that one where it is as near as it should be.
        """
        order, self._now.update = self._now.update, None
        if order is not None:
            self.execution.update(order.clip_scale, order.learning_rate)
            self._now.waiting = order if self._is_unlike_primary else None
        if self._now.waiting is not None:
            if self._now.offered is None:
                return []
            self._resynchronise(self._now.offered, self._now.waiting)
            self._now.waiting = None
        key = self._key(Direction.UPDATE)
        if self._stays_home:
            return [self._to(COORDINATOR, self._header(key, (), b""))]
        header = self._header(key, (self._now.digest,), state_digest(self.candidate()))
        return [self._to(COORDINATOR, header), *self._offers()]

    @property
    def _stays_home(self) -> bool:
        """Whether nobody reads digests of this gradient and this state: nothing is checked, or the stage is one of the two that
        only the initiator ever holds; it has no shadow, and leaves it for a checkpoint, where its state is hashed.
        """
        own = self.execution.module.first or self.execution.module.last
        return not self._terms.checked or (own and self._route is not None and self._route.is_trusted(self.index))

    # -- across numerics classes -------------------------------------------------------------------------------------

    @property
    def _is_unlike_primary(self) -> bool:
        return self.role is Role.SHADOW and self._is_split

    @property
    def _is_split(self) -> bool:
        likeness, route = self._terms.likeness, self._route
        return likeness is not None and route is not None and likeness.splits(route, self.index)

    def _resynchronise(self, offered: StageState, order: Update) -> None:
        """Take the primary's new state for the own one, if it follows from the own gradient in all but rounding."""
        likeness, route = self._terms.likeness, self._route
        assert likeness is not None
        assert route is not None
        pair = route.primaries[self.index], self._worker
        own = Candidate(self.candidate(), self.execution.clipped(order.clip_scale))
        found = compare_updates(self.state(), offered, own, likeness.formula(order.learning_rate))
        if judge_update(found, likeness.bound(self.index, Direction.UPDATE, *pair)) is not Agreement.WITHIN:
            return
        self._budget = self._budget or likeness.budget(self.index, *pair)
        if self._budget.accept(self.index, found.drift):
            self.execution.adopt(offered)

    def _offers(self) -> list[Envelope]:
        """A primary shows its new state to a shadow that computes with other bytes."""
        shadow = None if self._route is None else self._route.shadows[self.index]
        if shadow is None or self.role is not Role.PRIMARY or not self._is_split:
            return []
        return [self._to(shadow, Offer(self._now.attempt, self.candidate()))]

    def _shown(self, key: ClaimKey) -> list[Envelope]:
        """A shadow's own input gradient goes two stages back in full, where a digest would say nothing."""
        assert self._route is not None
        if key.direction is not Direction.BACKWARD or not self._is_unlike_primary:
            return []
        comparer = self._route.comparer(key.direction, key.stage)
        return [] if comparer in (None, self._worker) else self.supply(key, [str(comparer)])

    # -- forward and backward ----------------------------------------------------------------------------------------

    def _forward(self, m: int, inbox: Inbox) -> list[Envelope]:
        self._now.held.add(m)
        key = self._key(Direction.FORWARD, m)
        inputs = self._forward_input(m, inbox)
        assert inputs is not None
        if self.execution.module.last:
            value = self.execution.loss(m, inputs, self._tokens(m)[:, 1:])
            return [self._to(COORDINATOR, Loss(self._now.step, self._now.attempt, m, value))]
        output = self.execution.forward(m, inputs)
        return self._claim(key, self._digests(key, inputs, inbox), output, inputs)

    def _backward(self, m: int, inbox: Inbox) -> list[Envelope]:
        self._now.held.discard(m)
        after = self._neighbour_key(Direction.BACKWARD, m)
        gradient = None if after is None else inbox.tensor(after)
        of_inputs, of_head = self.execution.backward(m, gradient, self._now.tied.pop(m, None))
        envelopes = []
        if of_head is not None:
            share = TiedGradient(self._now.step, self._now.attempt, m, of_head)
            envelopes.append(self._to(self._worker, share))
        if of_inputs is not None:
            key = self._key(Direction.BACKWARD, m)
            envelopes += self._claim(key, self._digests(key, None, inbox), of_inputs)
        return envelopes

    def _claim(self, key: ClaimKey, inputs: tuple[bytes, ...], output: Tensor, origin: Tensor | None = None) -> list[Envelope]:
        assert self._route is not None
        if not self._terms.checked:
            claim = Claim(self._header(key, (), b""), output)
            return [self._to(consumer, claim) for consumer in self._route.consumers(key.direction, key.stage)]
        header = self._header(key, inputs, tensor_digest(output))
        shown = None if self._route.jump or self.index == 0 else origin  # tokens never leave the initiator
        self._now.outputs[key] = Claim(header, output, shown)
        posted = [self._to(COORDINATOR, header)]
        if self.role is Role.SHADOW:
            return posted + self._shown(key)
        if self._route.relay:
            return [*posted, *self.supply(key, [COORDINATOR])]
        return posted + self.supply(key)

    # -- what an action needs ----------------------------------------------------------------------------------------

    def _is_ready(self, action: Action, inbox: Inbox) -> bool:
        m = action.micro_batch
        if action.kind is Kind.FORWARD:
            room = len(self._now.held) < self._terms.limit(self.index)
            return room and self._tied_is_fresh and self._forward_input(m, inbox) is not None
        if m not in self._now.held or (self.index == 0 and self.execution.tied_name and m not in self._now.tied):
            return False
        after = self._neighbour_key(Direction.BACKWARD, m)
        if after is None:
            waiting = any(other.kind is Kind.FORWARD for other in self._now.actions)
            return not (self._terms.backward_waits and waiting)
        return inbox.tensor(after) is not None

    def _forward_input(self, m: int, inbox: Inbox) -> Tensor | None:
        if self.index == 0:
            return self._tokens(m)[:, :-1]
        assert self._route is not None
        if self.role is Role.SHADOW and not self._route.jump:
            return inbox.origin(self._key(Direction.FORWARD, m), (self._route.primaries[self.index], COORDINATOR))
        before = self._neighbour_key(Direction.FORWARD, m)
        assert before is not None
        return inbox.tensor(before)

    def _tokens(self, m: int) -> Tensor:
        if self._now.tokens is None:
            assert self._batch is not None, "only the initiator's stages read tokens"
            self._now.tokens = self._batch(self._now.step)
        return self._now.tokens[m]

    def _neighbour_key(self, direction: Direction, m: int) -> ClaimKey | None:
        """The claim that feeds this stage: the forward one from before it, the backward one from behind it."""
        assert self._route is not None
        neighbour = self._route.before(self.index) if direction is Direction.FORWARD else self._route.after(self.index)
        return None if neighbour is None else ClaimKey(self._now.step, self._now.attempt, direction, neighbour, m)

    def _digests(self, key: ClaimKey, seen: Tensor | None, inbox: Inbox) -> tuple[bytes, ...]:
        """The digests of the claims that `key` was computed from; `seen` is what a shadow without a jump was shown."""
        assert self._route is not None
        if not self._terms.checked:
            return ()
        if seen is not None and self.role is Role.SHADOW and not self._route.jump:
            return (tensor_digest(seen),)
        return tuple(inbox.digest(parent) for parent in parents(key, self._route))

    @property
    def _tied_is_fresh(self) -> bool:
        return self.execution.module.tied_parameter() is None or self._tied_version == self.version

    @property
    def _frozen(self) -> bool:
        return self._route is not None and self.index in self._route.frozen

    def _key(self, direction: Direction, m: int = WHOLE_STEP) -> ClaimKey:
        return ClaimKey(self._now.step, self._now.attempt, direction, self.index, m)

    def _header(self, key: ClaimKey, inputs: tuple[bytes, ...], output: bytes, norms: tuple[float, ...] = ()) -> Header:
        assert self._route is not None
        where = self._terms.run, key, self.version, self._route.epoch
        return self._terms.sign(Header(*where, self._worker, self.role, inputs, output, norms))

    def _to(self, recipient: str, message: Message) -> Envelope:
        return Envelope(self._worker, recipient, message)
