"""The checker re-executes claims of sealed steps that the coordinator drew after they were signed: a referee for each step.

    step 7 sealed --> draw --> Examine (with the route of step 7) --> Checker --> one Referee for step 7 --> Finding

It works beside the run, on a trusted machine of its own, and never holds the running step up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from holdfast.claim import Claim
from holdfast.errors import ProtocolError
from holdfast.execution import StageExecution
from holdfast.likeness import Likeness
from holdfast.message import BeginStep, Envelope, Examine, StateTransfer, Work
from holdfast.referee import Referee
from holdfast.stage import CHECKER, COORDINATOR

Moment = tuple[int, int]


class Checker:
    """An `Actor`; the arguments are those of a `Referee`."""

    def __init__(
        self,
        run: str,
        execution: Callable[[int], StageExecution],
        micro_batches: int,
        costs: Sequence[float],
        likeness: Likeness | None = None,
    ) -> None:
        self.name = CHECKER
        self.devices = 1
        self._run = run
        self._execution = execution
        self._micro_batches = micro_batches
        self._costs = costs
        self._likeness = likeness
        self._open: dict[Moment, Referee] = {}
        self._spare: defaultdict[int, list[StageExecution]] = defaultdict(list)

    def receive(self, envelope: Envelope) -> Sequence[Envelope]:
        """Take a case, or what was asked for it. Raises ProtocolError for anything else."""
        message = envelope.message
        match message:
            case Examine() if envelope.sender == COORDINATOR and message.route is not None:
                return self._for_case(message).receive(envelope)
            case Claim() | StateTransfer():
                return [answer for referee in self._open.values() for answer in referee.receive(envelope)]
        raise ProtocolError(f"the checker got {type(message).__name__} from {envelope.sender!r} and has no use for it")

    def next_work(self, device: int) -> Work | None:
        """That of the earliest step: its states are the first to be freed."""
        offered = (self._open[moment].next_work(device) for moment in sorted(self._open))
        return next((work for work in offered if work is not None), None)

    def execute(self, work: Work) -> Sequence[Envelope]:
        moment = (work.key.step, work.key.attempt)
        found = self._open[moment].execute(work)
        if self._open[moment].idle:
            for execution in self._open.pop(moment).release():
                self._spare[execution.module.stage].append(execution)
        return found

    def _for_case(self, case: Examine) -> Referee:
        assert case.route is not None
        moment = (case.key.step, case.key.attempt)
        if moment not in self._open:
            referee = Referee(self._run, self._lend, self._micro_batches, self._costs, CHECKER, self._likeness)
            referee.receive(Envelope(COORDINATOR, self.name, BeginStep(*moment, case.version, case.route, ())))
            self._open[moment] = referee
        return self._open[moment]

    def _lend(self, stage: int) -> StageExecution:
        """An execution of the stage that nobody uses now: to build one takes longer than most passes."""
        return self._spare[stage].pop() if self._spare[stage] else self._execution(stage)

    def describe(self) -> str:
        """One line for a deadlock report."""
        steps = ", ".join(str(step) for step, _ in sorted(self._open))
        return f"checker: at work on steps {steps or 'none'}"
