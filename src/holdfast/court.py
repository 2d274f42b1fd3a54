"""The court rules on claims: it reads the headers on the board, settles what agrees, and tries what does not.

    header --> board --> two accounts agree ------------------------------------------> Accepted
                    |--> they differ --> remedy --> Investigate --> referee --> judge --> Accepted, the liar on record
                    |                          `--> Redo (the coordinator starts the step again)
                    `--> nobody else has one --------------------> referee --> judge --> Accepted

It works on one step at a time and keeps nothing but the record of proven lies, which is the membership's.
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.blame import Blame
from holdfast.claim import WHOLE_STEP, ClaimKey, Direction, Header, Role
from holdfast.deliveries import Deliveries
from holdfast.event import ClaimReplaced
from holdfast.evidence.notary import BOARD
from holdfast.membership import Membership
from holdfast.message import Accepted, Envelope, Examine, Finding, Measured, Message, Supply
from holdfast.recover.remedy import Answer, Dispute, Investigate, Redo
from holdfast.stage import COORDINATOR, REFEREE
from holdfast.step import Policy, StepState
from holdfast.verify.board import Posting
from holdfast.verify.chain import children, ingredients
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge, misstates
from holdfast.verify.tolerance import EQUAL, UNLIKE, Distance, distance_of_norms
from holdfast.verify.verdict import Accepted as Agreed
from holdfast.verify.verdict import Rejected, Unverifiable


class Court:
    """Called by the coordinator for whatever concerns a claim of the running step `now`; answers with what to send."""

    def __init__(self, run: str, membership: Membership, policy: Policy, blame: Blame) -> None:
        self.deliveries = Deliveries(policy, membership, blame)
        self._run = run
        self._membership = membership
        self._policy = policy
        self._blame = blame
        self._notary = blame.notary

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
            self._blame.confront(now, *now.shown.pop((key, sender), (None, "")))
        if posting is Posting.EQUIVOCATION and (key, sender) not in now.equivocators:
            self._blame.alert(key, "equivocation", (sender,))
            said = now.board.header(key, role) if role is Role.COMPARER else now.board.signed(key, sender)
            self._blame.equivocated(now, said or header, header, BOARD)
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
        for consumer in consumers:
            if (key, consumer) in now.complained:  # before the ruling
                envelopes += self.deliveries.send_again(now, key, consumer, avoid=now.route.primaries[key.stage])
        if header.worker != now.route.primaries[key.stage]:
            self._blame.events.append(ClaimReplaced(key, header.worker))
            return [*envelopes, self._to(header.worker, Supply(key, consumers))]
        return envelopes + self.deliveries.forward_relayed(now, key)

    # -- disputes ----------------------------------------------------------------------------------------------------

    def _dispute(self, now: StepState, dispute: Dispute) -> list[Envelope]:
        key = dispute.key
        now.disputes[key] = dispute
        by = BOARD if dispute.reason == "parent" else now.route.shadows[key.stage] or BOARD
        self._blame.alert(key, dispute.reason, dispute.suspects, by, now.board.accounts(key), now.inputs(key))
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
        now.examined[key] = None
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
        if likeness is None or not any(likeness.unlike(header.worker, REFEREE) for header in headers):
            return ()
        found = []
        for header in headers:
            most = EQUAL
            if likeness.unlike(header.worker, REFEREE):
                most = likeness.bound(key.stage, key.direction, header.worker, REFEREE).guilty
            found.append(Measured(header.worker, header.output, header.norms, most.overall, most.worst_row))
        return tuple(found)

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
            self._blame.alert(key, reason, judgement.culprits, REFEREE)
        if judgement.culprits or dispute is not None:
            self._notary.judged(finding, now.inputs(key), now.board.accounts(key), reason, judgement.culprits)
            self._blame.convict(key, judgement.culprits, reason)
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
            self._blame.convict(finding.key, (said.worker,), "distance")

    def _own_header(self, now: StepState, finding: Finding) -> Header:
        """No holder gave the honest account: the referee's own stands, and it will supply the tensor or the state."""
        key = finding.key
        if key.direction is Direction.UPDATE:
            self._membership.vouch(key.stage, REFEREE)
        epoch = now.route.epoch
        return Header(self._run, key, now.version, epoch, REFEREE, Role.PRIMARY, (), finding.output, finding.norms)

    # -- losses and silence ------------------------------------------------------------------------------------------

    def look_again(self, now: StepState) -> list[Envelope]:
        """The route was edited: the referee is told who has the tensors now, and what has lost a holder may be decided."""
        envelopes = [envelope for key in now.at_the_referee for envelope in self.investigate(now, key)]
        for key in list(now.board.keys()):
            if key not in now.board.accepted:
                envelopes += self.decide(now, key)
        return envelopes

    def not_examined(self, now: StepState) -> list[Envelope]:
        """Nothing moves: the referee is asked again, and about claims that nobody has weighed."""
        return [envelope for key in [*now.at_the_referee, *self._not_weighed(now)] for envelope in self.investigate(now, key)]

    def _not_weighed(self, now: StepState) -> list[ClaimKey]:
        """Claims whose primary has spoken and whose shadow or comparer may never have got what it needs to weigh them."""
        waiting = [key for key in list(now.board.keys()) if key not in now.board.accepted and key not in now.examined]
        return [
            key
            for key in waiting
            if now.board.header(key, Role.PRIMARY) is not None
            and now.is_unlike(key.stage)
            and all(parent in now.board.accepted for parent in ingredients(key, now.route, self._policy.micro_batches))
        ]

    # -- quarantine --------------------------------------------------------------------------------------------------

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
                self._blame.alert(key, "output", (header.worker,))
                self._notary.quarantined(now.board.signed(key, header.worker) or header, now.board.accepted[key])
                self._blame.convict(key, (header.worker,), "output")
            elif header.inputs != now.inputs(key):
                self._blame.alert(key, "parent", (header.worker,))

    def _to(self, recipient: str, message: Message) -> Envelope:
        return Envelope(COORDINATOR, recipient, message)
