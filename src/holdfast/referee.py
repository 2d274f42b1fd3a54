"""The referee re-executes one stage, from sealed weights and accepted inputs, and says what an honest holder would claim.

    Examine --> ask the holders for state and tensors --> check every digest --> compute --> Finding
                                        `--> asked again: say what is Lacking

It works for the coordinator on a trusted machine and believes no holder: what does not match a sealed or accepted digest is
ignored, and a false state reported. It keeps its execution for the rest of the step, so that many disputes about one stage cost
no pass twice. Where no holder gave the honest account it supplies its own tensor or state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from holdfast.claim import WHOLE_STEP, Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.digest import state_digest, tensor_digest
from holdfast.errors import ProtocolError
from holdfast.execution import StageExecution
from holdfast.likeness import Likeness
from holdfast.message import (
    BeginStep,
    Envelope,
    Examine,
    Finding,
    Lacking,
    Measured,
    NewRoute,
    Seal,
    SendState,
    StateRefused,
    StateTransfer,
    Supply,
    Work,
)
from holdfast.route import Route
from holdfast.stage import COORDINATOR, REFEREE
from holdfast.verify.chain import parents
from holdfast.verify.resync import Candidate, compare_updates
from holdfast.verify.tolerance import UNLIKE, Distance, distance, distance_of_norms

Result = Tensor | StageState | tuple[float, ...]


@dataclass(slots=True)
class _Bench:
    """One stage under examination in this step: its execution, and what has been computed of it."""

    execution: StageExecution
    version: int = -1
    forwarded: set[int] = field(default_factory=set)
    outputs: dict[ClaimKey, Tensor] = field(default_factory=dict)
    sealed: StageState | None = None


class Referee:
    """An `Actor`. `execution(i)` builds the module of stage i; `micro_batches` is M; `costs` are forward passes a stage."""

    def __init__(
        self,
        run: str,
        execution: Callable[[int], StageExecution],
        micro_batches: int,
        costs: Sequence[float],
        name: str = REFEREE,
        likeness: Likeness | None = None,
    ) -> None:
        self.name = name
        self.devices = 1
        self._run = run
        self._execution = execution
        self._micro_batches = micro_batches
        self._costs = costs
        self._likeness = likeness
        self._benches: dict[int, _Bench] = {}
        self._cases: dict[ClaimKey, Examine] = {}
        self._tensors: dict[ClaimKey, Tensor] = {}
        self._asked: set[Envelope] = set()
        self._accounts: dict[bytes, Tensor | StageState] = {}
        self._overdue: set[ClaimKey] = set()
        self._contradicted: set[tuple[ClaimKey, str]] = set()
        self._refused: set[tuple[int, int, str]] = set()
        self._moment = (-1, 0)
        self._route: Route | None = None

    # -- messages ----------------------------------------------------------------------------------------------------

    def receive(self, envelope: Envelope) -> Sequence[Envelope]:
        message = envelope.message
        if isinstance(message, Claim):
            return self._take_tensor(envelope.sender, message)
        if isinstance(message, StateTransfer):
            return self._take_state(envelope.sender, message)
        if envelope.sender != COORDINATOR:
            raise ProtocolError(f"the referee got {type(message).__name__} from {envelope.sender!r}, not the coordinator")
        match message:
            case Examine(key):
                again = key in self._cases
                self._overdue |= {key} if again else set()
                self._cases[key] = message
                return [*self._requests(message, again=again), *([self._lacking(message)] if again else [])]
            case BeginStep(step, attempt, version, route, _):
                self._begin((step, attempt), version, route)
            case NewRoute(route):
                self._route = route
            case Supply(key, to):
                return self._supply(key, to)
            case SendState(stage, _, to, role):
                state = self._benches[stage].execution.state(message.version, candidate=True)
                return [Envelope(self.name, to, StateTransfer(state, role))]
            case Seal():
                pass
            case _:
                raise ProtocolError(f"the referee has no use for {type(message).__name__}")
        return []

    def _begin(self, moment: tuple[int, int], version: int, route: Route) -> None:
        self._moment, self._route = moment, route
        self._cases.clear()
        self._tensors.clear()
        self._asked.clear()
        self._accounts.clear()
        self._overdue.clear()
        self._contradicted.clear()
        self._refused.clear()
        for bench in self._benches.values():
            bench.version = bench.version if bench.version == version else -1
            bench.forwarded.clear()
            bench.outputs.clear()
            bench.execution.begin(moment[0])

    def _requests(self, case: Examine, *, again: bool) -> list[Envelope]:
        """Ask every holder at once, for a second case not again: one honest answer is enough, a silent liar costs no time."""
        if case.key.stage not in self._benches:
            self._benches[case.key.stage] = _Bench(self._execution(case.key.stage))
        bench = self._benches[case.key.stage]
        envelopes = []
        if bench.version != case.version:
            bench.execution.begin(case.key.step)
            order = SendState(case.key.stage, case.version, self.name, None)
            envelopes += [Envelope(self.name, holder, order) for holder in case.holders]
        for key, digest in case.inputs:
            shown = self._accounts.get(digest)  # another case asked for it as somebody's account
            if isinstance(shown, Tensor):
                self._tensors.setdefault(key, shown)
        wanted = [key for key, _ in case.inputs if key not in self._tensors]
        envelopes += [Envelope(self.name, holder, Supply(key, (self.name,))) for key in wanted for holder in case.holders]
        envelopes += self._ask_accounts(case)
        fresh = envelopes if again else [envelope for envelope in envelopes if envelope not in self._asked]
        self._asked.update(fresh)
        return fresh

    def _ask_accounts(self, case: Examine) -> list[Envelope]:
        """Have the accounts shown that are to be measured. Norms stand in their headers."""
        key, missing = case.key, [each for each in case.measure if each.output not in self._accounts]
        if key.direction is Direction.GRADIENT:
            return []
        if key.direction is Direction.UPDATE:
            order = SendState(key.stage, case.version + 1, self.name, None)
            return [Envelope(self.name, each.worker, order) for each in missing]
        return [Envelope(self.name, each.worker, Supply(key, (self.name,))) for each in missing]

    def _shows_enough(self, case: Examine) -> bool:
        """Whether every account is there; who was asked twice and has shown nothing is not waited for."""
        whole = case.key.direction is Direction.GRADIENT or case.key in self._overdue
        missing = [each for each in case.measure if each.output not in self._accounts]
        return whole or all((case.key, each.worker) in self._contradicted for each in missing)

    def _lacking(self, case: Examine) -> Envelope:
        """Asked again: has anything been kept from it?"""
        state = self._benches[case.key.stage].version != case.version
        inputs = tuple(key for key, _ in case.inputs if key not in self._tensors)
        return Envelope(self.name, COORDINATOR, Lacking(case.key, state, inputs))

    def _take_tensor(self, sender: str, claim: Claim) -> list[Envelope]:
        key = claim.header.key
        case = self._cases.get(key)
        accepted = {digest for other in self._cases.values() for wanted, digest in other.inputs if wanted == key}
        wanted = key not in self._tensors and bool(accepted)
        if not wanted and (case is None or not case.measure):
            return []  # other holders were asked too; what is not needed any more is not hashed
        got = tensor_digest(claim.tensor)
        if case is not None:
            self._take_account(case, sender, got, claim.tensor)
        if wanted and got in accepted:
            self._tensors[key] = claim.tensor
        return []

    def _take_account(self, case: Examine, sender: str, got: bytes, shown: Tensor | StageState) -> None:
        """Keep what somebody's header speaks of. Who shows something else has nothing better, and is not waited for."""
        if any(each.output == got for each in case.measure):
            self._accounts[got] = shown
        elif any(each.worker == sender for each in case.measure):
            self._contradicted.add((case.key, sender))

    def _take_state(self, sender: str, message: StateTransfer) -> list[Envelope]:
        """Load what bears the sealed digest. Another state in its place is its sender's lie: it came to a trusted party."""
        state = message.state
        bench = self._benches.get(state.stage)
        update = next((case for case in self._cases.values() if self._is_new_version(case, state)), None)
        if update is not None:
            self._take_account(update, sender, state_digest(state), state)
            return []
        wanted = {case.version: case.state_digest for key, case in self._cases.items() if key.stage == state.stage}
        if bench is None or state.version not in wanted or bench.version == state.version:
            return []
        got = state_digest(state)
        if got != wanted[state.version]:
            slot, told = (state.stage, state.version, sender), len(self._refused)
            self._refused.add(slot)
            refusal = StateRefused(*slot, got, wanted[state.version])
            return [Envelope(self.name, COORDINATOR, refusal)] if len(self._refused) > told else []
        bench.execution.load(state)
        bench.version, bench.sealed = state.version, state
        return []

    @staticmethod
    def _is_new_version(case: Examine, state: StageState) -> bool:
        update = case.key.direction is Direction.UPDATE and bool(case.measure)
        return update and (case.key.stage, case.version + 1) == (state.stage, state.version)

    def _supply(self, key: ClaimKey, to: Sequence[str]) -> list[Envelope]:
        tensor = self._benches[key.stage].outputs[key]
        version = self._benches[key.stage].version
        assert self._route is not None
        header = Header(self._run, key, version, self._route.epoch, self.name, Role.PRIMARY, (), tensor_digest(tensor))
        return [Envelope(self.name, recipient, Claim(header, tensor)) for recipient in to]

    # -- computation -------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no case is open."""
        return not self._cases

    def release(self) -> list[StageExecution]:
        """Its executions, for somebody else to use; call when it is no longer needed."""
        return [bench.execution for bench in self._benches.values()]

    def next_work(self, device: int) -> Work | None:
        """The first case whose state and inputs have all arrived."""
        for key, case in self._cases.items():
            bench = self._benches[key.stage]
            inputs = all(parent in self._tensors for parent, _ in case.inputs)
            if bench.version == case.version and inputs and self._shows_enough(case):
                return Work(self.name, device, key.stage, key, None, self._cost(key, bench))
        return None

    def execute(self, work: Work) -> Sequence[Envelope]:
        key = work.key
        case = self._cases.pop(key)
        bench = self._benches[key.stage]
        if key.micro_batch != WHOLE_STEP:
            output = self._recompute(bench, key)
            return [self._found(case, Finding(key, tensor_digest(output)), output)]
        for m in range(self._micro_batches):
            self._recompute(bench, ClaimKey(key.step, key.attempt, Direction.BACKWARD, key.stage, m))
        if key.direction is Direction.GRADIENT:
            gradient = bench.execution.gradient()
            return [self._found(case, Finding(key, gradient.digest, gradient.norms), gradient.norms)]
        bench.execution.update(case.clip_scale, case.learning_rate)
        state = bench.execution.state(case.version + 1, candidate=True)
        return [self._found(case, Finding(key, state_digest(state)), state)]

    def _found(self, case: Examine, finding: Finding, own: Result) -> Envelope:
        """The finding, with how far the accounts that are to be measured are from `own` and from one another."""
        if case.measure:
            shown = [self._account_of(each, case) for each in case.measure]
            apart = [UNLIKE if account is None else self._apart(case, account, own) for account in shown]
            pairs = zip(case.measure, apart, strict=True)
            measured = tuple(replace(each, overall=far.overall, worst_row=far.worst_row) for each, far in pairs)
            finding = replace(finding, measured=measured)
            match shown:
                case [Tensor() as one, Tensor() as other]:
                    between = distance(one, other)
                    finding = replace(finding, apart=(between.overall, between.worst_row))
        return Envelope(self.name, COORDINATOR, finding)

    def _account_of(self, each: Measured, case: Examine) -> Result | None:
        return each.norms if case.key.direction is Direction.GRADIENT else self._accounts.get(each.output)

    def _apart(self, case: Examine, account: Result, own: Result) -> Distance:
        match account, own:
            case Tensor(), Tensor():
                return distance(account, own)
            case StageState(), StageState():
                bench = self._benches[case.key.stage]
                assert bench.sealed is not None
                assert self._likeness is not None
                mine = Candidate(own, bench.execution.clipped(case.clip_scale))
                found = compare_updates(bench.sealed, account, mine, self._likeness.formula(case.learning_rate))
                return found.gradient if found.follows else UNLIKE
            case tuple(), tuple():
                dtype = next(self._benches[case.key.stage].execution.module.parameters()).dtype
                return distance_of_norms(account, own, dtype)
        return UNLIKE

    def _recompute(self, bench: _Bench, key: ClaimKey) -> Tensor:
        """The honest output of a forward or backward claim; each pass runs once a step."""
        if key in bench.outputs:
            return bench.outputs[key]
        assert self._route is not None
        tensors = [self._tensors[parent] for parent in parents(key, self._route)]
        forward = ClaimKey(key.step, key.attempt, Direction.FORWARD, key.stage, key.micro_batch)
        if key.micro_batch not in bench.forwarded:
            bench.outputs[forward] = bench.execution.forward(key.micro_batch, tensors[0])
            bench.forwarded.add(key.micro_batch)
        if key.direction is Direction.BACKWARD:
            of_inputs, _ = bench.execution.backward(key.micro_batch, tensors[1])
            assert of_inputs is not None, "the referee examines middle stages only"
            bench.outputs[key] = of_inputs
        return bench.outputs[key]

    def _cost(self, key: ClaimKey, bench: _Bench) -> float:
        """Forward passes of a stage of average cost; work done for an earlier case is not counted again."""
        batches = range(self._micro_batches) if key.micro_batch == WHOLE_STEP else [key.micro_batch]
        passes = sum(m not in bench.forwarded for m in batches)
        if key.direction is not Direction.FORWARD:
            backward = [ClaimKey(key.step, key.attempt, Direction.BACKWARD, key.stage, m) for m in batches]
            passes += 2 * sum(known not in bench.outputs for known in backward)
        return passes * self._costs[key.stage]

    def describe(self) -> str:
        """One line for a deadlock report."""
        cases = ", ".join(str(key) for key in self._cases)
        return f"referee: waits for state or tensors of {cases or 'nothing'}"
