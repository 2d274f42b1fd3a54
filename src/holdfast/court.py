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
from holdfast.message import Accepted, Complaint, Envelope, Examine, Finding, Message, Supply
from holdfast.recover.remedy import Answer, Dispute, Investigate, Redo
from holdfast.stage import COORDINATOR, REFEREE
from holdfast.step import Policy, StepState
from holdfast.verify.board import Posting
from holdfast.verify.chain import children, ingredients
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge
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

    # -- the board ---------------------------------------------------------------------------------------------------

    def post(self, now: StepState, sender: str, header: Header) -> list[Envelope]:
        """Take a header from the holder that it names; anything else is ignored."""
        key = header.key
        role = now.route.role(key.stage, sender)
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
            self._equivocated(now, now.board.signed(key, sender) or header, header, BOARD)
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
        match compare(primary, shadow, now.inputs(key)):
            case Agreed():
                return self._accept(now, primary)
            case Unverifiable():
                return self.investigate(now, key)
            case Rejected(reason, suspects):
                untrusted = tuple(worker for worker in suspects if worker not in now.route.trusted)
                return self._dispute(now, Dispute(key, reason, untrusted, now.route))

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
        for complained, consumer in now.complained & {(key, consumer) for consumer in consumers}:  # before the ruling
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
        """Give the case to the referee, with the digests of everything that it needs."""
        now.examined.add(key)
        needed = ingredients(key, now.route, self._policy.micro_batches)
        neighbours = [i for i in (now.route.before(key.stage), now.route.after(key.stage)) if i is not None]
        holders = dict.fromkeys(holder for i in (key.stage, *neighbours) for holder in now.route.holders(i))
        case = Examine(
            key,
            now.version,
            self._membership.digests[key.stage],
            tuple((parent, now.board.accepted[parent]) for parent in needed),
            tuple(holders),
            now.update.clip_scale if now.update else 1.0,
            now.update.learning_rate if now.update else 0.0,
        )
        return [self._to(REFEREE, case)]

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
            self._convict(key, judgement.culprits, reason)
        if isinstance(answer, Redo):
            now.redo = (answer, f"{reason} of the {key}")
            return []
        return self._accept(now, judgement.innocent or self._own_header(now, finding))

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
        if sender not in now.route.consumers(key.direction, key.stage) or (key, sender) in now.complained:
            return []
        now.complained.add((key, sender))
        if key not in now.disputes:
            involved = dict.fromkeys((complaint.sender, sender))
            members = self._membership.members - set(now.route.trusted)
            suspects = tuple(worker for worker in involved if worker in members)  # a complaint may name anybody at all
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
        source = next((worker for worker in honest if worker != avoid), honest[0] if honest else None)
        ruling = [self._to(consumer, Accepted(key, output))]
        return ruling if source is None else [*ruling, self._to(source, Supply(key, (consumer,)))]

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
        for key in now.at_the_referee:
            envelopes += self.investigate(now, key)
        return envelopes

    def overdue(self, now: StepState, worker: str) -> None:
        """`worker` has missed the last deadline: put on record which claims it owed."""
        for key in due(now.route, now.board, self._policy.micro_batches, updating=now.update is not None):
            if worker in absent(now.route, now.board, key):
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
        """Keep a tensor that passes through here until its key is accepted; the first one of each sender counts."""
        key = claim.header.key
        if sender != now.route.primaries[key.stage] or not now.route.relay or (key, sender) in now.carried:
            return []
        now.carried.add((key, sender))
        now.relayed.setdefault(key, (sender, claim))
        return self._forward_relayed(now, key) if key in now.board.accepted else []

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
        self._convict(key, (primary,), "delivery")
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
            self._convict(first.key, (first.worker,), "equivocation")

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

    def _convict(self, key: ClaimKey, culprits: tuple[str, ...], reason: str) -> None:
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
                self._convict(key, (header.worker,), "output")
            elif header.inputs != now.inputs(key):
                self._alert(key, "parent", (header.worker,))

    def _to(self, recipient: str, message: Message) -> Envelope:
        return Envelope(COORDINATOR, recipient, message)
