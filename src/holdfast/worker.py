"""A worker: a machine with a name, its seats (primary of one stage, shadow of another) and one inbox for both.

An `Actor`: messages in, messages out, computation only in `execute`. It believes the coordinator about routes and rulings, the
board about tensors, and nobody about anything else. The initiator's worker holds stages 0 and K-1 on two devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.comparer import Comparer
from holdfast.digest import state_digest
from holdfast.errors import ProtocolError
from holdfast.execution import StageExecution
from holdfast.inbox import Boundary, Inbox
from holdfast.message import (
    Accepted,
    BeginStep,
    Complaint,
    Envelope,
    Flag,
    NewRoute,
    Offer,
    Seal,
    SendState,
    StateAdopted,
    StateTransfer,
    Supply,
    TiedGradient,
    TiedWeight,
    Update,
    Work,
)
from holdfast.retained import Retained
from holdfast.route import Route
from holdfast.schedule import Action, Kind
from holdfast.stage import COORDINATOR, TRUSTED_PARTIES, Batch, Stage, Terms
from holdfast.verify.chain import parents
from holdfast.verify.statistics import Monitor

UPDATE_COST = 0.05
"""Gradient digest and optimizer step, in forward passes of one micro-batch: a few operations a parameter against B x S x 2."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """How many serial devices a worker has, which of them a stage runs on, and what a forward pass of each stage costs."""

    costs: Sequence[float]
    devices: int = 1

    def device_of(self, stage: int) -> int:
        return 0 if stage == 0 else self.devices - 1


class Worker:
    """See the module. `execution(i)` builds the module of stage i with undefined weights; states arrive as messages."""

    def __init__(
        self,
        name: str,
        execution: Callable[[int], StageExecution],
        terms: Terms,
        boundary: Boundary,
        hardware: Hardware,
        batch: Batch | None = None,
    ) -> None:
        self.name = name
        self.devices = hardware.devices
        self.seats: dict[int, Stage] = {}
        self.sign = terms.sign
        self._execution = execution
        self._terms = terms
        self._hardware = hardware
        self._batch = batch
        self._inbox = Inbox(boundary, checked=terms.checked)
        self._route: Route | None = None
        self._retained = Retained(terms.window)
        self._comparer = Comparer(boundary.waiting)
        self._monitor = Monitor() if terms.watched else None
        self._early: list[SendState] = []
        self._delivered: dict[tuple[int, str], tuple[bytes, StateTransfer]] = {}

    @property
    def has_begun(self) -> bool:
        """Whether it has been told of a step."""
        return self._route is not None

    # -- messages ----------------------------------------------------------------------------------------------------

    def receive(self, envelope: Envelope) -> Sequence[Envelope]:
        """Take one message. Raises ProtocolError for an order from somebody who may not give it."""
        sender, message = envelope.sender, envelope.message
        match message:
            case Claim():
                return self._deliver(sender, message)
            case Offer():
                self._offer(sender, message)
                return []
            case StateTransfer():
                return self._adopt(sender, message)
            case Supply() | SendState() if sender in TRUSTED_PARTIES:
                return self._send(message)
            case TiedGradient() | TiedWeight() if sender == self.name:
                for seat in self.seats.values():
                    seat.take_tied(message)
                return []
            case BeginStep() | NewRoute() | Accepted() | Update() | Seal() if sender == COORDINATOR:
                return self._obey(message)
        raise ProtocolError(f"{self.name} got {type(message).__name__} from {sender!r}, who may not send it")

    def _deliver(self, sender: str, claim: Claim) -> list[Envelope]:
        """A primary's tensor is for use, a shadow's first of all for comparison; both may complete one."""
        key, role = claim.header.key, claim.header.role
        compared = self._terms.likeness is not None and self._inbox.fits(claim.tensor) and self._holds(sender, key, role)
        answerable = role is not Role.SHADOW or not compared
        told = self._to_coordinator(self._inbox.deliver(sender, claim, answerable=answerable))
        return [*told, *(self._compare(claim, role) if compared else [])]

    def _holds(self, sender: str, key: ClaimKey, role: Role) -> bool:
        """Whether `sender` sits there in `role`, unlike the other holder, and this worker is to compare the two."""
        route, likeness = self._route, self._terms.likeness
        if route is None or likeness is None or not 0 <= key.stage < len(route.primaries) or key.micro_batch == WHOLE_STEP:
            return False
        holders = {Role.PRIMARY: route.primaries[key.stage], Role.SHADOW: route.shadows[key.stage]}
        mine = route.comparer(key.direction, key.stage) == self.name
        return mine and holders.get(role) == sender and likeness.splits(route, key.stage)

    def _compare(self, claim: Claim, role: Role) -> list[Envelope]:
        found = self._comparer.take(claim, role)
        if found is None or self._route is None:
            return []
        apart = (found.apart.overall, found.apart.worst_row)
        who = (self._route.epoch, self.name, Role.COMPARER)
        said = Header(self._terms.run, found.key, claim.header.version, *who, (found.shadow,), found.primary, apart)
        return [Envelope(self.name, COORDINATOR, self.sign(said))]

    def _offer(self, sender: str, message: Offer) -> None:
        seat = self.seats.get(message.state.stage)
        if seat is not None and self._route is not None and sender == self._route.primaries[seat.index]:
            seat.offer(message)

    def _obey(self, message: BeginStep | NewRoute | Accepted | Update | Seal) -> Sequence[Envelope]:
        match message:
            case Accepted(key, output):
                return self._to_coordinator(self._inbox.rule(key, output))
            case BeginStep():
                return self._begin(message)
            case NewRoute(route):
                self._route = route
                return [envelope for seat in self._seated() for envelope in seat.reroute(route)]
            case Seal(version):
                told = self._seal(version)
                early, self._early = self._early, []
                return told + [envelope for order in early for envelope in self._send(order)]
            case Update():
                for seat in self._seated():
                    seat.order_update(message)
                return []

    def _begin(self, message: BeginStep) -> list[Envelope]:
        self._route = message.route
        held = dict(message.route.seats_of(self.name))
        told = self._install(held, message.digests, message.version)
        if not message.route.bypassed:  # who only sits out a step keeps its seats
            self.seats = {stage: seat for stage, seat in self.seats.items() if stage in held}
        self._inbox.begin(message.step, message.attempt)
        self._comparer.begin(message.step, message.attempt)
        told += self._seal(message.version)
        for stage, seat in self.seats.items():
            seat.role = held.get(stage, seat.role)
            seat.begin(message.step, message.attempt, message.route, active=stage in held)
        return told

    def _seal(self, version: int) -> list[Envelope]:
        told = []
        for seat in self._seated():
            if seat.version == version - 1:
                self._retained.keep(seat.state(), seat.outputs)
            told += seat.seal(version)
        return told

    def _adopt(self, sender: str, message: StateTransfer) -> list[Envelope]:
        """Take a state and show its digest. Nobody is believed: it becomes a seat only if the digest is the sealed one."""
        if message.role is None:
            return []
        state = message.state
        if not 0 <= state.stage < len(self._hardware.costs):
            raise ProtocolError(f"{self.name} got a state of stage {state.stage} from {sender!r}; there is no such stage")
        digest = state_digest(state)
        self._delivered[(state.stage, sender)] = (digest, message)
        return [Envelope(self.name, COORDINATOR, StateAdopted(state.stage, state.version, message.role, digest))]

    def _install(self, held: Mapping[int, Role], digests: Sequence[bytes], version: int) -> list[Envelope]:
        told = []
        for (stage, _), (digest, message) in self._delivered.items():
            if stage in held and digest == digests[stage]:
                seat = Stage(self.name, self._execution(stage), held[stage], self._terms, self._batch)
                seat.load(replace(message.state, version=version))
                self.seats[stage] = seat
                told += seat.share_tied()
        self._delivered.clear()
        return told

    def _send(self, message: Supply | SendState) -> list[Envelope]:
        if isinstance(message, SendState):
            seat = self.seats.get(message.stage)
            if seat is not None and seat.version == message.version - 1:
                if message.to in TRUSTED_PARTIES and seat.execution.updated:  # a referee weighs what is not sealed yet
                    return [Envelope(self.name, message.to, StateTransfer(seat.candidate(), None))]
                self._early.append(message)  # it overtook the seal
            if seat is not None and seat.version == message.version:
                state: StageState | None = seat.state()
            else:
                state = self._retained.state(message.stage, message.version) or self._shown(message)
            return [] if state is None else [Envelope(self.name, message.to, StateTransfer(state, message.role))]
        seat = self.seats.get(message.key.stage)
        mine = [] if seat is None else seat.supply(message.key, message.to)
        claim = self._inbox.claim(message.key) or self._retained.claim(message.key)
        taken = [] if claim is None else [Envelope(self.name, to, claim) for to in message.to]
        if self._terms.likeness is not None and mine and taken and claim is not None and claim.header.worker != self.name:
            return mine + taken  # both accounts, whose bytes differ: who asks knows which one it needs
        return mine or taken

    def _shown(self, order: SendState) -> StageState | None:
        """What it was sent and has shown, before the step begins in which it is used: who sent it may be gone by now."""
        for (stage, _), (digest, message) in self._delivered.items():
            if stage == order.stage and digest == order.digest:
                return replace(message.state, version=order.version)
        return None

    def _seated(self) -> list[Stage]:
        return list(self.seats.values())

    def _to_coordinator(self, messages: Sequence[Complaint]) -> list[Envelope]:
        return [Envelope(self.name, COORDINATOR, message) for message in messages]

    # -- beyond a deployment -----------------------------------------------------------------------------------------

    def holdings(self) -> list[tuple[bytes, StageState]]:
        """What would be lost with this worker, with its digests: of each seat the sealed state and the one that waits for its
        seal (whether that has come nobody knows who was cut off), and states that were shown and are not in use yet.
        """
        states = [seat.state() for seat in self.seats.values()]
        states += [seat.candidate() for seat in self.seats.values() if seat.execution.updated]
        fresh = [(state_digest(state), state) for state in states if state.version >= 0]
        return fresh + [(digest, message.state) for digest, message in self._delivered.values()]

    def hold(self, holdings: Sequence[tuple[bytes, StageState]]) -> None:
        """Have states of an earlier deployment at hand, as if they had been sent: they are used only where they are the sealed
        ones, and those of them that are not go when a step begins.
        """
        for number, (digest, state) in enumerate(holdings):
            if 0 <= state.stage < len(self._hardware.costs):
                self._delivered[(state.stage, f"{self.name}, before ({number})")] = (digest, StateTransfer(state, Role.PRIMARY))

    def let_go(self) -> None:
        """Give up what `hold` was given and no step has begun to use."""
        held_before = [slot for slot in self._delivered if slot[1].startswith(f"{self.name}, before ")]
        for slot in held_before:
            del self._delivered[slot]

    # -- computation -------------------------------------------------------------------------------------------------

    def next_work(self, device: int) -> Work | None:
        """The most urgent work of the seats on `device`: whole-step work first, then the earliest action in schedule order.

        Of two forward passes in the same place the shadow's goes first (the primary waits for its outcome), of two backward
        passes the primary's (the shadow needs its result).
        """
        best: tuple[tuple[int, int], Work] | None = None
        for seat in self.seats.values():
            if self._hardware.device_of(seat.index) != device:
                continue
            if seat.wants_update():
                return self._work("update", seat, Direction.UPDATE)
            if seat.wants_gradient():
                return self._work("gradient", seat, Direction.GRADIENT)
            found = seat.next_action(self._inbox)
            if found is not None:
                place, action = found
                rank = (place, seat.index if action.kind is Kind.FORWARD else -seat.index)
                if best is None or rank < best[0]:
                    best = (rank, self._action_work(seat, action))
        return None if best is None else best[1]

    def execute(self, work: Work) -> Sequence[Envelope]:
        """Compute what `next_work` gave, and nothing else."""
        seat = self.seats[work.stage]
        match work.key.direction:
            case Direction.GRADIENT:
                return seat.claim_gradient()
            case Direction.UPDATE:
                return seat.claim_update()
            case Direction.FORWARD | Direction.BACKWARD as direction:
                found = self._keep_own(seat.perform(Action(Kind(direction.value), work.key.micro_batch), self._inbox))
                return [*found, *self._watch(work)]

    def _watch(self, work: Work) -> list[Envelope]:
        """Where traffic is watched: tell the coordinator of an input that is unlike those before it. It accuses nobody."""
        if self._monitor is None or self._route is None or work.role is not Role.PRIMARY:
            return []
        flags = []
        for parent in parents(work.key, self._route):
            tensor = self._inbox.tensor(parent)
            if parent.direction is work.key.direction and tensor is not None:
                numbers = self.seats[work.stage].execution.packing.unpack(tensor)
                odd = self._monitor.observe((parent.direction, parent.stage), numbers)
                flags += [] if odd is None else [Envelope(self.name, COORDINATOR, Flag(parent, odd.statistic, odd.value))]
        return flags

    def _keep_own(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        """What one seat makes for another on this worker goes into the inbox at once; the rest is sent."""
        sent = []
        for envelope in envelopes:
            message = envelope.message
            if isinstance(message, Claim) and envelope.recipient == self.name:
                self._inbox.own(message)
                continue
            sent.append(envelope)
            if isinstance(message, Header) and message.role is Role.SHADOW:
                self._inbox.vouch(message.key, message.output)
                own = self.seats[message.key.stage].outputs[message.key]
                if self._holds(self.name, message.key, Role.SHADOW):
                    sent += self._compare(own, Role.SHADOW)
        return sent

    def _action_work(self, seat: Stage, action: Action) -> Work:
        backward = action.kind is Kind.BACKWARD
        direction = Direction.BACKWARD if backward else Direction.FORWARD
        kind = f"shadow-{direction}" if seat.role is Role.SHADOW else str(direction)
        return self._work(kind, seat, direction, action.micro_batch)

    def _work(self, kind: str, seat: Stage, direction: Direction, micro_batch: int = WHOLE_STEP) -> Work:
        passes = {Direction.FORWARD: 1.0, Direction.BACKWARD: 2.0}
        cost = passes[direction] * self._hardware.costs[seat.index] if direction in passes else UPDATE_COST
        key = ClaimKey(*seat.moment, direction, seat.index, micro_batch)
        return Work(kind, self._hardware.device_of(seat.index), seat.index, key, seat.role, cost)

    def describe(self) -> str:
        """One line for a deadlock report."""
        seats = ", ".join(f"{seat.role} of {stage} at v{seat.version}" for stage, seat in sorted(self.seats.items()))
        return f"{self.name}: {seats or 'no seat'}"
