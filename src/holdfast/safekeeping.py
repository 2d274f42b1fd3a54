"""What a run lays by while it goes on: checkpoints begun and heard of, and commits, each with what was counted up to there."""

from __future__ import annotations

from holdfast.checkpoint import version_of
from holdfast.chronicle import Chronicle, Usage, glance_at, usage_of
from holdfast.claim import version_in
from holdfast.cluster import Cluster
from holdfast.commits import Commits
from holdfast.errors import FaultWindowExceeded, NotEnoughMemory
from holdfast.event import CheckpointFailed, CheckpointTaken, CheckpointWritten
from holdfast.evidence.notary import Notary
from holdfast.job import Job
from holdfast.keeper import Keeper, States
from holdfast.progress import Progress


class Safekeeping:
    """`keeper` has the checkpoints; `commits` are written where the machines outlive this process (None: nowhere)."""

    def __init__(self, keeper: Keeper, chronicle: Chronicle, commits: Commits | None, *, on_disk: bool) -> None:
        self.keeper = keeper
        self.commits = commits
        self._chronicle = chronicle
        self._on_disk = on_disk
        self._failing = False

    def keep(self, job: Job, cluster: Cluster, states: States) -> None:
        """Begin a checkpoint; what it counts of the run so far is counted now."""
        version = version_in(states)
        path = self.keeper.due(version)
        if path is not None:
            self._chronicle.tell(CheckpointTaken(version, str(path)))
        elif self._on_disk:
            return
        sealed = cluster.archive.digests if cluster.archive.version == version and cluster.archive.checked else {}
        self.keeper.keep(states, self._so_far(job, version, usage_of(cluster)), dict(sealed))

    def keep_surely(self, job: Job, cluster: Cluster, states: States) -> bool:
        """Begin a checkpoint of states that machines are going to forget. With a journal it must be written: the last commit is
        of the old cut.
        """
        self.keep(job, cluster, states)
        if self.commits is None:
            return True
        self.hear(wait=True)
        return self.keeper.newest is not None and version_of(self.keeper.newest) == version_in(states)

    def keep_what_is_there(self, job: Job, cluster: Cluster, reason: NotEnoughMemory) -> None:
        """The run ends for lack of memory, and whoever has the states is still there, it is hoped."""
        try:
            states = cluster.collect()
        except FaultWindowExceeded as error:
            raise NotEnoughMemory(f"{reason}; and its last states could not be kept: {error}") from error
        self.keep(job, cluster, states)
        self.hear(wait=True)

    def hear(self, *, wait: bool = False) -> None:
        """Tell of those that are written now; of those that could not be, only the first in a row."""
        for outcome in self.keeper.settled(wait=wait):
            if outcome.error is None:
                self._chronicle.tell(CheckpointWritten(outcome.version, str(outcome.path)))
            elif not self._failing:
                last = self.keeper.newest
                self._chronicle.tell(CheckpointFailed(outcome.version, str(last or ""), str(outcome.error)))
            self._failing = outcome.error is not None

    def forget_commits(self) -> None:
        """The run goes on from somewhere else."""
        if self.commits is not None:
            self.commits.forget()

    def write_down(self, job: Job, notary: Notary, cluster: Cluster) -> None:
        """A step is sealed: what has come to pass up to here, for a host that is killed before the next one."""
        assert self.commits is not None
        progress = self._so_far(job, cluster.coordinator.membership.version, glance_at(cluster))
        commits, run = self.commits, self._chronicle.run_id
        commits.write(job, cluster, run, notary.mark(), progress, certified=self.keeper.certified)

    def _so_far(self, job: Job, version: int, usage: Usage) -> Progress:
        return self._chronicle.so_far(job, self.keeper, version, usage)
