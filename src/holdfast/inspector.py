"""The inspector has drawn claims and whole steps computed again after they were sealed, and traces a lie back to its beginning.

    sealed --> draw --> Examine --> checker --> Finding --> as accepted: nothing
                                      |             `-----> otherwise: convict --> replay what the culprits did in the window
                                      `--> Lacking, twice: who signed must open; refusing is guilt           |
                                                                       Rewind to before the earliest lie <---+

It works beside the running steps; what it has not finished keeps a step from leaving the window (`holds_up`). The probabilities
are in `holdfast.verify.spotcheck`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from holdfast.blame import Blame
from holdfast.claim import WHOLE_STEP, ClaimKey, Direction
from holdfast.court import Court
from holdfast.event import Banned, SpotChecked
from holdfast.membership import Membership
from holdfast.message import Envelope, Finding, Flag, Lacking
from holdfast.stage import CHECKER, COORDINATOR
from holdfast.step import Policy, StepState
from holdfast.verify.recompute import same_norms
from holdfast.verify.referee import judge
from holdfast.verify.spotcheck import escape

PATIENCE = 2
"""How often everything is asked for, within one deadline, before who has not opened it is guilty."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """The run must go back to `version`, without `culprits`; `reason` is for people."""

    version: int
    culprits: tuple[str, ...]
    reason: str


class Inspector:
    """Called by the coordinator: a step is sealed, the checker speaks, a timer rings. Keeps a window of steps."""

    def __init__(self, policy: Policy, membership: Membership, court: Court, blame: Blame) -> None:
        self.rewind: Rewind | None = None
        self.timers: list[tuple[object, float]] = []
        self._policy = policy
        self._terms = policy.inspection
        self._membership = membership
        self._court = court
        self._blame = blame
        self._events = blame.events
        self._notary = blame.notary
        self._history: dict[int, StepState] = {}
        self._open: dict[ClaimKey, int] = {}
        self._refused: set[ClaimKey] = set()
        self._lies: Counter[tuple[int, int]] = Counter()
        self._flagged: set[tuple[int, int, int]] = set()
        self._spent: Counter[str] = Counter()
        self._culprits: dict[str, None] = {}
        self._earliest: int | None = None

    # -- what the coordinator asks -----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether everything drawn has been answered, and nothing is wrong."""
        return not self._open and self._earliest is None

    def holds_up(self, step: int) -> bool:
        """Whether `step` may not begin yet: a lie is being traced, or its seal would free what is still to be checked."""
        return self._earliest is not None or any(key.step <= step - self._terms.window for key in self._open)

    def digests(self, version: int) -> dict[int, bytes] | None:
        """The sealed digests of all stages at a version in the window, and who held them: see `holders`."""
        now = self._history.get(version)
        return None if now is None else dict(now.digests)

    def holders(self, version: int, stage: int) -> tuple[str, ...]:
        """Who held `stage` at a version in the window."""
        return self._history[version].route.holders(stage)

    # -- draws -------------------------------------------------------------------------------------------------------

    def sealed(self, now: StepState) -> list[Envelope]:
        """`now` stands: keep it, and order what the draw says."""
        sampling = self._terms.sampling
        if not sampling.active:
            return []
        self._history[now.step] = now
        needed = {key.step for key in self._open}
        oldest = now.step - self._terms.window
        self._history = {step: kept for step, kept in self._history.items() if step > oldest or step in needed}
        drawn: list[ClaimKey] = []
        for stage in self._checkable(now):
            moment = (now.step, now.attempt, stage)
            if sampling.draws_step(*moment, rate=1.0 if moment in self._flagged else None):
                drawn += self._claims(now, stage)
            else:
                drawn += [key for key in self._claims(now, stage) if key.micro_batch >= 0 and sampling.draws_claim(key)]
        self._flagged.clear()
        return self._order(now, drawn)

    def flag(self, now: StepState, sender: str, flag: Flag) -> None:
        """A receiver found a tensor odd: its author's step will be checked, as long as the receiver does not cry too often."""
        key = flag.key
        moment = (key.step, key.attempt, key.stage)
        if sender not in now.route.consumers(key.direction, key.stage) or moment in self._flagged:
            return
        if self._spent[sender] < self._terms.flag_budget * (now.step + 1):
            self._spent[sender] += 1
            self._flagged.add(moment)

    def _checkable(self, now: StepState) -> list[int]:
        return [stage for stage in now.route.active if not now.route.is_trusted(stage)]

    def _claims(self, now: StepState, stage: int) -> list[ClaimKey]:
        """All that was claimed about the stage in the step, and that no referee has computed since."""
        wire = (Direction.FORWARD, Direction.BACKWARD)
        keys = [ClaimKey(now.step, now.attempt, d, stage, m) for d in wire for m in range(now.micro_batches)]
        if stage in now.updating:
            keys += [ClaimKey(now.step, now.attempt, d, stage, WHOLE_STEP) for d in (Direction.GRADIENT, Direction.UPDATE)]
        return [key for key in keys if key not in now.findings and key not in self._open and key not in self._refused]

    def _order(self, now: StepState, keys: list[ClaimKey]) -> list[Envelope]:
        self._open |= dict.fromkeys(keys, 0)
        self._arm(keys)
        return [Envelope(COORDINATOR, CHECKER, self._court.case(now, key, closed=True)) for key in keys]

    # -- answers -----------------------------------------------------------------------------------------------------

    def hear(self, finding: Finding) -> list[Envelope]:
        """The checker has computed a claim."""
        key = finding.key
        if self._open.pop(key, None) is None:
            return []
        now = self._history[key.step]
        now.findings[key] = finding
        envelopes: list[Envelope] = []
        if not self._stands(now, finding):
            headers = now.board.headers(key)
            culprits = judge(headers, finding, now.inputs(key)).culprits
            accounts, inputs = now.board.accounts(key), now.inputs(key)
            self._blame.alert(key, "spot-check", culprits, CHECKER)
            self._notary.judged(finding, inputs, accounts, "spot-check", culprits)
            envelopes = self._convict(key, culprits, "spot-check")
        self._conclude(key)
        return envelopes

    def _stands(self, now: StepState, finding: Finding) -> bool:
        key = finding.key
        norms = now.accounts.get(key.stage, ()) if key.direction is Direction.GRADIENT else ()
        accepted = now.board.accepted[key]
        if finding.output == accepted and same_norms(finding.norms, norms):
            return True
        return any(each.fits and each.output == accepted and same_norms(each.norms, norms) for each in finding.measured)

    def lacking(self, lacking: Lacking) -> list[Envelope]:
        """The checker has asked often enough and got nothing: who signed what is missing does not open it."""
        key = lacking.key
        if self._open.get(key, 0) < PATIENCE or not (lacking.state or lacking.inputs):
            return []
        now = self._history[key.step]
        stage = key.stage if lacking.state else lacking.inputs[0].stage
        still = self._membership.route.workers
        silent = tuple(w for w in now.route.holders(stage) if w in still and w not in now.route.trusted)
        unopened = [other for other in self._open if (other.step, other.stage) == (key.step, key.stage)]
        for other in unopened:
            del self._open[other]
        self._refused.update(unopened)
        about = self._what_made(key) if lacking.state else key
        self._blame.alert(about, "unopened", silent, CHECKER)
        self._notary.unopened(about, stage, silent)
        envelopes = self._convict(about, silent, "unopened")
        self._conclude(key)
        return envelopes

    def _what_made(self, key: ClaimKey) -> ClaimKey:
        """The update that the state of `key` is the result of: that is what its holders signed, and do not open."""
        before = self._history.get(key.step - 1)
        if key.step == 0:
            return key
        return ClaimKey(key.step - 1, 0 if before is None else before.attempt, Direction.UPDATE, key.stage)

    # -- what follows from a lie -------------------------------------------------------------------------------------

    def _convict(self, key: ClaimKey, culprits: tuple[str, ...], reason: str) -> list[Envelope]:
        """Whoever is new among the culprits has all that it did in the window replayed."""
        self._lies[key.step, key.stage] += 1
        self._earliest = key.step if self._earliest is None else min(self._earliest, key.step)
        self._blame.convict(key, culprits, reason)
        new = [worker for worker in culprits if worker not in self._culprits]
        self._culprits |= dict.fromkeys(new)
        envelopes = []
        for now in self._history.values():
            for stage in self._checkable(now):
                if any(holder in new for holder in now.route.holders(stage)):
                    envelopes += self._order(now, self._claims(now, stage))
        return envelopes

    def _conclude(self, key: ClaimKey) -> None:
        """Tell when a stage's step has been gone through; when nothing is open and a lie was found, the run must go back."""
        if not any((other.step, other.stage) == (key.step, key.stage) for other in self._open):
            now = self._history[key.step]
            done = sum(k.stage == key.stage for k in now.findings)
            self._events.append(SpotChecked(key.step, key.stage, done, self._lies[key.step, key.stage]))
        if self._earliest is not None and not self._open and self.rewind is None:
            culprits = tuple(self._culprits)
            step = self._earliest
            self._events += [Banned(worker, self._membership.lies[worker], step) for worker in culprits]
            self.rewind = Rewind(step, culprits, self._reason(step, culprits))

    def _reason(self, step: int, culprits: tuple[str, ...]) -> str:
        who = " and ".join(culprits) or "nobody who is left"
        oldest = min(self._history)
        text = f"spot checks found that {who} lied from step {step} on" if culprits else f"step {step} could not be checked"
        older = escape(0, 0.0, self._terms.sampling.steps, len(self._history))
        more = f"; an earlier lie than step {oldest}, the oldest kept, would have escaped with probability {older:.2g}"
        return text + (more if culprits and step == oldest and oldest > 0 else "")

    # -- time --------------------------------------------------------------------------------------------------------

    def on_timer(self, token: object) -> list[Envelope]:
        """Ask again for what is still open of the stage's step that `token` names."""
        late = [key for key in self._open if ("opening", key.step, key.stage) == token]
        for key in late:
            self._open[key] += 1
        self._arm(late)
        now = self._history[late[0].step] if late else None
        return [] if now is None else [Envelope(COORDINATOR, CHECKER, self._court.case(now, k, closed=True)) for k in late]

    def _arm(self, keys: list[ClaimKey]) -> None:
        patience_s = (self._policy.deadline_s + self._policy.transfer_s) / PATIENCE
        for step, stage in dict.fromkeys((key.step, key.stage) for key in keys):
            self.timers.append((("opening", step, stage), patience_s))
