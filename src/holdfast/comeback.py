"""The comeback of a host: it was killed, is started again, and looks for the last commit at the machines that come back.

    journal --> signed, of this run, its last word? --> machines come, say which digests they keep --> a seat for each stage
                         | no                                          | a stage that nobody keeps, in `return_s`
                         +------> the last certified checkpoint <------+

Nothing that a machine says is believed: to say that it keeps a state gives it a seat, where what it computes is compared, and
what it passes on is hashed, as ever. Who has lied too often is not asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from holdfast.claim import StageState
from holdfast.errors import JournalRefused, ProtocolError, StoppedWaiting
from holdfast.evidence.log import lines_of, read_line
from holdfast.evidence.record import Resumed, Rollback, Sealed
from holdfast.job import Job
from holdfast.journal import Commit, Journal
from holdfast.stage import INITIATOR

STRAGGLERS_S = 15.0
"""How long, once every stage is found, the others are waited for who were there: who knocks does so every 10 s at least. Later
they join as any machine does."""

Keeping = Mapping[str, frozenset[tuple[int, bytes]]]
"""Which states the machines that are there say they keep: stage and digest, by name."""


@runtime_checkable
class Reunion(Protocol):
    """What an engine must be able to do whose machines outlive the host (`holdfast.machines.Machines`)."""

    def reunite(self, names: Sequence[str], settled: Callable[[Keeping], bool]) -> None: ...


@dataclass(frozen=True)
class Seats:
    """Where a cluster goes on without having been sent its states: `primaries` by stage, the sealed `digests`, and by stage the
    `holders` who keep its sealed state, the trusted ones included.
    """

    primaries: tuple[str, ...]
    digests: Mapping[int, bytes]
    holders: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True)
class Return:
    """The last commit, found again: `states` are those that only the trusted members had."""

    commit: Commit
    states: Mapping[int, StageState]
    seats: Seats

    @property
    def workers(self) -> tuple[str, ...]:
        """The machines that hold the commit."""
        found = dict.fromkeys(worker for workers in self.seats.holders.values() for worker in workers)
        return tuple(sorted(worker for worker in found if worker != INITIATOR))


def last_commit(journal: Journal, run: str, evidence: Path, version: int) -> Commit | None:
    """The commit to go on from, newer than the checkpoint of `version`; None where there is none.

    Raises JournalRefused where the journal is not that of `run`, or not its last word.
    """
    commit = journal.newest()
    if commit is None:
        return None
    if commit.run != run:
        raise JournalRefused(f"the journal is of another run ({commit.run}, and this one is {run})")
    check_against(evidence, commit)
    if commit.version == version:
        return None
    if commit.version < version:
        raise JournalRefused(f"the journal ends at version {commit.version}, and the checkpoint is newer")
    if not commit.settled:
        raise JournalRefused(f"spot checks of steps before version {commit.version} were still open, and died with the host")
    return commit


def check_against(evidence: Path, commit: Commit) -> None:
    """Raise JournalRefused unless the evidence log has the seal of `commit` where the journal says, and nothing came after it
    but the next seal, whose record a kill may have prevented.
    """
    try:
        data = evidence.read_bytes()
    except OSError as error:
        raise JournalRefused(f"there is no evidence log to hold the journal against ({error.strerror or error})") from None
    lines = [line for line, whole in lines_of(data) if whole]
    count, last = commit.mark
    later = 0
    try:
        if not 0 < count <= len(lines) or read_line(lines[count - 1]).digest != last:
            raise JournalRefused(f"the evidence log does not have the line that the journal names for version {commit.version}")
        for line in lines[count:]:
            record = read_line(line).record
            if isinstance(record, Sealed):
                later += 1
            elif isinstance(record, Resumed | Rollback) and record.version != commit.version:
                raise JournalRefused(
                    f"the journal is old: it ends at version {commit.version}, and the run has gone on from version "
                    f"{record.version} since"
                )
    except ProtocolError as error:
        raise JournalRefused(f"the evidence log cannot be read beyond version {commit.version}: {error}") from None
    if later > 1:
        raise JournalRefused(
            f"the journal is old: it ends at version {commit.version}, and the run has sealed {later} steps since"
        )


def check_fits(commit: Commit, states: Mapping[int, StageState], job: Job) -> None:
    """Raise JournalRefused where the commit is of another model, or was cut otherwise, than this host is told to train."""
    plan, config = job.plan, job.config
    if commit.cut != tuple(plan.layers):
        raise JournalRefused(f"its stages are cut otherwise ({_cut(commit.cut)}) than they are now ({_cut(plan.layers)})")
    if commit.version > config.training.steps:
        raise JournalRefused(f"it ends at version {commit.version}, past the last of {config.training.steps} steps")
    if commit.tokens != commit.version * job.batches.tokens_per_step:
        raise JournalRefused(
            f"it was at {commit.tokens} tokens of the text after {commit.version} steps, and this config comes to "
            f"{commit.version * job.batches.tokens_per_step}"
        )
    for stage, state in states.items():
        names = plan.stage_parameters[stage]
        shapes = {name: tuple(tensor.shape) for name, tensor in state.weights.items()}
        if shapes != {name: plan.shapes[name] for name in names} or any(t.dtype != job.dtype for t in state.weights.values()):
            raise JournalRefused(f"the state of stage {stage} is of another model")


def seat(commit: Commit, keeping: Keeping, barred: frozenset[str] = frozenset()) -> Seats | tuple[int, ...]:
    """Who goes on with what: each stage goes to its old primary where that keeps it, else to its old shadow, else to who keeps
    it and has least to do. The answer is the stages that nobody keeps, where there are any.
    """
    holders: dict[int, tuple[str, ...]] = {}
    for stage, digest in enumerate(commit.digests):
        found = sorted(name for name in keeping if name not in barred and (stage, digest) in keeping[name])
        holders[stage] = (INITIATOR,) if stage in commit.own else tuple(found)
    lacking = tuple(stage for stage, keepers in holders.items() if not keepers)
    if lacking:
        return lacking
    primaries = {stage: old for stage, old in enumerate(commit.primaries) if old in holders[stage]}
    laden = Counter(primaries.values())
    for stage, keepers in holders.items():
        if stage not in primaries:
            shadow = commit.shadows[stage]
            primaries[stage] = shadow if shadow in keepers else min(keepers, key=lambda name: (laden[name], name))
            laden[primaries[stage]] += 1
    return Seats(tuple(primaries[stage] for stage in sorted(primaries)), dict(enumerate(commit.digests)), holders)


class Comeback:
    """Looks for a commit at the machines of `engine`. `stopping` says that nobody wants to know any more."""

    def __init__(
        self,
        engine: Reunion,
        return_s: float,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._return_s = return_s
        self._stopping = stopping
        self._clock = clock

    def find(self, commit: Commit, states: Mapping[int, StageState], barred: frozenset[str]) -> Return:
        """Wait for the machines; raises JournalRefused where a stage is kept by none of those that came in time, and
        StoppedWaiting where it is stopped before: then the commit stays what it is.
        """
        wanted = frozenset(commit.members) - barred
        began = self._clock()
        whole_since: float | None = None
        found: Seats | tuple[int, ...] = ()

        def settled(keeping: Keeping) -> bool:
            nonlocal found, whole_since
            found, now = seat(commit, keeping, barred), self._clock()
            if isinstance(found, Seats):
                whole_since = now if whole_since is None else whole_since
                return wanted <= keeping.keys() or now - whole_since >= min(STRAGGLERS_S, self._return_s) or self._stopping()
            whole_since = None
            return wanted <= keeping.keys() or now - began >= self._return_s or self._stopping()

        self._engine.reunite(sorted(wanted), settled)
        if isinstance(found, Seats):
            return Return(commit, states, found)
        stages = f"stage{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
        if self._stopping():
            raise StoppedWaiting(f"stopped while the run waited for {stages} as sealed in version {commit.version}")
        waited = self._clock() - began
        raise JournalRefused(
            f"after {waited:.0f} s no machine is there that keeps {stages} as sealed in version {commit.version} "
            f"(machines.return_s is {self._return_s:g})"
        )


def _cut(layers: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{lo}-{hi - 1}" for lo, hi in layers)
