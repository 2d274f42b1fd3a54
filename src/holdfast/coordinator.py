"""The coordinator takes a run from one sealed version to the next: routes, claim board, disputes, commits.

    BeginStep --> claims settle on the board --> all gradients agreed --> Update --> all updates agreed --> Seal
                        |
                   two accounts differ --> remedy --> Investigate: the referee decides who, the innocent value goes on
                                                  --> Redo:        the step begins again from sealed weights

A pure state machine: events in, envelopes and events out; no clock, no sockets, no tensors but those that it relays. It is the
paper's central server, and it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role
from holdfast.config import BanPolicy
from holdfast.deadline import owing
from holdfast.digest import tensor_digest
from holdfast.errors import FaultWindowExceeded
from holdfast.event import (
    Alert,
    Banned,
    ClaimReplaced,
    Event,
    Reshadowed,
    Ruling,
    StagesSkipped,
    StepRestarted,
    StepSealed,
    TakenOver,
    WorkerLost,
)
from holdfast.membership import Membership
from holdfast.message import (
    Accepted,
    BeginStep,
    Complaint,
    Envelope,
    Examine,
    Finding,
    Loss,
    Message,
    NewRoute,
    Seal,
    SendState,
    StateAdopted,
    Supply,
    Update,
)
from holdfast.optimizer import Clipping
from holdfast.recover.remedy import Dispute, Investigate, Redo, Remedy
from holdfast.route import Route
from holdfast.route import without as without_workers
from holdfast.stage import COORDINATOR, REFEREE
from holdfast.verify.board import Board, Posting
from holdfast.verify.chain import expected_inputs, ingredients
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge
from holdfast.verify.verdict import Accepted as Agreed
from holdfast.verify.verdict import Rejected, Unverifiable

MAX_ATTEMPTS = 32
"""Attempts of one step before the coordinator gives up on ever sealing it."""


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


@dataclass(slots=True)
class _Step:
    """One attempt of one step."""

    step: int
    attempt: int
    route: Route
    board: Board = field(default_factory=Board)
    losses: dict[int, float] = field(default_factory=dict)
    accounts: dict[int, tuple[float, ...]] = field(default_factory=dict)
    disputes: dict[ClaimKey, Dispute] = field(default_factory=dict)
    examined: set[ClaimKey] = field(default_factory=set)
    findings: dict[ClaimKey, Finding] = field(default_factory=dict)
    relayed: dict[ClaimKey, Claim] = field(default_factory=dict)
    update: Update | None = None
    clipping: Clipping = field(default_factory=lambda: Clipping(0.0, 1.0))
    complained: set[tuple[ClaimKey, str]] = field(default_factory=set)
    unheard: set[ClaimKey] = field(default_factory=set)
    progress: int = 0


class Coordinator:
    """An `Actor` with a few more doors: `begin` a step, `worker_lost`, and what it wants the launcher to know."""

    def __init__(self, run: str, membership: Membership, policy: Policy) -> None:
        self.name = COORDINATOR
        self.devices = 1
        self.membership = membership
        self.broken: str | None = None
        self._run = run
        self._policy = policy
        self._now: _Step | None = None
        self._wanted: int | None = None
        self._events: list[Event] = []
        self._timers: list[tuple[object, float]] = []
        self._warned = False
        self._armed = False

    # -- what the launcher calls -------------------------------------------------------------------------------------

    def begin(self, step: int) -> list[Envelope]:
        """Start `step` from the sealed version as soon as every seat is filled."""
        self._wanted = step
        self._exclude_banned()
        return self._prepare()

    def idle(self) -> bool:
        """Whether the last step that was begun is sealed."""
        return self._now is None and self._wanted is None

    def collect(self, to: str) -> list[Envelope]:
        """Have the sealed state of every stage sent to `to`, for a checkpoint."""
        orders = [(self.membership.source(i), i) for i in self.membership.route.stages]
        return [self._to(holder, SendState(i, self.membership.version, to, None)) for holder, i in orders]

    def receive(self, envelope: Envelope) -> Sequence[Envelope]:
        """Take one message; what comes from somebody without the right seat, or too late, is ignored."""
        sender, message = envelope.sender, envelope.message
        match message:
            case StateAdopted():
                self.membership.adopted(sender, message)
                return self._prepare()
            case Header() if self._is_current(message.key):
                return self._post(sender, message)
            case Finding() if sender == REFEREE and self._is_current(message.key):
                self._step.findings[message.key] = message
                return self._judge(message.key)
            case Complaint() if self._is_current(message.key):
                return self._complain(sender, message)
            case Claim() if self._is_current(message.header.key):
                return self._relay(sender, message)
            case Loss(step, attempt, micro_batch, value) if self._now and (step, attempt) == (
                self._now.step,
                self._now.attempt,
            ):
                if sender == self._now.route.primaries[-1]:
                    self._now.losses[micro_batch] = value
        return []

    def pending_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def pending_timers(self) -> list[tuple[object, float]]:
        timers, self._timers = self._timers, []
        return timers

    def next_work(self, device: int) -> None:
        return None

    def execute(self, work: object) -> Sequence[Envelope]:
        raise AssertionError("the coordinator computes nothing")

    # -- steps -------------------------------------------------------------------------------------------------------

    def _prepare(self) -> list[Envelope]:
        """Fill empty seats; when the last one counts, begin."""
        if self._wanted is None or self._now is not None or self.broken:
            return []
        if self.membership.missing():
            self._arm()
            return [self._to(source, order) for source, order in self.membership.transfers()]
        self._events += [Reshadowed(i, w, self.membership.version) for i, w in self.membership.new_shadows()]
        return self._start(self._wanted, 0, self.membership.settle())

    def _start(self, step: int, attempt: int, route: Route) -> list[Envelope]:
        self._now = _Step(step, attempt, route)
        self._warned = False
        self._arm()
        digests = tuple(self.membership.digests[i] for i in route.stages)
        return self._tell_all(BeginStep(step, attempt, self.membership.version, route, digests))

    def _redo(self, answer: Redo, reason: str) -> list[Envelope]:
        now = self._step
        attempt = now.attempt + 1
        if attempt > MAX_ATTEMPTS:
            raise FaultWindowExceeded(
                f"step {now.step} was begun {attempt} times and never sealed ({reason}); use --on-alert replace, or ban liars"
            )
        if answer.route.bypassed != now.route.bypassed:
            self._events.append(StagesSkipped(now.step, answer.route.bypassed, answer.route.frozen))
        else:
            self._events.append(StepRestarted(now.step, attempt, reason))
        return self._start(now.step, attempt, answer.route)

    def _agree(self) -> list[Envelope]:
        """Every gradient of the step stands: make the clip scale from the agreed norms and order the update."""
        now = self._step
        now.clipping = self._policy.clip(now.accounts)
        now.update = Update(now.step, now.attempt, now.clipping.scale, self._policy.learning_rate(now.step))
        return [self._to(worker, now.update) for worker in now.route.workers]

    def _seal(self) -> list[Envelope]:
        """Every update stands: commit. Who did not show the sealed digest gets the state again before the next step."""
        now = self._step
        digests = {i: now.board.accepted[self._update_key(i)] for i in self._updating}
        for i in self._updating if self._policy.checked else ():
            shown = {header.worker for header in now.board.headers(self._update_key(i)) if header.output == digests[i]}
            for holder in self.membership.route.holders(i):
                if holder not in shown:
                    self.membership.distrust(i, holder)
        self.membership.seal(digests)
        losses = [now.losses[m] for m in sorted(now.losses)]
        assert now.update is not None
        self._events.append(
            StepSealed(
                now.step,
                now.attempt,
                sum(losses) / max(1, len(losses)),
                now.clipping.norm,
                now.update.learning_rate,
                self._policy.tokens_per_step,
            )
        )
        self._now = self._wanted = None
        return self._tell_all(Seal(self.membership.version))

    # -- the board ---------------------------------------------------------------------------------------------------

    def _post(self, sender: str, header: Header) -> list[Envelope]:
        now, key = self._step, header.key
        role = now.route.role(key.stage, sender)
        known = header.worker == sender and header.run == self._run and header.version == self.membership.version
        if role is None or not known or not -1 <= key.micro_batch < self._policy.micro_batches:
            return []
        if role is not header.role:  # posted as a shadow, just before it became primary
            header = replace(header, role=role)
        if now.board.post(header) is Posting.EQUIVOCATION:
            self._alert(key, "equivocation", (sender,))
            self._convict(key, (sender,), "equivocation")
        elif sender in self.membership.quarantined:
            now.unheard.add(key)
        envelopes = self._decide(key)
        self._note_quarantined(key)
        return envelopes

    def _decide(self, key: ClaimKey) -> list[Envelope]:
        """Rule on `key` if enough is known."""
        now = self._step
        if key in now.findings:
            return self._judge(key)
        primary, shadow = now.board.header(key, Role.PRIMARY), now.board.header(key, Role.SHADOW)
        if key in now.board.accepted:
            return []
        if key in now.examined or (primary is None and shadow is None):
            return []
        if not self._policy.checked or now.route.is_trusted(key.stage):
            return self._accept(primary) if primary is not None else []
        believed = self._believed(key, primary, shadow)
        if believed is not None:
            return self._accept(believed)
        if primary is None or (shadow is None and now.route.shadows[key.stage] is not None):
            return []
        match compare(primary, shadow, self._inputs(key)):
            case Agreed():
                return self._accept(primary)
            case Unverifiable():
                return self._investigate(key)
            case Rejected(reason, suspects):
                return self._dispute(Dispute(key, reason, self._narrow(key, suspects), now.route))

    def _accept(self, header: Header) -> list[Envelope]:
        """`header` stands. Tell whoever needs the tensor; have it supplied where the primary's own will not do."""
        now, key = self._step, header.key
        now.board.accept(key, header.output)
        now.progress += 1
        self._warned = False
        if key.direction is Direction.GRADIENT:
            now.accounts[key.stage] = header.norms
            return self._agree() if now.accounts.keys() >= self._updating else []
        if key.direction is Direction.UPDATE:
            done = all(self._update_key(i) in now.board.accepted for i in self._updating)
            return self._seal() if done else []
        consumers = now.route.consumers(key.direction, key.stage)
        envelopes = [self._to(consumer, Accepted(key, header.output)) for consumer in consumers]
        if header.worker != now.route.primaries[key.stage]:
            self._events.append(ClaimReplaced(key, header.worker))
            return [*envelopes, self._to(header.worker, Supply(key, consumers))]
        return envelopes + self._forward_relayed(key)

    # -- disputes ----------------------------------------------------------------------------------------------------

    def _dispute(self, dispute: Dispute) -> list[Envelope]:
        now = self._step
        now.disputes[dispute.key] = dispute
        self._alert(dispute.key, dispute.reason, dispute.suspects)
        answer = self._policy.remedy.answer(dispute)
        if isinstance(answer, Investigate) or answer.investigate:
            return self._investigate(dispute.key)
        return self._redo(answer, f"{dispute.reason} of the {dispute.key}")

    def _investigate(self, key: ClaimKey) -> list[Envelope]:
        """Give the case to the referee, with the digests of everything that it needs."""
        now = self._step
        now.examined.add(key)
        needed = ingredients(key, now.route, self._policy.micro_batches)
        neighbours = [i for i in (now.route.before(key.stage), now.route.after(key.stage)) if i is not None]
        holders = dict.fromkeys(holder for i in (key.stage, *neighbours) for holder in now.route.holders(i))
        case = Examine(
            key,
            self.membership.version,
            self.membership.digests[key.stage],
            tuple((parent, now.board.accepted[parent]) for parent in needed),
            tuple(holders),
            now.update.clip_scale if now.update else 1.0,
            now.update.learning_rate if now.update else 0.0,
        )
        return [self._to(REFEREE, case)]

    def _judge(self, key: ClaimKey) -> list[Envelope]:
        """The referee has computed `key`: name who differs, and go on with who does not."""
        now = self._step
        headers, finding = now.board.headers(key), now.findings[key]
        if not headers or key in now.board.accepted:
            return []
        dispute = now.disputes.get(key)
        judgement = judge(headers, finding, self._inputs(key))
        if judgement.culprits and dispute is None:
            self._alert(key, "output", judgement.culprits)
        if judgement.culprits or dispute is not None:
            self._convict(key, judgement.culprits, dispute.reason if dispute else "output")
        if dispute is not None:
            answer = self._policy.remedy.answer(replace(dispute, route=now.route))
            if isinstance(answer, Redo):
                return self._redo(answer, f"{dispute.reason} of the {key}")
        return self._accept(judgement.innocent or self._own_header(finding))

    def _own_header(self, finding: Finding) -> Header:
        """No holder gave the honest account: the referee's own stands, and it will supply the tensor or the state."""
        key, now = finding.key, self._step
        if key.direction is Direction.UPDATE:
            self.membership.vouch(key.stage, REFEREE)
        version = self.membership.version
        return Header(self._run, key, version, now.route.epoch, REFEREE, Role.PRIMARY, (), finding.output, finding.norms)

    def _complain(self, sender: str, complaint: Complaint) -> list[Envelope]:
        """A delivery did not match the board: have it sent by somebody else. Between two workers it proves nothing."""
        now, key = self._step, complaint.key
        if sender not in now.route.consumers(key.direction, key.stage) or (key, sender) in now.complained:
            return []
        now.complained.add((key, sender))
        replaced = key in now.findings and now.board.accepted.get(key) is not None
        if not replaced:
            self._alert(key, "delivery", tuple(w for w in (complaint.sender, sender) if w not in now.route.trusted))
        return self._resupply(key, sender, complaint.sender) if key in now.board.accepted else []

    def _resupply(self, key: ClaimKey, consumer: str, avoid: str = "") -> list[Envelope]:
        """Have `key` sent to `consumer` by a holder whose account stood, rather not by `avoid`."""
        now = self._step
        output = now.board.accepted[key]
        honest = [header.worker for header in now.board.headers(key) if header.output == output]
        if key in now.findings:
            honest.append(REFEREE)
        source = next((worker for worker in honest if worker != avoid), honest[0] if honest else None)
        ruling = [self._to(consumer, Accepted(key, output))]
        return ruling if source is None else [*ruling, self._to(source, Supply(key, (consumer,)))]

    def _relay(self, sender: str, claim: Claim) -> list[Envelope]:
        """Keep a tensor that passes through here until its key is accepted."""
        key = claim.header.key
        if sender != self._step.route.primaries[key.stage] or not self._step.route.relay:
            return []
        self._step.relayed.setdefault(key, claim)
        return self._forward_relayed(key) if key in self._step.board.accepted else []

    def _forward_relayed(self, key: ClaimKey) -> list[Envelope]:
        now = self._step
        claim = now.relayed.pop(key, None)
        if claim is None:
            return []
        consumers = now.route.consumers(key.direction, key.stage)
        if tensor_digest(claim.tensor) != now.board.accepted[key]:
            self._alert(key, "delivery", (now.route.primaries[key.stage],))
            self._convict(key, (now.route.primaries[key.stage],), "delivery")
            return [
                envelope for consumer in consumers for envelope in self._resupply(key, consumer, now.route.primaries[key.stage])
            ]
        return [self._to(consumer, claim) for consumer in consumers]

    # -- blame -------------------------------------------------------------------------------------------------------

    def _alert(self, key: ClaimKey, reason: str, suspects: tuple[str, ...]) -> None:
        self._events.append(Alert(key, reason, suspects))

    def _convict(self, key: ClaimKey, culprits: tuple[str, ...], reason: str) -> None:
        self._events.append(Ruling(key, culprits, key.stage, reason))
        for worker in culprits:
            self.membership.lies[worker] += 1
            if self._policy.ban == "quarantine":
                self.membership.quarantined.add(worker)

    def _exclude_banned(self) -> None:
        """At a step boundary, ban whoever has lied too often, where every stage keeps a holder."""
        if self._policy.ban != "ban":
            return
        for worker in self.membership.route.workers:
            lies = self.membership.lies[worker]
            if lies >= self._policy.ban_after and self.membership.without(worker) is not None:
                self._events.append(Banned(worker, lies, self._wanted or 0))
                self._take_over(worker)

    def _narrow(self, key: ClaimKey, suspects: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(worker for worker in suspects if worker not in self._step.route.trusted)

    def _believed(self, key: ClaimKey, primary: Header | None, shadow: Header | None) -> Header | None:
        """Under quarantine, the account of the holder that is not quarantined; None where the two must agree."""
        route, out = self._step.route, self.membership.quarantined
        holder_is_out = route.primaries[key.stage] in out
        shadow_is_out = route.shadows[key.stage] in out
        if holder_is_out and not shadow_is_out:
            return shadow
        return primary if shadow_is_out and not holder_is_out else None

    def _note_quarantined(self, key: ClaimKey) -> None:
        """A quarantined holder's account does not count any more, but where it differs that is on record."""
        now = self._now
        if now is None or key not in now.board.accepted or key not in now.unheard:
            return
        now.unheard.discard(key)
        for header in now.board.headers(key):
            false = header.output != now.board.accepted[key]
            if false and header.worker in self.membership.quarantined and key not in now.findings:
                self._alert(key, "output", (header.worker,))
                self._convict(key, (header.worker,), "output")

    # -- loss of workers ---------------------------------------------------------------------------------------------

    def worker_lost(self, worker: str, reason: str) -> list[Envelope]:
        """A worker is dead or has missed its deadline: its shadow's worker takes over, inside the step."""
        if worker not in self.membership.route.workers or self.broken:
            return []
        step = self._now.step if self._now else self.membership.version
        self._events.append(WorkerLost(worker, step, reason))
        if worker in self.membership.route.trusted:
            raise FaultWindowExceeded(f"the trusted {worker} is lost ({reason}); start the run again from its checkpoint")
        if self.membership.without(worker) is None:
            self.broken = f"both holders of a stage are lost, {worker} last ({reason})"
            return []
        self._take_over(worker)
        return self._prepare() if self._now is None else self._carry_on(worker)

    def _take_over(self, worker: str) -> None:
        old = self.membership.route
        self.membership.lose(worker)
        step = self._now.step if self._now else self.membership.version
        for i in old.stages:
            if old.primaries[i] == worker:
                self._events.append(TakenOver(i, worker, self.membership.route.primaries[i], step))

    def _carry_on(self, lost: str) -> list[Envelope]:
        """Edit the route of the running step: heirs send what may be unsent, the referee stands in for lost shadows."""
        now = self._step
        route = without_workers(now.route, {lost})
        if route is None:  # this step bypassed the only heir
            return self._redo(Redo(self.membership.route, investigate=False), f"{lost} was lost in a bypassed step")
        for i in route.stages:
            if now.route.primaries[i] == lost:
                now.board.promote(i, route.primaries[i])
        now.route = route
        now.board.retire(lost)
        envelopes = self._tell_all(NewRoute(route))
        for key in [key for key in now.examined if key not in now.findings]:
            envelopes += self._investigate(key)
        for key in list(now.board.keys()):
            if self._now is now and key not in now.board.accepted:
                envelopes += self._decide(key)
        return envelopes

    # -- silence -----------------------------------------------------------------------------------------------------

    def on_timer(self, token: object) -> list[Envelope]:
        """No progress since the timer was set: first have everything sent again, then count the silent ones as dead."""
        self._armed = False
        if self.idle() or self.broken:
            return []
        if token != self._pulse():
            self._arm()
            return []
        self._arm()
        if not self._warned:
            self._warned = True
            return self._send_again()
        self._warned = False
        silent = self._silent()
        if not silent:
            self.broken = f"nothing has moved for {2 * self._policy.deadline_s:g} s and nobody owes anything: {self.describe()}"
            return []
        return self.worker_lost(silent[0], f"no progress within {2 * self._policy.deadline_s:g} s")

    def _send_again(self) -> list[Envelope]:
        """What a stuck run may lack: a state, a tensor or a ruling that a silent or lying sender withheld."""
        now = self._now
        if now is None:
            self.membership.ask_again()
            return [self._to(source, order) for source, order in self.membership.transfers()]
        envelopes = []
        for key in now.board.accepted:
            if key.direction in (Direction.FORWARD, Direction.BACKWARD):
                for consumer in self._without_answer(key):
                    self._alert(key, "withheld", self._narrow(key, (now.route.primaries[key.stage], consumer)))
                    envelopes += self._resupply(key, consumer, avoid=now.route.primaries[key.stage])
        for key in now.examined - now.findings.keys():
            envelopes += self._investigate(key)
        return envelopes

    def _without_answer(self, key: ClaimKey) -> list[str]:
        """Consumers of an accepted tensor that have not claimed anything made from it."""
        now = self._step
        forward = key.direction is Direction.FORWARD
        neighbour = now.route.after(key.stage) if forward else now.route.before(key.stage)
        if neighbour is None or now.route.is_trusted(neighbour):
            return []
        posted = {header.worker for header in now.board.headers(replace(key, stage=neighbour))}
        return [worker for worker in now.route.consumers(key.direction, key.stage) if worker not in posted]

    def _silent(self) -> list[str]:
        """Untrusted workers that owe an answer, the surest first."""
        now = self._now
        if now is None:
            owed = [worker for _, worker in self.membership.missing()]
            owed += [self.membership.source(stage) for stage, _ in self.membership.missing()]
        else:
            owed = owing(now.route, now.board, self._policy.micro_batches, updating=now.update is not None)
        return [worker for worker in dict.fromkeys(owed) if worker not in (*self.membership.route.trusted, REFEREE)]

    def _arm(self) -> None:
        """One timer at a time; one that was set before the last progress only sets the next."""
        if self._armed:
            return
        self._armed = True
        self._timers.append((self._pulse(), self._policy.deadline_s))

    def _pulse(self) -> tuple[int, ...]:
        """Changes whenever the run has moved on."""
        now = self._now
        waiting = len(self.membership.missing()) if now is None else -1
        return (self.membership.version, waiting) if now is None else (now.step, now.attempt, now.progress)

    # -- small things ------------------------------------------------------------------------------------------------

    @property
    def _step(self) -> _Step:
        assert self._now is not None, "no step is running"
        return self._now

    @property
    def _updating(self) -> set[int]:
        """The stages that take part in this step's update."""
        return set(self._step.route.active) - set(self._step.route.frozen)

    def _update_key(self, stage: int) -> ClaimKey:
        return ClaimKey(self._step.step, self._step.attempt, Direction.UPDATE, stage)

    def _is_current(self, key: ClaimKey) -> bool:
        now = self._now
        return now is not None and (key.step, key.attempt) == (now.step, now.attempt) and key.stage in now.route.stages

    def _inputs(self, key: ClaimKey) -> tuple[bytes, ...] | None:
        """What an honest header of `key` names as its inputs; not checked where the jump is left out."""
        now = self._step
        return expected_inputs(key, now.route, now.board.accepted) if now.route.jump else None

    def _tell_all(self, message: Message) -> list[Envelope]:
        workers = dict.fromkeys([*self.membership.route.workers, *(self._now.route.workers if self._now else ())])
        return [self._to(worker, message) for worker in (*workers, REFEREE)]

    def _to(self, recipient: str, message: Message) -> Envelope:
        return Envelope(self.name, recipient, message)

    def describe(self) -> str:
        """One line for a deadlock report."""
        now = self._now
        if now is None:
            return f"coordinator: v{self.membership.version}, waits for seats {self.membership.missing()}"
        return (
            f"coordinator: step {now.step} attempt {now.attempt}, {len(now.board.accepted)} keys accepted, "
            f"{len(now.examined - now.findings.keys())} at the referee, owed by {self._silent()}"
        )
