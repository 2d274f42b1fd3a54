"""The deployments of a run: its stages are placed, the cluster is brought together, and where they find no room the run waits.

place -> deploy -> room for all? --yes--> steps
  ^                     | no: Paused
  +-- others are there -+

A run is deployed at its start, after each rollback, and where its stages are cut anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from holdfast.claim import StageState, version_in
from holdfast.cluster import Cluster, Deployment
from holdfast.comeback import Return
from holdfast.commits import cut_as
from holdfast.engine import Engine
from holdfast.errors import NotEnoughMemory, StoppedWaiting
from holdfast.event import Banned, Event, Joined, Paused, WorkerLost
from holdfast.job import Job
from holdfast.placement.recut import recut
from holdfast.placement.steward import Move, Steward
from holdfast.standing import Standing

States = Mapping[int, StageState]


class Deployments:
    """See the module. `steward` watches the machines of `engine`; `standing` says who does not come along.

    `tell` gets every event with its time. `fresh(job)` is the next deployment as far as it does not depend on who is there,
    `placed(job)` is called where stages of `job` have been placed, or have found no room, before anything is told of it.
    `found` is the commit that a host has found again: machines hold the states that it lacks. `stopping` ends a wait.
    """

    def __init__(
        self,
        engine: Engine,
        steward: Steward,
        standing: Standing,
        tell: Callable[[Event, float], None],
        fresh: Callable[[Job], Deployment],
        *,
        placed: Callable[[Job], None] = lambda _job: None,
        found: Return | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.steward = steward
        self._engine = engine
        self._standing = standing
        self._tell = tell
        self._fresh = fresh
        self._placed = placed
        self._found = found
        self._stopping = stopping
        self._reason = ""

    def deploy(self, job: Job, states: States, cause: str = "", move: Move | None = None) -> tuple[Job, States, Cluster]:
        """A cluster that goes on from `states`, with the job and the states as they are cut there; `move` is tried first.

        Without those who are lost or have lied too often. Raises NotEnoughMemory where no placement has room for the stages,
        and nobody who could come would change that; StoppedWaiting where the run is stopped while it waits.
        """
        version = version_in(states)
        while True:
            try:
                placed, cut = self._place(job, states, move)
                self._placed(placed)
                cluster = self._bring(placed, cut)
                break
            except NotEnoughMemory as error:
                self._placed(job)
                self._wait(version, job, str(error))
                cause, move = cause if move is None else "machines have come or gone", None
        self._reason = ""
        if self._of_the_commit(states) is None:
            self.steward.seated(cluster.coordinator.membership.route)
        self.steward.announce(version, move.cause if move is not None else cause)
        return placed, cut, cluster

    def _of_the_commit(self, states: States) -> Return | None:
        """The commit that these states are of, if that is what the run goes on from: machines hold the others."""
        return self._found if self._found is not None and states is self._found.states else None

    def _place(self, job: Job, states: States, move: Move | None) -> tuple[Job, States]:
        """Decide who carries what; the states are cut as it wants them."""
        version, steward, layers = version_in(states), self.steward, job.plan.layers
        found = self._of_the_commit(states)
        if found is not None:
            job = cut_as(found.commit, job)
            steward.find(version, job.plan.layers, found.seats.primaries)
            return job, states
        if move is not None:
            steward.adopt(version, move)
            placement = move.placement
        else:
            placement = steward.settle(version, self._standing, layers)
        fresh = recut(states, job.recut(placement.layers).plan)
        if fresh is None:  # stages were skipped: their parameters stay together
            placement = steward.settle(version, self._standing, layers, fixed=True)
            fresh = dict(states)
        return job.recut(placement.layers), fresh

    def _bring(self, job: Job, states: States) -> Cluster:
        """The cluster, which remembers who has lied."""
        standing, placement = self._standing, self.steward.placement
        assert placement is not None
        lies = standing.lies
        for worker in standing.to_ban:
            self._tell(Banned(worker, lies[worker], version_in(states)), 0.0)
        deployment = replace(
            self._fresh(job),
            lost=frozenset(standing.lost),
            primaries=placement.primaries,
            spares=self.steward.spares(standing.lost, placement),
            hops=self.steward.hops,
        )
        cluster = Cluster(deployment, job, self._tell, self._engine)
        found = self._of_the_commit(states)
        cluster.deploy(states, version_in(states), None if found is None else found.seats)
        record = cluster.coordinator.membership
        record.lies.update(lies)
        if job.config.defence.ban_policy == "quarantine":
            record.quarantined |= lies.keys()
        return cluster

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _wait(self, version: int, job: Job, reason: str) -> None:
        """Until other machines are there than those that had no room. From here on only who is there counts."""
        beyond_help = self.steward.beyond_help(job.plan.layers)
        if beyond_help is not None and self._engine.may_come:
            raise NotEnoughMemory(beyond_help)
        while not self._has_changed(version, reason):
            if self._stopping():
                raise StoppedWaiting(f"stopped while the run waited: {reason}")

    def _has_changed(self, version: int, reason: str) -> bool:
        if not self._engine.may_come:
            raise NotEnoughMemory(f"{reason}; nobody else can come" if self._reason or self._standing.lost else reason)
        if reason != self._reason:
            self._reason = reason
            self._tell(Paused(version, reason), 0.0)
        names = set(self._engine.look_around()) - self._standing.barred
        known = self.steward.workers - self._standing.lost
        changed = self.steward.meet(names) or known != names
        for name in sorted(known - names):
            self._tell(WorkerLost(name, version, "it is not there while the run waits"), 0.0)
        for name in sorted(names - known):
            self._tell(Joined(name, version), 0.0)
        return changed
