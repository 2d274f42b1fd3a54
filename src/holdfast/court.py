"""The court rules on claims: it reads the headers on the board, settles what agrees, and tries what does not.

    header --> board --> two accounts agree ------------------------------------------> Accepted
                    |--> they differ --> remedy --> Investigate --> referee --> judge --> Accepted, the liar on record
                    |                          `--> Redo (the coordinator starts the step again)
                    `--> nobody else has one --------------------> referee --> judge --> Accepted

It works on one step at a time and keeps nothing but the record of proven lies, which is the membership's.
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header, Role
from holdfast.deadline import absent, due
from holdfast.digest import tensor_digest
from holdfast.event import Alert, ClaimReplaced, Event, Ruling
from holdfast.evidence.envelope import conflict
from holdfast.evidence.notary import BOARD, DEADLINE, Notary
from holdfast.membership import Membership
from holdfast.message import Accepted, Complaint, Envelope, Examine, Finding, Measured, Message, StateRefused, Supply
from holdfast.recover.remedy import Answer, Dispute, Investigate, Redo
from holdfast.stage import COORDINATOR, REFEREE, TRUSTED_PARTIES
from holdfast.step import Awaited, Policy, StepState
from holdfast.verify.board import Posting
from holdfast.verify.chain import children, ingredients
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge, misstates
from holdfast.verify.tolerance import EQUAL, UNLIKE, Distance, distance_of_norms
from holdfast.verify.verdict import Accepted as Agreed
from holdfast.verify.verdict import Rejected, Unverifiable


class Court:
    """Called by the coordinator for whatever concerns a claim of the running step `now`; answers with what to send."""

    def __init__(
        self, run: str, membership: Membership, policy: Policy, events: list[Event], notary: Notary | None = None
    ) -> None:
        self._notary = notary or Notary()
        self._run = run
        self._membership = membership
        self._policy = policy
        self._events = events
        self._substituted: set[tuple[int, int, str]] = set()

    # -- the board ---------------------------------------------------------------------------------------------------

    def post(self, now: StepState, sender: str, header: Header) -> list[Envelope]:
        """Take a header from the holder that it names; anything else is ignored."""
        key = header.key
        role = now.route.role(key.stage, sender)
        if header.role is Role.COMPARER:
            role = Role.COMPARER if sender == now.route.comparer(key.direction, key.stage) else None
        known = header.worker == sender and header.run == self._run and header.version == now.version
        if role is None or not known:
            return []
        if not self._notary.vouches(header):
            return []
        here = header if role is header.role else replace(header, role=role)  # it has just become primary
        posting = now.board.post(here, signed=header)
        if posting is Posting.NEW:
            self._confront(now, *now.shown.pop((key, sender), (None, "")))
        if posting is Posting.EQUIVOCATION and (key, sender) not in now.equivocators:
            self._alert(key, "equivocation", (sender,))
            said = now.board.header(key, role) if role is Role.COMPARER else now.board.signed(key, sender)
            self._equivocated(now, said or header, header, BOARD)
        elif sender in self._membership.quarantined:
            now.unheard.add(key)
        envelopes = self.decide(now, key)
        self._note_quarantined(now, key)
        return envelopes

    def decide(self, now: StepState, key: ClaimKey) -> list[Envelope]:
        """Rule on `key` if enough is known."""
        primary, shadow = now.board.header(key, Role.PRIMARY), now.board.header(key, Role.SHADOW)
        if key in now.findings:
            return self.judge(now, key)
        if key in now.board.accepted or key in now.examined or (primary is None and shadow is None):
            return []
        if not self._policy.checked or now.route.is_trusted(key.stage):
            return self._accept(now, primary) if primary is not None else []
        believed = self._believed(now, key, shadow)
        if believed is not None:
            return self._accept(now, believed)
        if primary is None or (shadow is None and now.route.shadows[key.stage] is not None):
            return []
        if any(parent not in now.board.accepted for parent in ingredients(key, now.route, self._policy.micro_batches)):
            return []  # its holders believed themselves before the board had ruled; it is decided when that has
        if shadow is not None and now.is_unlike(key.stage):
            return self._weigh(now, primary, shadow)
        match compare(primary, shadow, now.inputs(key)):
            case Agreed():
                return self._accept(now, primary)
            case Unverifiable():
                return self.investigate(now, key) if self._policy.shadowed else self._accept(now, primary)
            case Rejected(reason, suspects):
                return self._dispute(now, self._suspicion(now, key, reason, suspects))

    def _weigh(self, now: StepState, primary: Header, shadow: Header) -> list[Envelope]:
        """Two accounts whose bytes may differ: how far apart they are decides, and it is the primary's that stands."""
        key = primary.key
        match compare(primary, replace(shadow, output=primary.output, norms=primary.norms), now.inputs(key)):
            case Rejected("parent", suspects):
                return self._dispute(now, self._suspicion(now, key, "parent", suspects))
        apart = self._apart(now, primary, shadow)
        if apart is None:
            waits = key.micro_batch != WHOLE_STEP and now.route.comparer(key.direction, key.stage) is not None
            return [] if waits else self.investigate(now, key)
        assert self._policy.likeness is not None
        if apart.fits(self._policy.likeness.bound(key.stage, key.direction, primary.worker, shadow.worker).alarm):
            return self._accept(now, primary)
        comparer = now.board.header(key, Role.COMPARER)
        involved = dict.fromkeys([primary.worker, shadow.worker, *([] if comparer is None else [comparer.worker])])
        return self._dispute(now, self._suspicion(now, key, "distance", tuple(involved)))

    def _apart(self, now: StepState, primary: Header, shadow: Header) -> Distance | None:
        """The distance of two accounts, as far as the board can tell; None where it must still be measured."""
        key = primary.key
        if primary.output == shadow.output and key.direction is not Direction.GRADIENT:
            return EQUAL
        if key.direction is Direction.GRADIENT:
            return distance_of_norms(primary.norms, shadow.norms, self._policy.dtype)
        if key.direction is Direction.UPDATE:
            return UNLIKE  # the shadow has weighed the primary's new state, and did not take it over
        measured = now.board.header(key, Role.COMPARER)
        if measured is None:
            return None
        about = (measured.output, measured.inputs) == (primary.output, (shadow.output,)) and len(measured.norms) == 2
        return Distance(*measured.norms) if about else UNLIKE

    def _suspicion(self, now: StepState, key: ClaimKey, reason: str, suspects: tuple[str, ...]) -> Dispute:
        return Dispute(key, reason, tuple(worker for worker in suspects if worker not in now.route.trusted), now.route)

    def _accept(self, now: StepState, header: Header) -> list[Envelope]:
        """`header` stands: tell whoever needs the tensor, and rule on what has waited for it."""
        key = header.key
        now.board.accept(key, header.output)
        if key.direction is Direction.GRADIENT:
            now.accounts[key.stage] = header.norms
        if key.direction in (Direction.GRADIENT, Direction.UPDATE) or not self._policy.checked:
            return []
        envelopes = self._hand_on(now, header)
        for child in children(key, now.route):
            envelopes += self.decide(now, child)
        return envelopes

    def _hand_on(self, now: StepState, header: Header) -> list[Envelope]:
        """Let the consumers use the tensor; have it supplied where the primary's own will not do."""
        key = header.key
        consumers = now.route.consumers(key.direction, key.stage)
        envelopes = [self._to(consumer, Accepted(key, header.output)) for consumer in consumers]
        for complained, consumer in now.complained.keys() & {(key, consumer) for consumer in consumers}:  # before the ruling
            envelopes += self.send_again(now, complained, consumer, avoid=now.route.primaries[key.stage])
        if header.worker != now.route.primaries[key.stage]:
            self._events.append(ClaimReplaced(key, header.worker))
            return [*envelopes, self._to(header.worker, Supply(key, consumers))]
        return envelopes + self._forward_relayed(now, key)

    # -- disputes ----------------------------------------------------------------------------------------------------

    def _dispute(self, now: StepState, dispute: Dispute) -> list[Envelope]:
        key = dispute.key
        now.disputes[key] = dispute
        by = BOARD if dispute.reason == "parent" else now.route.shadows[key.stage] or BOARD
        self._alert(key, dispute.reason, dispute.suspects, by, now.board.accounts(key), now.inputs(key))
        answer = self._answer(dispute)
        if isinstance(answer, Investigate) or answer.investigate:
            return self.investigate(now, dispute.key)
        now.redo = (answer, f"{dispute.reason} of the {dispute.key}")
        return []

    def _answer(self, dispute: Dispute) -> Answer:
        """The remedy's; but what a quarantined worker has a hand in costs no step: the innocent holder's value counts."""
        if self._membership.quarantined.intersection(dispute.suspects):
            return Investigate()
        return self._policy.remedy.answer(dispute)

    def investigate(self, now: StepState, key: ClaimKey) -> list[Envelope]:
        """Give the case to the referee."""
        now.examined.add(key)
        return [self._to(REFEREE, self.case(now, key))]

    def case(self, now: StepState, key: ClaimKey, *, closed: bool = False) -> Examine:
        """All that it takes to compute `key` again: digests of state and inputs, who has them; of a `closed` step the route."""
        needed = ingredients(key, now.route, self._policy.micro_batches)
        neighbours = [i for i in (now.route.before(key.stage), now.route.after(key.stage)) if i is not None]
        holders = dict.fromkeys(holder for i in (key.stage, *neighbours) for holder in now.route.holders(i))
        return Examine(
            key,
            now.version,
            now.digests[key.stage],
            tuple((parent, now.board.accepted[parent]) for parent in needed),
            tuple(holders),
            now.update.clip_scale if now.update else 1.0,
            now.update.learning_rate if now.update else 0.0,
            now.route if closed else None,
            self._to_measure(now, key),
        )

    def _to_measure(self, now: StepState, key: ClaimKey) -> tuple[Measured, ...]:
        """The accounts that the referee must hold against its own by distance: all, as soon as one is of another class."""
        likeness, headers = self._policy.likeness, now.board.headers(key)
        if likeness is None or not any(
            likeness.unlike(header.worker, other) for header in headers for other in self._peers(headers)
        ):
            return ()
        found = []
        for header in headers:
            most = EQUAL
            if likeness.unlike(header.worker, REFEREE):
                most = likeness.bound(key.stage, key.direction, header.worker, REFEREE).guilty
            found.append(Measured(header.worker, header.output, header.norms, most.overall, most.worst_row))
        return tuple(found)

    @staticmethod
    def _peers(headers: tuple[Header, ...]) -> tuple[str, ...]:
        return (REFEREE, *(header.worker for header in headers))

    def judge(self, now: StepState, key: ClaimKey) -> list[Envelope]:
        """The referee has computed `key`: name who differs, and go on with who does not."""
        headers, finding = now.board.headers(key), now.findings[key]
        if not headers or key in now.board.accepted:
            return []
        dispute = now.disputes.get(key)
        answer = self._answer(replace(dispute, route=now.route)) if dispute is not None else Investigate()
        judgement = judge(headers, finding, now.inputs(key))
        reason = dispute.reason if dispute is not None else "output"
        if judgement.culprits and dispute is None:
            self._alert(key, reason, judgement.culprits, REFEREE)
        if judgement.culprits or dispute is not None:
            self._notary.judged(finding, now.inputs(key), now.board.accounts(key), reason, judgement.culprits)
            self.convict(key, judgement.culprits, reason)
        if not judgement.culprits:
            self._misled(now, finding)
        if isinstance(answer, Redo):
            now.redo = (answer, f"{reason} of the {key}")
            return []
        return self._accept(now, judgement.innocent or self._own_header(now, finding))

    def _misled(self, now: StepState, finding: Finding) -> None:
        """Who said that two honest accounts are far apart, though they are not, has lied."""
        said = now.board.header(finding.key, Role.COMPARER)
        if said is not None and misstates(said, finding):
            self._notary.misstated(said, finding)
            self.convict(finding.key, (said.worker,), "distance")

    def _own_header(self, now: StepState, finding: Finding) -> Header:
        """No holder gave the honest account: the referee's own stands, and it will supply the tensor or the state."""
        key = finding.key
        if key.direction is Direction.UPDATE:
            self._membership.vouch(key.stage, REFEREE)
        epoch = now.route.epoch
        return Header(self._run, key, now.version, epoch, REFEREE, Role.PRIMARY, (), finding.output, finding.norms)

    # -- deliveries --------------------------------------------------------------------------------------------------

    def complain(self, now: StepState, sender: str, complaint: Complaint) -> list[Envelope]:
        """A delivery did not match the board: have it sent by somebody else.

        Between two workers that proves nothing, unless the header that came along was signed beside another one.
        """
        key = complaint.key
        if sender not in now.route.consumers(key.direction, key.stage):
            return []
        if complaint.sender in TRUSTED_PARTIES or complaint.sender in now.route.trusted:
            self._unfounded(now, key, sender)
            return []
        accused = now.complained.setdefault((key, sender), set())
        if complaint.sender in accused:
            return []
        accused.add(complaint.sender)
        if len(accused) > 1:  # nobody's delivery will do: it comes through here, or not at all
            return self._through_here(now, key, sender) if key in now.board.accepted else []
        if key not in now.disputes:
            involved = dict.fromkeys((complaint.sender, sender))
            suspects = tuple(worker for worker in involved if worker not in now.route.trusted)
            self._alert(key, "delivery", suspects, sender)
        if complaint.evidence is not None and complaint.evidence.key == key:
            self._confront(now, complaint.evidence, sender)
        return self.send_again(now, key, sender, complaint.sender) if key in now.board.accepted else []

    def send_again(self, now: StepState, key: ClaimKey, consumer: str, avoid: str) -> list[Envelope]:
        """Have `key` sent to `consumer` by a holder whose account stood, rather not by `avoid`."""
        output = now.board.accepted[key]
        honest = [header.worker for header in now.board.headers(key) if header.output == output]
        if key in now.findings:
            honest.append(REFEREE)
        source = next((worker for worker in honest if worker != avoid), None)
        if source is None and avoid in honest and avoid in now.route.trusted:
            source = avoid
        ruling = [self._to(consumer, Accepted(key, output))]
        if source is None:
            return ruling + self._through_here(now, key, consumer)
        return [*ruling, self._to(source, Supply(key, (consumer,)))]

    def _through_here(self, now: StepState, key: ClaimKey, consumer: str) -> list[Envelope]:
        """Between two workers nothing can be proven: whoever signed `key` sends it to the coordinator, which hands it on."""
        output = now.board.accepted[key]
        signers = tuple(header.worker for header in now.board.headers(key) if header.output == output)
        sources = tuple(worker for worker in signers if worker != consumer)
        awaited = now.awaited.setdefault(key, Awaited(sources))
        awaited.consumers[consumer] = None
        return [self._to(source, Supply(key, (COORDINATOR,))) for source in awaited.sources]

    def _unfounded(self, now: StepState, key: ClaimKey, sender: str) -> None:
        """It complains of what a trusted party delivered, which was checked before it left: the complaint is the lie."""
        if (key, sender) in now.unfounded or sender in now.route.trusted:
            return
        now.unfounded.add((key, sender))
        self._alert(key, "complaint", (sender,), COORDINATOR)
        self._notary.unfounded(key, sender)
        self._membership.false_complaints[sender] += 1
        self.convict(key, (sender,), "complaint")

    def withheld(self, now: StepState) -> list[Envelope]:
        """Nothing moves: whoever has claimed nothing made from an accepted tensor may never have got it; send it again."""
        envelopes = []
        for key in now.board.accepted:
            if key.direction in (Direction.FORWARD, Direction.BACKWARD):
                primary = now.route.primaries[key.stage]
                for consumer in self._without_answer(now, key):
                    involved = [worker for worker in (primary, consumer) if worker not in now.route.trusted]
                    self._alert(key, "withheld", tuple(involved), DEADLINE)
                    envelopes += self.send_again(now, key, consumer, avoid=primary)
        for key in [*now.at_the_referee, *self._not_weighed(now)]:
            envelopes += self.investigate(now, key)
        return envelopes

    def _not_weighed(self, now: StepState) -> list[ClaimKey]:
        """Claims whose primary has spoken and whose shadow or comparer may never have got what it needs to weigh them."""
        waiting = [key for key in list(now.board.keys()) if key not in now.board.accepted.keys() | now.examined]
        return [
            key
            for key in waiting
            if now.board.header(key, Role.PRIMARY) is not None
            and now.is_unlike(key.stage)
            and all(parent in now.board.accepted for parent in ingredients(key, now.route, self._policy.micro_batches))
        ]

    def overdue(self, now: StepState, worker: str) -> None:
        """`worker` has missed the last deadline: put on record which claims it owed."""
        for key in due(now.route, now.board, self._policy.micro_batches, updating=now.update is not None):
            if worker in absent(now.route, now.board, key, self._policy.likeness):
                self._alert(key, "withheld", (worker,), DEADLINE)

    def _without_answer(self, now: StepState, key: ClaimKey) -> list[str]:
        """Consumers of an accepted tensor that have not claimed anything made from it."""
        forward = key.direction is Direction.FORWARD
        neighbour = now.route.after(key.stage) if forward else now.route.before(key.stage)
        if neighbour is None:
            return []
        if neighbour == now.route.stages[-1]:  # the ends of the pipeline claim nothing; they have a loss and a gradient
            return [] if key.micro_batch in now.losses else [now.route.primaries[neighbour]]
        if neighbour == 0:
            gradient = ClaimKey(now.step, now.attempt, Direction.GRADIENT, 0)
            return [] if now.board.headers(gradient) else [now.route.primaries[0]]
        posted = {header.worker for header in now.board.headers(replace(key, stage=neighbour))}
        return [worker for worker in now.route.consumers(key.direction, key.stage) if worker not in posted]

    def relay(self, now: StepState, sender: str, claim: Claim) -> list[Envelope]:
        """Keep a tensor that passes through here until its key is accepted; hand on at once what was asked for."""
        key = claim.header.key
        if key in now.awaited and sender in now.awaited[key].sources:
            return self._answered(now, key, sender, claim)
        if sender != now.route.primaries[key.stage] or not now.route.relay:
            return []
        now.relayed.setdefault(key, (sender, claim))
        return self._forward_relayed(now, key) if key in now.board.accepted else []

    def substituted(self, refused: StateRefused) -> None:
        """A trusted party was sent another state than the sealed one, by somebody who holds the stage."""
        key = ClaimKey(refused.version - 1, 0, Direction.UPDATE, refused.stage)
        sender, slot = refused.sender, (refused.stage, refused.version, refused.sender)
        if slot in self._substituted or sender in self._membership.route.trusted:
            return
        self._substituted.add(slot)
        self._alert(key, "state", (sender,))
        self._notary.misdelivered(key, sender, refused.got, refused.sealed)
        self.convict(key, (sender,), "state")

    def _answered(self, now: StepState, key: ClaimKey, sender: str, claim: Claim) -> list[Envelope]:
        """Who was asked by the coordinator itself has sent something; what is not the accepted tensor is its own lie."""
        got = tensor_digest(claim.tensor)
        if got == now.board.accepted[key]:
            return [self._to(consumer, claim) for consumer in now.awaited.pop(key).consumers]
        if (key, sender) not in now.unfounded:
            now.unfounded.add((key, sender))
            self._alert(key, "delivery", (sender,))
            self._notary.misdelivered(key, sender, got, now.board.accepted[key])
            self.convict(key, (sender,), "delivery")
        return []

    def _forward_relayed(self, now: StepState, key: ClaimKey) -> list[Envelope]:
        if key not in now.relayed:
            return []
        primary, claim = now.relayed.pop(key)  # who sent it; by now somebody else may be the primary
        consumers = now.route.consumers(key.direction, key.stage)
        got = tensor_digest(claim.tensor)
        if got == now.board.accepted[key]:
            return [self._to(consumer, claim) for consumer in consumers]
        self._alert(key, "delivery", (primary,))
        self._notary.misdelivered(key, primary, got, now.board.accepted[key])
        self.convict(key, (primary,), "delivery")
        return [envelope for consumer in consumers for envelope in self.send_again(now, key, consumer, avoid=primary)]

    # -- blame -------------------------------------------------------------------------------------------------------

    def _confront(self, now: StepState, shown: Header | None, by: str) -> None:
        """Hold a header that `by` was sent against what its signer told the board, now or as soon as it does."""
        if shown is None or not self._notary.proves(shown):
            return
        posted = now.board.signed(shown.key, shown.worker)
        if posted is None:
            now.shown[shown.key, shown.worker] = shown, by
        elif conflict(posted, shown):
            self._equivocated(now, posted, shown, by)

    def _equivocated(self, now: StepState, first: Header, second: Header, by: str) -> None:
        """Two headers of one worker for one claim say different things: it is convicted, once a claim, without a referee."""
        slot = (first.key, first.worker)
        if slot not in now.equivocators:
            now.equivocators.add(slot)
            self._notary.equivocated(first, second, by)
            self.convict(first.key, (first.worker,), "equivocation")

    def _alert(
        self,
        key: ClaimKey,
        reason: str,
        suspects: tuple[str, ...],
        by: str = BOARD,
        accounts: tuple[Header, ...] = (),
        inputs: tuple[bytes, ...] | None = None,
    ) -> None:
        self._notary.accuse(key, reason, suspects, by, accounts, inputs)
        self._events.append(Alert(key, reason, suspects))

    def convict(self, key: ClaimKey, culprits: tuple[str, ...], reason: str) -> None:
        """`culprits` lied about `key`: once each, on the record that bans follow."""
        self._events.append(Ruling(key, culprits, key.stage, reason))
        for worker in culprits:
            self._membership.lies[worker] += 1
            if self._policy.ban == "quarantine":
                self._membership.quarantined.add(worker)

    def _believed(self, now: StepState, key: ClaimKey, shadow: Header | None) -> Header | None:
        """A trusted shadow's word, where the primary is quarantined; elsewhere two accounts must agree."""
        trusted = now.route.shadows[key.stage] in now.route.trusted and key.micro_batch != WHOLE_STEP
        return shadow if trusted and now.route.primaries[key.stage] in self._membership.quarantined else None

    def _note_quarantined(self, now: StepState, key: ClaimKey) -> None:
        """The account of a quarantined holder that nobody waited for: where it differs, that is on record."""
        if key not in now.board.accepted or key not in now.unheard or key in now.findings:
            return
        now.unheard.discard(key)
        for header in now.board.headers(key):
            if header.worker not in self._membership.quarantined:
                continue
            if header.output != now.board.accepted[key]:
                self._alert(key, "output", (header.worker,))
                self._notary.quarantined(now.board.signed(key, header.worker) or header, now.board.accepted[key])
                self.convict(key, (header.worker,), "output")
            elif header.inputs != now.inputs(key):
                self._alert(key, "parent", (header.worker,))

    def _to(self, recipient: str, message: Message) -> Envelope:
        return Envelope(COORDINATOR, recipient, message)
