"""What happened in a run, one frozen type an event: the coordinator and the trainer emit them, reports and terminals read them.

Each becomes one line of `report.jsonl`; `SCHEMA` is its version. Times are seconds of the run's own clock since its start,
virtual or real ones, unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from dataclasses import dataclass
from typing import Any

from holdfast.claim import ClaimKey
from holdfast.plain import fits

SCHEMA = 1

VIRTUAL, REAL = "virtual", "run"
BOTH = f"{VIRTUAL} + {REAL}"
CLOCKS = (VIRTUAL, REAL, BOTH)
"""What the clock of a run is called: that of a described cluster; a real one, which goes while machines are deployed; or one
after the other, where a run has gone on with another engine.
"""


@dataclass(frozen=True, slots=True)
class RunStarted:
    run: str
    command: tuple[str, ...]
    environment: dict[str, str]
    parameters: int
    stages: tuple[str, ...]
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run goes on from `version` sealed steps, in another process: what was told of later steps is void."""

    version: int


@dataclass(frozen=True, slots=True)
class Reunited:
    """A host that was started again found the last commit, `version`, at the machines that came back: `workers` hold it."""

    version: int
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JournalSetAside:
    """A host that was started again cannot go on from its last commit, and goes back to its checkpoint of `version`."""

    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class StepSealed:
    """Step `step` is committed. `loss` is nats a token; `gradient_norm` is the global norm before clipping."""

    step: int
    attempt: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Alert:
    """A check failed. `suspects` are stages' workers that may have lied; the referee narrows them.

    `reason`: output, parent, norms, delivery, withheld, equivocation, spot-check, unopened, state or complaint.
    """

    key: ClaimKey
    reason: str
    suspects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ruling:
    """The referee's word: who lied about `key`. No culprit means inconclusive."""

    key: ClaimKey
    culprits: tuple[str, ...]
    stage: int
    reason: str


@dataclass(frozen=True, slots=True)
class SpotChecked:
    """Claims of one stage in one sealed step were computed again: `claims` so far, of which `lies` were not as accepted."""

    step: int
    stage: int
    claims: int
    lies: int


@dataclass(frozen=True, slots=True)
class Reseated:
    """From `step` on other workers sit on the stages: `primaries` by stage."""

    step: int
    primaries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """From `step` on stage i has layers [lo, hi) of `layers[i]`, primary and shadow as named. `step_s` is predicted; `busy` is
    each machine's share of it, `memory_bytes` what it needs. `cause` says why so.
    """

    step: int
    cause: str
    layers: tuple[tuple[int, int], ...]
    primaries: tuple[str, ...]
    shadows: tuple[str | None, ...]
    step_s: float
    busy: dict[str, float]
    memory_bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Paced:
    """What the last steps really took, beside what was predicted for the placement that they ran on."""

    step: int
    predicted_s: float
    measured_s: float


@dataclass(frozen=True, slots=True)
class Paused:
    """Before `step`: the machines that are left cannot hold all stages. The run waits for what `reason` names."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class ClaimReplaced:
    """The innocent holder's own value for `key` took the place of the culprit's."""

    key: ClaimKey
    source: str


@dataclass(frozen=True, slots=True)
class StepRestarted:
    step: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class StagesSkipped:
    step: int
    bypassed: tuple[int, ...]
    frozen: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WorkerLost:
    worker: str
    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class TakenOver:
    stage: int
    lost: str
    heir: str
    step: int


@dataclass(frozen=True, slots=True)
class Reshadowed:
    stage: int
    worker: str
    version: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is there that was not, or is back: it gets a seat before the next step, if there is one to give."""

    worker: str
    step: int


@dataclass(frozen=True, slots=True)
class Banned:
    worker: str
    lies: int
    step: int


@dataclass(frozen=True, slots=True)
class RolledBack:
    """More was broken in `step` than could be carried, or a spot check found a lie: the run goes on from `version`."""

    step: int
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    step: int
    perplexity: float
    bits_per_byte: float


@dataclass(frozen=True, slots=True)
class CheckpointTaken:
    """The states after `step` steps are held for the checkpoint: a run that is resumed from it goes on behind this line."""

    step: int
    path: str


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """It is on the disk, maybe some steps later."""

    step: int
    path: str


@dataclass(frozen=True, slots=True)
class CheckpointFailed:
    """It could not be written, and the run goes on; `last` is the newest that is there (empty: none)."""

    step: int
    last: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    weights_digest: str
    summary: dict[str, Any]


Event = (
    RunStarted
    | Resumed
    | Reunited
    | JournalSetAside
    | StepSealed
    | Alert
    | Ruling
    | SpotChecked
    | Reseated
    | Placed
    | Paced
    | Paused
    | ClaimReplaced
    | StepRestarted
    | StagesSkipped
    | WorkerLost
    | TakenOver
    | Reshadowed
    | Joined
    | Banned
    | RolledBack
    | Evaluated
    | CheckpointTaken
    | CheckpointWritten
    | CheckpointFailed
    | RunFinished
)


KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in typing.get_args(Event)}


def is_record(record: Any) -> bool:
    """Whether a JSON value could be a record of `to_record`: its event is known, and every field of that has its form."""
    kind = KINDS.get(record["event"]) if isinstance(record, dict) and isinstance(record.get("event"), str) else None
    return kind is not None and fits(record.get("seconds"), float) and fits(record, kind)


def to_record(event: Event, seconds: float) -> dict[str, Any]:
    """The event as a JSON object: schema, event name, time of the run's clock, then its own fields."""
    return {"schema": SCHEMA, "event": type(event).__name__, "seconds": round(seconds, 6), **_plain(dataclasses.asdict(event))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, enum.Enum) else value
