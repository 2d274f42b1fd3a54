"""The coordinator takes a run from one sealed version to the next: it begins steps, commits them, and replaces the lost.

    begin --> every seat filled --> BeginStep --> claims settle in court --> all gradients agreed --> Update
                                        ^                  |                                            |
                                        |                 Redo                                  all updates agreed
                                        +------------------+                                            |
                                                                                    Seal --> drawn claims to the checker

A pure state machine: events in, envelopes and events out; no clock, no sockets, no tensors but those that it relays. It is the
paper's central server, and it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from holdfast.blame import Blame
from holdfast.claim import Claim, ClaimKey, Direction, Header, Role
from holdfast.court import Court
from holdfast.deadline import owing
from holdfast.errors import FaultWindowExceeded
from holdfast.event import (
    Banned,
    Event,
    Joined,
    Paused,
    Reseated,
    Reshadowed,
    StagesSkipped,
    StepRestarted,
    StepSealed,
    TakenOver,
    WorkerLost,
)
from holdfast.evidence.notary import Notary
from holdfast.inspector import Inspector
from holdfast.membership import Membership, relieve
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
    Update,
)
from holdfast.placement.stopwatch import Stopwatch
from holdfast.recover.remedy import Redo
from holdfast.recover.skip import leave_out
from holdfast.route import Route
from holdfast.route import without as without_workers
from holdfast.stage import ARCHIVE, CHECKER, COORDINATOR, REFEREE, TRUSTED_PARTIES
from holdfast.step import Policy, StepState
from holdfast.verify.spotcheck import seats

MAX_ATTEMPTS = 32
"""Attempts of one step before the coordinator gives up on ever sealing it."""


class Coordinator:
    """An `Actor` with a few more doors: `begin` a step, `worker_lost`, and what it wants the launcher to know.

    `broken` says why the run cannot go on from here, once it cannot: then only a rollback helps. `paused` says what it waits
    for before the next step, where the machines that are left cannot hold everything. `refusals` counts the states that the
    archive has refused. `committed` is called when a step stands, before anybody is told.
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
        self.paused: str | None = None
        self.refusals = 0
        self._policy = policy
        self._committed = committed
        self._events: list[Event] = []
        self._notary = notary or Notary()
        self.stopwatch = stopwatch or Stopwatch(lambda: 0.0)
        blame = Blame(membership, self._events, self._notary, quarantine=policy.ban == "quarantine")
        self._court = Court(run, membership, policy, blame)
        self._deliveries = self._court.deliveries
        self.inspector = Inspector(policy, membership, self._court, blame)
        self._now: StepState | None = None
        self._wanted: int | None = None
        self._timers: list[tuple[object, float]] = []
        self._warned: object = None
        self._armed = False
        self._assigned: tuple[str, ...] | None = None
        self._chosen: tuple[str, ...] | None = None

    # -- what the launcher calls -------------------------------------------------------------------------------------

    def begin(self, step: int) -> list[Envelope]:
        """Start `step` from the sealed version as soon as every seat is filled."""
        self._wanted = step
        if self._policy.seated and self._chosen is None:
            self._chosen = self.membership.route.primaries
        self._exclude_banned()
        self._reassign(step)
        self._settle_in(step)
        self._redraw(step)
        return self._prepare()

    def assign(self, primaries: tuple[str, ...]) -> None:
        """Have these workers carry the stages from the next step on, if all of them are there then."""
        self._assigned = primaries

    def idle(self) -> bool:
        """Whether the last step that was begun is sealed."""
        return self._now is None and self._wanted is None

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
        timers = self._timers + self.inspector.timers
        self._timers, self.inspector.timers = [], []
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
            return envelopes + self._redo(now, *now.redo)
        if now.update is None and now.gradients_agreed and (now.claims_settled or not self._policy.checked):
            envelopes += self._order_update(now)
        elif now.update is not None and now.updates_agreed:
            envelopes += self._seal(now)
        return envelopes

    def _prepare(self) -> list[Envelope]:
        """Fill empty seats; when the last one counts, begin."""
        if self._wanted is None or self._now is not None or self.broken or self.inspector.holds_up(self._wanted):
            return []
        if self.membership.missing():
            if not self._has_room(self._wanted):
                return []
            self._arm()
            return [self._to(source, order) for source, order in self.membership.transfers()]
        self._events += [Reshadowed(i, w, self.membership.version) for i, w in self.membership.new_shadows()]
        route = self._planned(self._wanted, self.membership.settle())
        if route.bypassed:
            self._events.append(StagesSkipped(self._wanted, route.bypassed, route.frozen))
        return self._start(self._wanted, 0, route)

    def _has_room(self, step: int) -> bool:
        """Whether everybody can hold what the next step gives him; else others take some of it, or the run waits."""
        room, membership = self._policy.room, self.membership
        if room is None or not room.lacking(membership.target()):
            self.paused = None
            return True
        if not membership.is_shown:
            return True  # what has not arrived yet cannot be moved
        primaries = room.resettle(membership.route, membership.spares) if membership.is_settled else None
        if primaries is not None:
            self._seat(step, primaries)
            self.paused = None
            return True
        lost = membership.members - membership.banned - {*membership.route.workers, *membership.spares}
        reason = room.wanted(membership.route, lost)
        if reason != self.paused:
            self.paused = reason
            self._events.append(Paused(step, reason))
        return False

    def _planned(self, step: int, route: Route) -> Route:
        """The route on which a step is meant to run, if nobody raises an alert."""
        return leave_out(route, self._policy.bypass.get(step, ()))

    def _pass_on(self, sender: str, transfer: StateTransfer) -> list[Envelope]:
        """A state that did not reach its new holder comes through here: whoever fails now, sender or receiver, is out."""
        if self._now is not None or self.broken:
            return []
        envelopes = self._deliveries.pass_on(sender, transfer.state)
        for envelope in envelopes:
            seat = (self.membership.version, transfer.state.stage, envelope.recipient)
            self._timers.append((("handed", *seat), self._policy.deadline_s + self._policy.transfer_s))
        while not self.broken and (false := self._untrusted(self.membership.exhausted)):
            stage = transfer.state.stage
            envelopes += self.worker_lost(
                false[0], f"it sent the coordinator another state of stage {stage} than the sealed one"
            )
        return envelopes

    def _start(self, step: int, attempt: int, route: Route) -> list[Envelope]:
        sealed = {i: self.membership.digests[i] for i in route.stages}
        self._now = StepState(
            step, attempt, self.membership.version, route, self._policy.micro_batches, sealed, self._policy.likeness
        )
        self._arm()
        self.stopwatch.began(route, again=attempt > 0)
        digests = tuple(sealed.values())
        return self._tell_all(BeginStep(step, attempt, self.membership.version, route, digests))

    def _redo(self, now: StepState, answer: Redo, reason: str) -> list[Envelope]:
        attempt = now.attempt + 1
        if attempt > MAX_ATTEMPTS:
            raise FaultWindowExceeded(
                f"step {now.step} was begun {attempt} times and never sealed ({reason}); use --on-alert replace, or ban liars"
            )
        if answer.route.bypassed and answer.route.bypassed != now.route.bypassed:
            self._events.append(StagesSkipped(now.step, answer.route.bypassed, answer.route.frozen))
        else:
            self._events.append(StepRestarted(now.step, attempt, reason))
        return self._start(now.step, attempt, answer.route)

    def _order_update(self, now: StepState) -> list[Envelope]:
        """Every gradient of the step stands: make the clip scale from the agreed norms and order the update."""
        now.clipping = self._policy.clip(now.accounts)
        now.update = Update(now.step, now.attempt, now.clipping.scale, self._policy.learning_rate(now.step))
        return [self._to(worker, now.update) for worker in now.route.workers]

    def _seal(self, now: StepState) -> list[Envelope]:
        """Every update stands: commit. Who did not show the sealed digest gets the state again before the next step."""
        digests = {i: now.board.accepted[now.update_key(i)] for i in now.updating}
        for i in now.updating if self._policy.checked else ():
            shown = {header.worker for header in now.board.headers(now.update_key(i)) if header.output == digests[i]}
            for holder in self.membership.route.holders(i):
                if holder not in shown:
                    self.membership.distrust(i, holder)
        self.membership.seal(digests)
        self._notary.sealed(self.membership.version, now.step, now.attempt, self.membership.digests)
        losses = [now.losses[m] for m in sorted(now.losses)]
        loss = sum(losses) / max(1, len(losses))
        rate, tokens = self._policy.learning_rate(now.step), self._policy.tokens_per_step
        self._events.append(StepSealed(now.step, now.attempt, loss, now.clipping.norm, rate, tokens))
        self.stopwatch.sealed()
        self._now = self._wanted = None
        checks = self.inspector.sealed(now)
        self._committed()
        return self._tell_all(Seal(self.membership.version)) + checks

    # -- loss of workers ---------------------------------------------------------------------------------------------

    def worker_joined(self, worker: str) -> list[Envelope]:
        """A worker without a seat is there, new or back again: before the next step it relieves who carries too many."""
        membership = self.membership
        if worker in membership.spares or worker in membership.route.workers or worker in membership.banned:
            return []
        if self._is_to_be_banned(worker):
            self._events.append(Banned(worker, self._lies_of(worker), self._step_number))
            membership.banned.add(worker)
            return []
        membership.spares.append(worker)
        self._events.append(Joined(worker, self._step_number))
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
        self._take_over(worker)
        if self._now is None:
            return self._prepare()
        return self._go_on(self._now, self._carry_on(self._now, worker))

    def _take_over(self, worker: str) -> None:
        old = self.membership.seated
        self.membership.lose(worker)
        for i in old.stages:
            if old.primaries[i] == worker:
                heir = self.membership.route.primaries[i]
                self._notary.took_over(i, worker, heir, self._step_number)
                self._events.append(TakenOver(i, worker, heir, self._step_number))

    def _carry_on(self, now: StepState, lost: str) -> list[Envelope]:
        """Edit the route of the running step: heirs send what may be unsent, the referee stands in for lost shadows."""
        route = without_workers(now.route, {lost})
        if route is None:  # this step bypassed the only heir
            now.redo = (
                Redo(self._planned(now.step, self.membership.route), investigate=False),
                f"{lost} was lost in a bypassed step",
            )
            return []
        heirs = [(i, route.primaries[i]) for i in route.stages if now.route.primaries[i] == lost]
        if self._policy.likeness is not None and any(self._policy.likeness.unlike(lost, heir) for _, heir in heirs):
            now.redo = (
                Redo(self._planned(now.step, self.membership.route), investigate=False),
                f"the heir of {lost} computes with other bytes",
            )
            return []
        for i, heir in heirs:
            now.board.promote(i, heir)
        now.route = route
        now.board.retire(lost)
        envelopes = self._tell_all(NewRoute(route))
        for key in now.at_the_referee:
            envelopes += self._court.investigate(now, key)
        for key in list(now.board.keys()):
            if key not in now.board.accepted:
                envelopes += self._court.decide(now, key)
        return envelopes

    def _exclude_banned(self) -> None:
        """At a step boundary, ban whoever has lied too often, where every stage keeps a holder.

        False complaints are counted whatever the policy: they cost the coordinator itself.
        """
        for worker in self.membership.route.workers:
            if self._is_to_be_banned(worker) and self.membership.without(worker) is not None:
                self._events.append(Banned(worker, self._lies_of(worker), self._step_number))
                self.membership.banned.add(worker)
                self._take_over(worker)

    def _lies_of(self, worker: str) -> int:
        counted = self.membership.lies if self._policy.ban == "ban" else self.membership.false_complaints
        return counted[worker]

    def _is_to_be_banned(self, worker: str) -> bool:
        return self._lies_of(worker) >= self._policy.ban_after

    def _reassign(self, step: int) -> None:
        """Workers change seats as they were told to; who has none afterwards is a spare."""
        primaries, self._assigned = self._assigned, None
        membership = self.membership
        there = {*membership.route.workers, *membership.spares}
        if primaries is None or primaries == membership.route.primaries or not membership.is_settled:
            return
        if there.issuperset(primaries):
            self._chosen = primaries
            self._seat(step, primaries)

    def _seat(self, step: int, primaries: tuple[str, ...]) -> None:
        membership = self.membership
        idle = [worker for worker in membership.route.workers if worker not in primaries]
        membership.settle_in(primaries)
        membership.spares += idle
        self._events.append(Reseated(step, primaries))

    def _settle_in(self, step: int) -> None:
        """Spares take seats from who carries too many stages, as soon as nothing else is missing."""
        membership = self.membership
        if membership.route.primaries == self._chosen or not membership.is_settled or not membership.is_shown:
            return
        primaries, room = membership.route.primaries, self._policy.room
        for spare in membership.spares:
            relieved = relieve(replace(membership.route, primaries=primaries), [spare])
            if room is None or room.fits(membership.route, relieved):
                primaries = relieved
        if primaries != membership.route.primaries:
            membership.settle_in(primaries)
            self._events.append(Reseated(step, primaries))

    def _redraw(self, step: int) -> None:
        """Every so many steps other workers sit on the untrusted stages, so that nobody stays beside an accomplice."""
        every = self._policy.inspection.redraw_every
        if not every or step == 0 or step % every:
            return
        route = self.membership.route
        primaries = seats(route.primaries, route.trusted, self._policy.inspection.sampling.seed, step)
        room = self._policy.room
        if primaries != route.primaries and (room is None or room.fits(route, primaries)):
            self.membership.reseat(primaries)
            self._events.append(Reseated(step, primaries))

    # -- silence -----------------------------------------------------------------------------------------------------

    def on_timer(self, token: object) -> list[Envelope]:
        """No progress since the timer was set: first have everything sent again, then count the silent ones as dead."""
        if isinstance(token, tuple) and token[:1] == ("opening",):
            return self.inspector.on_timer(token)
        if isinstance(token, tuple) and token[:1] == ("handed",):
            return self._not_shown(*token[1:])
        self._armed = False
        if self.idle() or self.broken or self.paused is not None:
            return []
        self._arm()
        if token != self._pulse():
            return []
        if self._warned != token:
            self._warned = token
            return self._send_again()
        self._warned = None
        silent = self._silent()
        if silent:
            if self._now is not None:
                self._deliveries.overdue(self._now, silent[0])
            return self.worker_lost(silent[0], f"no progress within {2 * self._policy.deadline_s:g} s")
        if self._now is None and self.membership.handed.intersection(self.membership.missing()):
            return []  # they have a deadline of their own, which began later
        self.broken = f"nothing has moved for {2 * self._policy.deadline_s:g} s and nobody owes anything; {self.describe()}"
        return []

    def _not_shown(self, version: int, stage: int, worker: str) -> list[Envelope]:
        """A worker was handed a state by the coordinator itself, and has not shown its digest in time."""
        seat, membership = (stage, worker), self.membership
        waited = self._now is None and version == membership.version and seat in membership.handed
        if not waited or self.broken or seat not in membership.missing():
            return []
        return self.worker_lost(worker, f"it has not shown the state of stage {stage} that the coordinator sent it")

    def _send_again(self) -> list[Envelope]:
        """What a stuck run may lack: a state, a tensor or a ruling that a silent or lying sender withheld."""
        if self._now is not None:
            return self._deliveries.withheld(self._now) + self._court.not_examined(self._now)
        self.membership.ask_again()
        return [self._to(source, order) for source, order in self.membership.transfers()]

    def _silent(self) -> list[str]:
        """Untrusted workers that owe an answer, the surest first."""
        now = self._now
        if now is None:
            owed = self.membership.owing()
        else:
            owed = [source for awaited in now.awaited.values() for source in awaited.sources]
            owed += [holder for stage in now.unopened for holder in now.route.holders(stage)]
            owed += owing(
                now.route,
                now.board,
                self._policy.micro_batches,
                updating=now.update is not None,
                likeness=self._policy.likeness,
            )
        return self._untrusted(owed)

    def _untrusted(self, workers: Sequence[str]) -> list[str]:
        """Those who can be lost: they have a seat, and are no trusted party."""
        route = self.membership.route
        return [worker for worker in dict.fromkeys(workers) if worker in route.workers and worker not in route.trusted]

    def _arm(self) -> None:
        """One timer at a time; one that was set before the last progress only sets the next."""
        if not self._armed:
            self._armed = True
            moving = self._now is None or self._now.at_the_referee  # whole states may be on their way
            self._timers.append((self._pulse(), self._policy.deadline_s + self._policy.transfer_s * bool(moving)))

    def _pulse(self) -> tuple[int, ...]:
        """Changes whenever the run has moved on; also where a tensor was handed on from here: its receiver has just got it."""
        now = self._now
        if now is None:
            return (self.membership.version, len(self.membership.missing()))
        return (now.step, now.attempt, len(now.board.accepted), len(now.findings), len(now.handed))

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
            f"{len(now.at_the_referee)} at the referee, owed by {self._silent()}"
        )
