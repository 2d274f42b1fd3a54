"""The commits of one run, as its trainer sees them: written down as they are made, looked for when the host starts again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.comeback import Comeback, Return, Reunion, check_fits, last_commit
from holdfast.errors import CheckpointError, JournalRefused
from holdfast.evidence.log import FILE
from holdfast.job import Job
from holdfast.journal import Commit, Journal
from holdfast.progress import Progress

if TYPE_CHECKING:
    from holdfast.cluster import Cluster
    from holdfast.config import DefenceConfig


class Commits:
    """The commits of `job` in `journal`, held against the evidence log in the run's directory `out`."""

    def __init__(self, journal: Journal, job: Job, out: Path) -> None:
        self._journal = journal
        self._job = job
        self._out = out

    def look(self, engine: object, run: str, version: int, stopping: Callable[[], bool]) -> Return | str | None:
        """The last commit of `run`, if it is newer than the checkpoint of `version` and machines still hold it; else why not.

        None where there is nothing to look for, or nobody who could come back. Nothing is changed.
        """
        if not isinstance(engine, Reunion):
            return None
        config = self._job.config
        try:
            commit = last_commit(self._journal, run, self._out / FILE, version)
            if commit is None:
                return None
            states = self._journal.states(commit)
            check_fits(commit, states, cut_as(commit, self._job))
            lies = Counter(Progress.from_json(commit.progress).lies)
            comeback = Comeback(engine, config.machines.return_s, stopping)
            return comeback.find(commit, states, frozenset(too_many(lies, config.defence)))
        except CheckpointError as error:
            return str(error)

    def write(
        self, job: Job, cluster: Cluster, run: str, mark: tuple[int, bytes], progress: Progress, *, certified: bool
    ) -> None:
        """A step of `job`, cut as it is now, is sealed, and nobody has been told: put on the disk what a host that is killed
        now must find again.
        """
        sealed, plan = cluster.coordinator.membership, job.plan
        route = sealed.route
        members = [worker for worker in (*route.workers, *sealed.spares) if worker not in route.trusted]
        commit = Commit(
            run,
            sealed.version,
            sealed.version * job.batches.tokens_per_step,
            tuple(plan.layers),
            tuple(sealed.digests[stage] for stage in route.stages),
            route.primaries,
            tuple(shadow or "" for shadow in route.shadows),
            tuple(members),
            cluster.coordinator.settled(),
            certified,
            mark,
            progress.to_json(),
        )
        self._journal.write(commit, cluster.own_states())

    def forget(self) -> None:
        """The run goes on from somewhere else."""
        self._journal.clear()


def cut_as(commit: Commit, job: Job) -> Job:
    """`job` cut as it was at `commit`, where runs choose their cut; else as it is.

    Raises JournalRefused where the layers of `commit` are not those of the model.
    """
    if job.config.cluster.placement != "measured":
        return job
    ends = [0, *(hi for _, hi in commit.cut)]
    whole = ends[-1] == job.plan.layers[-1][1] and all(lo < hi for lo, hi in commit.cut)
    if len(commit.cut) != job.plan.stages or list(commit.cut) != list(pairwise(ends)) or not whole:
        raise JournalRefused(f"its stages are cut as no {job.plan.stages} stages of this model can be")
    return job.recut(commit.cut)


def too_many(lies: Counter[str], policy: DefenceConfig) -> list[str]:
    """Who has lied so often that it gets no seat any more."""
    return sorted(name for name in lies if lies[name] >= policy.ban_after) if policy.ban_policy == "ban" else []
