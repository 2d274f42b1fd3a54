"""The coordinator takes a run from one sealed version to the next: it begins steps, commits them, and replaces the lost.

    begin --> every seat filled --> BeginStep --> claims settle in court --> all gradients agreed --> Update
                                        ^                  |                                            |
                                        |                 Redo                                  all updates agreed
                                        +------------------+                                            |
                                                                                    Seal --> drawn claims to the checker

Each part has a page of its own:

    court        rules on claims; with it `deliveries`, `blame`     seating      who carries which stage from the next step on
    transaction  attempts of a step, its update, its seal           succession   who comes, who is out, and who takes over
    inspector    what is drawn of sealed steps, and checked         watch        whether the run moves, and who is silent if not

A pure state machine: events in, envelopes and events out; no clock, no sockets, no tensors but those that it relays. It is the
paper's central server, and it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from holdfast.blame import Blame
from holdfast.claim import Claim, ClaimKey, Direction, Header, Role
from holdfast.court import Court
from holdfast.errors import FaultWindowExceeded
from holdfast.event import Event, WorkerLost
from holdfast.evidence.notary import Notary
from holdfast.inspector import Inspector
from holdfast.membership import Membership
from holdfast.message import (
    BeginStep,
    Complaint,
    Envelope,
    Finding,
    Flag,
    Lacking,
    Loss,
    Message,
    NewRoute,
    Seal,
    SendState,
    StateAdopted,
    StateRefused,
    StateTransfer,
)
from holdfast.placement.stopwatch import Stopwatch
from holdfast.seating import Seating
from holdfast.stage import ARCHIVE, CHECKER, COORDINATOR, REFEREE, TRUSTED_PARTIES
from holdfast.step import Policy, StepState
from holdfast.succession import Succession
from holdfast.transaction import Transactions
from holdfast.watch import Overdue, Watch


class Coordinator:
    """An `Actor` with a few more doors: `begin` a step, `worker_lost`, and what it wants the launcher to know.

    `broken` says why the run cannot go on from here, once it cannot: then only a rollback helps. `refusals` counts the states
    that the archive has refused. `committed` is called when a step stands, before anybody is told.
    """

    def __init__(
        self,
        run: str,
        membership: Membership,
        policy: Policy,
        notary: Notary | None = None,
        stopwatch: Stopwatch | None = None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = COORDINATOR
        self.devices = 1
        self.membership = membership
        self.broken: str | None = None
        self.refusals = 0
        self._policy = policy
        self._committed = committed
        self._events: list[Event] = []
        notary = notary or Notary()
        self.stopwatch = stopwatch or Stopwatch(lambda: 0.0)
        blame = Blame(membership, self._events, notary, quarantine=policy.ban == "quarantine")
        self._court = Court(run, membership, policy, blame)
        self._deliveries = self._court.deliveries
        self.inspector = Inspector(policy, membership, self._court, blame)
        self._seating = Seating(policy, membership, self._events)
        self._succession = Succession(policy, membership, notary, self._events)
        self._transactions = Transactions(policy, membership, notary, self._events)
        self._watch = Watch(policy, membership, self._court)
        self._now: StepState | None = None
        self._wanted: int | None = None

    # -- what the launcher calls -------------------------------------------------------------------------------------

    def begin(self, step: int) -> list[Envelope]:
        """Start `step` from the sealed version as soon as every seat is filled."""
        self._wanted = step
        self._seating.note_chosen()
        self._succession.exclude_banned(self._step_number)
        self._seating.rearrange(step)
        return self._prepare()

    def assign(self, primaries: tuple[str, ...]) -> None:
        """Have these workers carry the stages from the next step on, if all of them are there then."""
        self._seating.assign(primaries)

    def idle(self) -> bool:
        """Whether the last step that was begun is sealed."""
        return self._now is None and self._wanted is None

    @property
    def paused(self) -> str | None:
        """What the run waits for before the next step, where the machines that are left cannot hold everything."""
        return self._seating.paused

    def settled(self) -> bool:
        """Whether everything that was drawn of sealed steps has been checked, and stands."""
        return self.inspector.idle

    def recall(self, version: int, to: str) -> list[Envelope]:
        """Have the states of a version in the window sent to `to` by whoever held them then."""
        stages = self.membership.route.stages
        orders = [(holder, i) for i in stages for holder in self.inspector.holders(version, i)]
        return [self._to(holder, SendState(i, version, to, None)) for holder, i in orders]

    def collect(self, to: str) -> list[Envelope]:
        """Have the sealed state of every stage sent to `to` by whoever has it: one of them may die or send another."""
        sealed = self.membership
        orders = [(holder, i) for i in sealed.route.stages for holder in sealed.sources(i)]
        return [self._to(holder, SendState(i, sealed.version, to, None, sealed.digests[i])) for holder, i in orders]

    def receive(self, envelope: Envelope) -> Sequence[Envelope]:
        """Take one message; what comes from somebody without the right seat, or too late, is ignored."""
        if isinstance(envelope.message, StateAdopted):
            self.membership.adopted(envelope.sender, envelope.message)
            return self._prepare()
        if isinstance(envelope.message, StateTransfer):
            return self._pass_on(envelope.sender, envelope.message)
        if envelope.sender in (*TRUSTED_PARTIES, ARCHIVE) and isinstance(envelope.message, StateRefused):
            self.refusals += envelope.sender == ARCHIVE
            self._deliveries.substituted(envelope.message)
            return []
        if envelope.sender == CHECKER:
            return self._after_check(envelope.message)
        if self._now is None:
            return []
        return self._go_on(self._now, self._hear(self._now, envelope.sender, envelope.message))

    def pending_events(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def pending_timers(self) -> list[tuple[object, float]]:
        timers = self._watch.timers + self.inspector.timers
        self._watch.timers, self.inspector.timers = [], []
        return timers

    def next_work(self, device: int) -> None:
        return None

    def execute(self, work: object) -> Sequence[Envelope]:
        raise AssertionError("the coordinator computes nothing")

    # -- steps -------------------------------------------------------------------------------------------------------

    def _hear(self, now: StepState, sender: str, message: Message) -> list[Envelope]:
        match message:
            case Header() if now.is_current(message.key):
                if message.worker == sender and message.role is not Role.COMPARER:
                    self.stopwatch.posted(sender, message.key)
                return self._court.post(now, sender, message)
            case Finding() if sender == REFEREE and now.is_current(message.key):
                now.findings[message.key] = message
                return self._court.judge(now, message.key)
            case Complaint() if now.is_current(message.key):
                return self._deliveries.complain(now, sender, message)
            case Claim() if now.is_current(message.header.key):
                return self._deliveries.relay(now, sender, message)
            case Loss(step, attempt, micro_batch, value) if (step, attempt) == (now.step, now.attempt):
                if sender == now.route.primaries[-1]:
                    now.losses[micro_batch] = value
                    last = len(now.route.primaries) - 1
                    self.stopwatch.posted(sender, ClaimKey(step, attempt, Direction.FORWARD, last, micro_batch))
            case Lacking() if sender == REFEREE:
                now.lacking[message.key] = message
            case Flag() if now.is_current(message.key):
                self.inspector.flag(now, sender, message)
        return []

    def _after_check(self, message: Message) -> list[Envelope]:
        """The checker has spoken of a sealed step: the run goes on, waits no longer, or must go back."""
        envelopes: list[Envelope] = []
        match message:
            case Finding():
                envelopes = self.inspector.hear(message)
            case Lacking():
                envelopes = self.inspector.lacking(message)
        if self.inspector.rewind is not None and self.broken is None:
            self.broken = self.inspector.rewind.reason
        return envelopes + self._prepare()

    def _go_on(self, now: StepState, envelopes: list[Envelope]) -> list[Envelope]:
        """After anything that may have settled a claim: redo the step, order the update, or commit."""
        if now is not self._now:
            return envelopes
        if now.redo is not None:
            return envelopes + self._start(self._transactions.again(now, *now.redo))
        if self._transactions.may_update(now):
            order = self._transactions.order_update(now)
            envelopes += [self._to(worker, order) for worker in now.route.workers]
        elif self._transactions.may_seal(now):
            envelopes += self._seal(now)
        return envelopes

    def _prepare(self) -> list[Envelope]:
        """Fill empty seats; when the last one counts, begin."""
        if self._wanted is None or self._now is not None or self.broken or self.inspector.holds_up(self._wanted):
            return []
        if self.membership.missing():
            if not self._seating.has_room(self._wanted):
                return []
            self._watch.arm(None)
            return [self._to(source, order) for source, order in self.membership.transfers()]
        return self._start(self._transactions.begin(self._wanted))

    def _pass_on(self, sender: str, transfer: StateTransfer) -> list[Envelope]:
        """A state that did not reach its new holder comes through here: whoever fails now, sender or receiver, is out."""
        if self._now is not None or self.broken:
            return []
        envelopes = self._deliveries.pass_on(sender, transfer.state)
        for envelope in envelopes:
            self._watch.handed(transfer.state.stage, envelope.recipient)
        while not self.broken and (false := self.membership.route.untrusted(self.membership.exhausted)):
            stage = transfer.state.stage
            envelopes += self.worker_lost(
                false[0], f"it sent the coordinator another state of stage {stage} than the sealed one"
            )
        return envelopes

    def _start(self, now: StepState) -> list[Envelope]:
        self._now = now
        self._watch.arm(now)
        self.stopwatch.began(now.route, again=now.attempt > 0)
        return self._tell_all(BeginStep(now.step, now.attempt, now.version, now.route, tuple(now.digests.values())))

    def _seal(self, now: StepState) -> list[Envelope]:
        """Every update stands: commit, tell everybody, and have claims of the step checked that are drawn only now."""
        self._transactions.seal(now)
        self.stopwatch.sealed()
        self._now = self._wanted = None
        checks = self.inspector.sealed(now)
        self._committed()
        return self._tell_all(Seal(self.membership.version)) + checks

    # -- loss of workers ---------------------------------------------------------------------------------------------

    def worker_joined(self, worker: str) -> list[Envelope]:
        """A worker without a seat is there, new or back again: before the next step it relieves who carries too many."""
        if not self._succession.welcome(worker, self._step_number):
            return []
        return self._prepare() if self.paused is not None else []

    def worker_lost(self, worker: str, reason: str) -> list[Envelope]:
        """A worker is dead or has missed its deadline: its shadow's worker takes over, inside the step."""
        if worker in self.membership.spares:
            self.membership.forget(worker)
            self._events.append(WorkerLost(worker, self._step_number, reason))
            if worker not in self.membership.route.workers:
                return self._prepare()
        if worker not in self.membership.route.workers:
            return []
        self._events.append(WorkerLost(worker, self._step_number, reason))
        if self.broken:  # whoever goes now does not come along when the run goes back
            return []
        if worker in self.membership.route.trusted:
            raise FaultWindowExceeded(f"the trusted {worker} is lost ({reason}); start the run again from its checkpoint")
        if self.membership.without(worker) is None:
            self.broken = f"both holders of a stage are lost, {worker} last ({reason})"
            return []
        self.stopwatch.disturbed()
        self._succession.take_over(worker, self._step_number)
        now = self._now
        if now is None:
            return self._prepare()
        if not self._succession.hand_over(now, worker):
            return self._go_on(now, [])
        return self._go_on(now, self._tell_all(NewRoute(now.route)) + self._court.look_again(now))

    # -- silence -----------------------------------------------------------------------------------------------------

    def on_timer(self, token: object) -> list[Envelope]:
        """Something was to happen by now."""
        match token:
            case ("opening", *_):
                return self.inspector.on_timer(token)
            case ("handed", int(version), int(stage), str(worker)):
                waited = self._now is None and not self.broken
                return self._judge(self._watch.not_shown(version, stage, worker)) if waited else []
        if self.idle() or self.broken or self.paused is not None:
            self._watch.rest()
            return []
        return self._judge(self._watch.ring(self._now, token))

    def _judge(self, found: list[Envelope] | Overdue) -> list[Envelope]:
        """Who has not done in time what it owed is lost; where nobody owes anything, the run is stuck for good."""
        if not isinstance(found, Overdue):
            return found
        if found.worker is not None:
            return self.worker_lost(found.worker, found.reason)
        self.broken = f"{found.reason}; {self.describe()}"
        return []

    # -- small things ------------------------------------------------------------------------------------------------

    @property
    def _step_number(self) -> int:
        return self._now.step if self._now is not None else self.membership.version

    def _tell_all(self, message: Message) -> list[Envelope]:
        workers = dict.fromkeys([*self.membership.route.workers, *(self._now.route.workers if self._now else ())])
        return [self._to(worker, message) for worker in (*workers, REFEREE)]

    def _to(self, recipient: str, message: Message) -> Envelope:
        return Envelope(self.name, recipient, message)

    def describe(self) -> str:
        """One line for a deadlock report."""
        now = self._now
        if self.paused is not None:
            return f"coordinator: v{self.membership.version}, paused: {self.paused}"
        if now is None:
            return f"coordinator: v{self.membership.version}, waits for seats {self.membership.missing()}"
        return (
            f"coordinator: step {now.step} attempt {now.attempt}, {len(now.board.accepted)} keys accepted, "
            f"{len(now.at_the_referee)} at the referee, owed by {self._watch.silent(now)}"
        )
