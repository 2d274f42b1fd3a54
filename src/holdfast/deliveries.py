"""Deliveries: an accepted tensor reaches whoever needs it, whatever its author, its receiver or the link between them does.

complaint 1 --> another holder sends it again          nothing is proven between two workers
complaint 2 --> through the coordinator, checked       what comes false is its sender's lie
complaint about that, or about a trusted sender        is its author's lie
nothing comes                                          sent again; who does not send to the coordinator misses its deadline
a state for a new holder does not come, or false       the same way, between two steps
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.blame import Blame
from holdfast.claim import Claim, ClaimKey, Direction, Role, StageState
from holdfast.deadline import absent, due
from holdfast.digest import state_digest, tensor_digest
from holdfast.evidence.notary import DEADLINE
from holdfast.membership import Membership
from holdfast.message import Accepted, Complaint, Envelope, Message, StateRefused, StateTransfer, Supply
from holdfast.stage import COORDINATOR, REFEREE, TRUSTED_PARTIES
from holdfast.step import Awaited, Policy, StepState


class Deliveries:
    """Called by the coordinator and the court for whatever concerns the way of a tensor; answers with what to send."""

    def __init__(self, policy: Policy, membership: Membership, blame: Blame) -> None:
        self._policy = policy
        self._membership = membership
        self._blame = blame
        self._notary = blame.notary
        self._substituted: set[tuple[int, int, str]] = set()

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
        named = complaint.sender if complaint.sender in self._membership.members else ""  # it may name anybody at all
        accused = now.complained.setdefault((key, sender), set())
        if named in accused:
            return []
        accused.add(named)
        if len(accused) > 1:  # nobody's delivery will do: it comes through here, or not at all
            return self._through_here(now, key, sender) if key in now.board.accepted else []
        if key not in now.disputes:
            involved = dict.fromkeys((named, sender))
            suspects = tuple(worker for worker in involved if worker and worker not in now.route.trusted)
            self._blame.alert(key, "delivery", suspects, sender)
        if complaint.evidence is not None and complaint.evidence.key == key:
            self._blame.confront(now, complaint.evidence, sender)
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
        ruling = [_to(consumer, Accepted(key, output))]
        if source is None:
            return ruling + self._through_here(now, key, consumer)
        return [*ruling, _to(source, Supply(key, (consumer,)))]

    def _through_here(self, now: StepState, key: ClaimKey, consumer: str) -> list[Envelope]:
        """Between two workers nothing can be proven: whoever signed `key` sends it to the coordinator, which hands it on."""
        output = now.board.accepted[key]
        signers = tuple(header.worker for header in now.board.headers(key) if header.output == output)
        return self._fetch(now, key, tuple(worker for worker in signers if worker != consumer), consumer)

    def _fetch(self, now: StepState, key: ClaimKey, sources: tuple[str, ...], consumer: str) -> list[Envelope]:
        if (key, consumer) in now.handed:
            return []  # it has got it from here, and nobody else owes it anything
        awaited = now.awaited.setdefault(key, Awaited(sources))
        awaited.sources = sources  # those of before may be lost
        awaited.consumers[consumer] = None
        return [_to(source, Supply(key, (COORDINATOR,))) for source in awaited.sources]

    def _unfounded(self, now: StepState, key: ClaimKey, sender: str) -> None:
        """It complains of what a trusted party delivered, which was checked before it left: the complaint is the lie."""
        if (key, sender) in now.unfounded or sender in now.route.trusted:
            return
        now.unfounded.add((key, sender))
        self._blame.alert(key, "complaint", (sender,), COORDINATOR)
        self._notary.unfounded(key, sender)
        self._membership.false_complaints[sender] += 1
        self._blame.convict(key, (sender,), "complaint")

    def withheld(self, now: StepState) -> list[Envelope]:
        """Nothing moves: whoever has claimed nothing made from an accepted tensor may never have got it; send it again."""
        envelopes = []
        for key in now.board.accepted:
            if key.direction in (Direction.FORWARD, Direction.BACKWARD):
                primary = now.route.primaries[key.stage]
                for consumer in self._without_answer(now, key):
                    involved = [worker for worker in (primary, consumer) if worker not in now.route.trusted]
                    self._blame.alert(key, "withheld", tuple(involved), DEADLINE)
                    envelopes += self.send_again(now, key, consumer, avoid=primary)
        return envelopes if now.route.jump else envelopes + self._not_shown(now)

    def _not_shown(self, now: StepState) -> list[Envelope]:
        """Without the jumping connection a shadow has its input from the primary alone: what it may not have been shown."""
        envelopes = []
        for key in list(now.board.keys()):
            said, shadow = now.board.header(key, Role.PRIMARY), now.route.shadows[key.stage]
            silent = now.board.header(key, Role.SHADOW) is None and key not in now.board.accepted
            if key.direction is Direction.FORWARD and silent and said is not None and shadow is not None:
                involved = [worker for worker in (said.worker, shadow) if worker not in now.route.trusted]
                self._blame.alert(key, "withheld", tuple(involved), DEADLINE)
                envelopes += self._fetch(now, key, (said.worker,), shadow)
        return envelopes

    def overdue(self, now: StepState, worker: str) -> None:
        """`worker` has missed the last deadline: put on record which claims it owed."""
        for key in due(now.route, now.board, self._policy.micro_batches, updating=now.update is not None):
            if worker in absent(now.route, now.board, key, self._policy.likeness):
                self._blame.alert(key, "withheld", (worker,), DEADLINE)

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
        """Keep a tensor that passes through here until its key is accepted; hand on at once what was asked for.

        Of what was not asked for, the first tensor of each sender counts.
        """
        key = claim.header.key
        if key in now.awaited and sender in now.awaited[key].sources:
            return self._answered(now, key, sender, claim)
        if sender != now.route.primaries[key.stage] or not now.route.relay or (key, sender) in now.carried:
            return []
        now.carried.add((key, sender))
        now.relayed.setdefault(key, (sender, claim))
        return self.forward_relayed(now, key) if key in now.board.accepted else []

    def pass_on(self, sender: str, state: StageState) -> list[Envelope]:
        """A sealed state on its way to seats that were sent another one, or none: handed on if it is the right one.

        Raises ProtocolError for a state that no run can have come to.
        """
        stage, membership = state.stage, self._membership
        workers = membership.awaiting(stage, sender)
        if not workers or state.version != membership.version:
            return []
        got, sealed = state_digest(state), membership.digests[stage]
        if got != sealed:
            membership.failed(stage, sender)
            self.substituted(StateRefused(stage, state.version, sender, got, sealed))
            return []
        membership.handed |= {(stage, worker) for worker in workers}
        route = membership.target()
        return [_to(worker, StateTransfer(state, route.role(stage, worker))) for worker in workers]

    def substituted(self, refused: StateRefused) -> None:
        """A trusted party was sent another state than the sealed one, by somebody who holds the stage."""
        key = ClaimKey(refused.version - 1, 0, Direction.UPDATE, refused.stage)
        sender, slot = refused.sender, (refused.stage, refused.version, refused.sender)
        if slot in self._substituted or sender in self._membership.route.trusted:
            return
        self._substituted.add(slot)
        self._blame.alert(key, "state", (sender,))
        self._notary.misdelivered(key, sender, refused.got, refused.sealed)
        self._blame.convict(key, (sender,), "state")

    def _answered(self, now: StepState, key: ClaimKey, sender: str, claim: Claim) -> list[Envelope]:
        """Who was asked by the coordinator itself has sent something; what is not the accepted tensor is its own lie.

        A claim that is not accepted yet was asked for by the word of its author: its header names what it must be and show.
        """
        got, wanted = tensor_digest(claim.tensor), now.board.accepted.get(key)
        if wanted is None:
            said = now.board.header(key, Role.PRIMARY)
            if said is None or said.worker != sender:
                return []  # it has been replaced meanwhile
            wanted = said.output
            if got == wanted:
                got, wanted = b"" if claim.origin is None else tensor_digest(claim.origin), b"".join(said.inputs)
        if got == wanted:
            consumers = now.awaited.pop(key).consumers
            now.handed |= {(key, consumer) for consumer in consumers}
            return [_to(consumer, claim) for consumer in consumers]
        if (key, sender) not in now.unfounded:
            now.unfounded.add((key, sender))
            self._blame.alert(key, "delivery", (sender,))
            self._notary.misdelivered(key, sender, got, wanted)
            self._blame.convict(key, (sender,), "delivery")
        return []

    def forward_relayed(self, now: StepState, key: ClaimKey) -> list[Envelope]:
        """Hand on what passed through here before it was accepted."""
        if key not in now.relayed:
            return []
        primary, claim = now.relayed.pop(key)  # who sent it; by now somebody else may be the primary
        consumers = now.route.consumers(key.direction, key.stage)
        got = tensor_digest(claim.tensor)
        if got == now.board.accepted[key]:
            return [_to(consumer, claim) for consumer in consumers]
        self._blame.alert(key, "delivery", (primary,))
        self._notary.misdelivered(key, primary, got, now.board.accepted[key])
        self._blame.convict(key, (primary,), "delivery")
        return [envelope for consumer in consumers for envelope in self.send_again(now, key, consumer, avoid=primary)]


def _to(recipient: str, message: Message) -> Envelope:
    return Envelope(COORDINATOR, recipient, message)
