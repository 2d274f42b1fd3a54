"""Faults are a script that reads like a story: who breaks, at which moment of which step, and how.

    Faults().crash(stage=2, step=7).stall(stage=1, step=3, seconds=60)

    moment           struck at                                       its outgoing messages are
    begin            the order to begin the step                     what the worker answers at once
    forward          the stage's forward pass of a micro-batch       the claims and headers of a_i
    backward         its backward pass of a micro-batch              the claims and headers of g_i
    shadow-forward   the same worker's shadow work, either way       the headers of its verdicts
    shadow-backward
    gradient         the sum over micro-batches                      the header of the gradient
    update           the optimizer step                              the header of the new state
    seal             the order to seal the step                      what the worker answers at once

A `slow` machine is as it was but for its pace: from the step's begin on all its work takes `factor` times as long.

`sent=N` lets the first N of them leave: a crash half way through a send. Each fault strikes once in a run, however often the
step is redone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from holdfast.claim import WHOLE_STEP, ClaimKey, Direction, Role
from holdfast.errors import ConfigError, WorkerDied, WorkerStalled
from holdfast.message import Actor, BeginStep, Envelope, NewRoute, Seal, Work
from holdfast.route import Route

Kind = Literal["crash", "stall", "slow"]
Moment = Literal["begin", "forward", "backward", "shadow-forward", "shadow-backward", "gradient", "update", "seal"]

_MOMENTS: tuple[str, ...] = get_args(Moment)
_PER_MICRO_BATCH = ("forward", "backward", "shadow-forward", "shadow-backward")
_STALL_WORK = "stalled"


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the script. `stage` means the worker that is its primary when it strikes; `worker` names one outright.

    Without `micro_batch` the first one that comes is struck.
    """

    kind: Kind
    step: int
    stage: int | None = None
    worker: str | None = None
    at: Moment = "begin"
    micro_batch: int | None = None
    sent: int = 0
    seconds: float = 0.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        if (self.stage is None) == (self.worker is None):
            self._refuse("needs either stage=N or worker=NAME")
        for name in ("step", "stage", "micro_batch", "sent"):
            value = getattr(self, name)
            if value is not None and value < 0:
                self._refuse(f"{name} counts from 0, got {value}")
        if self.at not in _MOMENTS:
            self._refuse(f"at must be one of {', '.join(_MOMENTS)}, got {self.at!r}")
        if self.micro_batch is not None and self.at not in _PER_MICRO_BATCH:
            self._refuse(f"micro_batch goes with at={', '.join(_PER_MICRO_BATCH)}; {self.at} is once a step")
        if self.kind == "stall" and not self.seconds > 0:
            self._refuse(f"needs seconds=X, a time greater than 0, got {self.seconds}")
        if self.kind != "stall" and self.seconds:
            self._refuse("seconds goes with a stall; a crash and a slow machine are for good")
        if self.kind == "slow" and not 0 < self.factor < 1e6:
            self._refuse(f"needs factor=X, how many times as long its work takes, got {self.factor:g}")
        if self.kind == "slow" and (self.at != "begin" or self.sent):
            self._refuse("begins with a step: at and sent go with a crash or a stall")
        if self.kind != "slow" and self.factor != 1.0:
            self._refuse("factor goes with slow")

    def _refuse(self, why: str) -> None:
        raise ConfigError(f"fault {str(self)!r} {why}")

    def __str__(self) -> str:
        who = f"worker={self.worker}" if self.worker is not None else f"stage={self.stage}"
        parts = [self.kind, who, f"step={self.step}", f"at={self.at}"]
        parts += [] if self.micro_batch is None else [f"micro_batch={self.micro_batch}"]
        parts += [f"sent={self.sent}"] if self.sent else []
        parts += [f"seconds={self.seconds:g}"] if self.seconds else []
        parts += [f"factor={self.factor:g}"] if self.kind == "slow" else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Faults:
    """The whole script; `crash`, `stall` and `slow` give a longer one.

    >>> print(*Faults().crash(stage=2, step=7, at="backward").stall(worker="w1", step=3, seconds=60), sep="; ")
    crash stage=2 step=7 at=backward; stall worker=w1 step=3 at=begin seconds=60
    """

    script: tuple[Fault, ...] = ()

    def crash(self, *, step: int, stage: int | None = None, at: Moment = "begin", **more: Any) -> Faults:
        """The worker is gone for good; `more`: worker, micro_batch, sent."""
        return replace(self, script=(*self.script, Fault("crash", step, stage, at=at, **more)))

    def stall(self, *, step: int, seconds: float, stage: int | None = None, at: Moment = "begin", **more: Any) -> Faults:
        """The worker does nothing for `seconds`, then goes on where it was; `more`: worker, micro_batch, sent."""
        return replace(self, script=(*self.script, Fault("stall", step, stage, at=at, seconds=seconds, **more)))

    def slow(self, *, step: int, factor: float, stage: int | None = None, **more: Any) -> Faults:
        """From `step` on the worker takes `factor` times as long for everything; `more`: worker."""
        return replace(self, script=(*self.script, Fault("slow", step, stage, factor=factor, **more)))

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.script)

    def __len__(self) -> int:
        return len(self.script)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Faults:
        """The script from lines such as `crash stage=2 step=7 at=backward micro_batch=1`; raises ConfigError.

        >>> Faults.parse(["stall stage=1 step=3 seconds=60"]) == Faults().stall(stage=1, step=3, seconds=60)
        True
        """
        return cls(tuple(_parse_line(line) for line in lines))

    def validate(self, stages: int, workers: Collection[str] = (), trusted: Collection[str] = ()) -> None:
        """Raise ConfigError where a fault is not that of an untrusted worker (stages 1 to K-2) or of one unknown."""
        for fault in self.script:
            if fault.stage is not None and not 1 <= fault.stage <= stages - 2:
                possible = f"1 to {stages - 2}" if stages > 2 else "none"
                raise ConfigError(
                    f"fault {str(fault)!r} names stage {fault.stage}; with {stages} stages the untrusted ones are {possible} "
                    "(the first and the last are the initiator's, and the run ends with them)"
                )
            if fault.worker in trusted:
                raise ConfigError(f"fault {str(fault)!r} names the initiator's own worker; the run ends with it")
            if fault.worker is not None and workers and fault.worker not in workers:
                raise ConfigError(f"fault {str(fault)!r} names an unknown worker; there are {', '.join(workers)}")


class FaultPlan:
    """The script during one run: remembers what has struck, and who has been how slow since. Every `FaultyActor` of the run
    shares one.
    """

    def __init__(self, faults: Faults) -> None:
        self._waiting = list(faults.script)
        self.fired: list[Fault] = []
        self.slowness: dict[str, float] = {}

    def strike(self, matches: Callable[[Fault], bool]) -> Fault | None:
        """The first fault that has not struck yet and `matches`; from now on it has."""
        for fault in self._waiting:
            if matches(fault):
                self._waiting.remove(fault)
                self.fired.append(fault)
                return fault
        return None

    @property
    def waiting(self) -> tuple[Fault, ...]:
        """What has not struck yet; at the end of a run, what never came to pass."""
        return tuple(self._waiting)


class FaultyActor:
    """An honest worker on a machine that breaks as the plan says: an `Actor` around an `Actor`.

    A fault strikes after the work is done and before its messages leave (but for the first `sent`). `receive` and `execute`
    raise `WorkerDied`, after which the launcher calls this actor no more, or `WorkerStalled`, after which the messages held
    back leave with the next work that this actor offers. A slow machine's work costs more; where time is real, `pause(seconds)`
    lets that much more of it pass.
    """

    def __init__(self, actor: Actor, plan: FaultPlan, pause: Callable[[float], None] = lambda _seconds: None) -> None:
        self._actor = actor
        self._plan = plan
        self._pause = pause
        self._route: Route | None = None
        self._held: tuple[Work, tuple[Envelope, ...]] | None = None
        self.name = actor.name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or attribute == "_actor":
            raise AttributeError(attribute)
        return getattr(self._actor, attribute)

    def receive(self, envelope: Envelope) -> Sequence[Envelope]:
        message = envelope.message
        if isinstance(message, (BeginStep, NewRoute)):
            self._route = message.route
        sent = tuple(self._actor.receive(envelope))
        if isinstance(message, BeginStep):
            return self._struck(_order(message.step), "begin", sent)
        if isinstance(message, Seal):  # version v + 1 seals step v
            return self._struck(_order(message.version - 1), "seal", sent)
        return sent

    def next_work(self, device: int) -> Work | None:
        if self._held is not None and self._held[0].device == device:
            return self._held[0]
        work = self._actor.next_work(device)
        factor = self._plan.slowness.get(self.name)
        return work if work is None or factor is None else replace(work, cost=work.cost * factor)

    def execute(self, work: Work) -> Sequence[Envelope]:
        if self._held is not None and work == self._held[0]:
            late, self._held = self._held[1], None
            return late
        began = time.perf_counter()
        sent = tuple(self._actor.execute(work))
        factor = self._plan.slowness.get(self.name)
        if factor is not None:
            self._pause((factor - 1) * (time.perf_counter() - began))
        return self._struck(work, work.kind, sent)

    def _struck(self, work: Work, moment: str, sent: tuple[Envelope, ...]) -> Sequence[Envelope]:
        fault = self._plan.strike(lambda fault: self._is_meant(fault, work, moment))
        if fault is None:
            return sent
        if fault.kind == "slow":
            self._plan.slowness[self.name] = self._plan.slowness.get(self.name, 1.0) * fault.factor
            return sent
        early, late = sent[: fault.sent], sent[fault.sent :]
        if fault.kind == "crash":
            raise WorkerDied(early)
        if late:
            held = late if self._held is None else (*self._held[1], *late)
            self._held = (replace(work, kind=_STALL_WORK, cost=0.0), held)
        raise WorkerStalled(fault.seconds, early)

    def _is_meant(self, fault: Fault, work: Work, moment: str) -> bool:
        if (fault.step, fault.at) != (work.key.step, moment) or self._route is None or self.name in self._route.trusted:
            return False
        if fault.micro_batch is not None and fault.micro_batch != work.key.micro_batch:
            return False
        if fault.stage is None:
            return fault.worker == self.name
        if self._route.primaries[fault.stage] != self.name:
            return False
        of_one_seat = moment in ("forward", "backward", "gradient", "update")
        return not of_one_seat or (work.stage, work.role) == (fault.stage, Role.PRIMARY)


def _order(step: int) -> Work:
    """Stands for an order that is not work: what `receive` answers to it is held back as if it were."""
    return Work(_STALL_WORK, 0, -1, ClaimKey(step, 0, Direction.UPDATE, -1, WHOLE_STEP), None, 0.0)


def _parse_line(line: str) -> Fault:
    kind, *pairs = line.split() or [""]
    if kind not in get_args(Kind):
        raise ConfigError(
            f"fault {line!r}: expected crash, stall or slow first, for example 'crash stage=2 step=7 at=backward'"
        )
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in _READERS:
            raise ConfigError(f"fault {line!r}: got {pair!r}, expected one of {', '.join(f'{n}=...' for n in _READERS)}")
        if name in values:
            raise ConfigError(f"fault {line!r}: {name} stands there twice")
        pattern, reader, wanted = _READERS[name]
        if not re.fullmatch(pattern, text):
            raise ConfigError(f"fault {line!r}: {name} must be {wanted}, got {text!r}")
        values[name] = reader(text)
    if "step" not in values:
        raise ConfigError(f"fault {line!r}: needs step=N, the step in which it strikes (they count from 0)")
    return Fault(kind, **values)  # type: ignore[arg-type]  # checked against the Literal above


_READERS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "step": (r"\d{1,9}", int, "a number from 0"),
    "stage": (r"\d{1,9}", int, "a number from 0"),
    "worker": (r"\S+", str, "a worker's name"),
    "at": (r"\S+", str, "a moment"),
    "micro_batch": (r"\d{1,9}", int, "a number from 0"),
    "sent": (r"\d{1,9}", int, "a number from 0"),
    "factor": (r"\d{1,9}(\.\d*)?|\.\d+", float, "a number"),
    "seconds": (r"\d{1,9}(\.\d*)?|\.\d+", float, "seconds"),
}
