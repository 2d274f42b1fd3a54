"""A cluster: the initiator, the other workers, the coordinator and the referee, brought together by an engine.

Built once for a run, and again after a rollback, without the workers that were lost. States enter as messages, like
everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from holdfast import seeds
from holdfast.blueprint import Builder, Sign, blueprint_of
from holdfast.checker import Checker
from holdfast.claim import Role, StageState
from holdfast.comeback import Seats
from holdfast.config import RunConfig
from holdfast.coordinator import Coordinator
from holdfast.digest import state_digest
from holdfast.engine import Engine, Ensemble, Launcher, MemoryEngine, names_of_workers
from holdfast.errors import ConfigError, FaultWindowExceeded, NotEnoughMemory
from holdfast.event import Event
from holdfast.evidence.envelope import sign_header
from holdfast.evidence.identity import Identity, derived, load, load_or_make
from holdfast.evidence.log import FILE, EvidenceLog
from holdfast.evidence.notary import Notary, Register
from holdfast.evidence.sequel import check_goes_on
from holdfast.inspector import Rewind
from holdfast.job import Job
from holdfast.launch import Deadlock, Hooks
from holdfast.likeness import Likeness
from holdfast.membership import Membership
from holdfast.message import Actor, Envelope, StateRefused, StateTransfer
from holdfast.numerics import resolve_arithmetic
from holdfast.optimizer import Clipping, clipping, learning_rate
from holdfast.placement.load import Needs
from holdfast.placement.room import Room
from holdfast.placement.stopwatch import Hops, Stopwatch
from holdfast.recover.registry import resolve_remedy
from holdfast.referee import Referee
from holdfast.route import Route, plain_route
from holdfast.stage import ARCHIVE, CHECKER, COORDINATOR, INITIATOR, REFEREE, unsigned
from holdfast.step import Inspection, Policy
from holdfast.toml import to_toml
from holdfast.verify.spotcheck import Sampling
from holdfast.worker import Worker


@dataclass
class Archive:
    """An `Actor` that collects sealed states for a checkpoint or an evaluation; others than the sealed ones it reports.

    The initiator's own stages are sealed without a digest: what the initiator sends gives it, and stands in `digests` then.
    """

    digests: dict[int, bytes] = field(default_factory=dict)
    version: int = -1
    checked: bool = True
    trusted: tuple[str, ...] = ()
    states: dict[int, StageState] = field(default_factory=dict)
    refused: int = 0
    name: str = ARCHIVE
    devices: int = 1

    def expect(self, digests: Mapping[int, bytes], version: int, trusted: tuple[str, ...], *, checked: bool) -> None:
        """Forget what was collected; from now on these states of `version` are."""
        self.states.clear()
        self.digests, self.version, self.trusted, self.checked = dict(digests), version, trusted, checked

    def receive(self, envelope: Envelope) -> list[Envelope]:
        if not isinstance(envelope.message, StateTransfer):
            return []
        state = envelope.message.state
        if state.stage not in self.digests or state.version != self.version:
            return []
        got = state_digest(state) if self.checked else b""
        if envelope.sender in self.trusted:
            self.digests[state.stage] = self.digests[state.stage] or got
        sealed = self.digests[state.stage]
        if self.checked and not sealed:
            return []  # sealed without a digest, and it comes from somebody who does not hold it
        if got == sealed or not self.checked:
            self.states.setdefault(state.stage, state)
            return []
        self.refused += 1
        return [Envelope(self.name, COORDINATOR, StateRefused(state.stage, state.version, envelope.sender, got, sealed))]

    def next_work(self, device: int) -> None:
        return None

    def execute(self, work: object) -> list[Envelope]:
        raise AssertionError("the archive computes nothing")


def _by_step(pairs: Sequence[tuple[int, int]]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for step, stage in pairs:
        found.setdefault(step, set()).add(stage)
    return found


def seats(stages: int, lost: frozenset[str]) -> tuple[str, ...]:
    """The primaries without the lost workers: a stage goes to the next worker along the pipeline.

    >>> seats(5, frozenset({"w2", "w3"}))
    ('initiator', 'w1', 'initiator', 'initiator', 'initiator')
    """
    names = names_of_workers(stages)
    return tuple(next(name for name in names[i:] if name not in lost) for i in range(stages))


@dataclass(frozen=True)
class Deployment:
    """One of the clusters that a run goes through: `name` is what headers call it, another after each rollback.

    `lost` are workers that are gone already; `notary` keeps the evidence (None: none is written); `draw` counts deployments,
    because each draws its spot checks anew; `likeness` says who computes with other bytes than whom (None: nobody does).
    `identity` is the key of the trusted members where workers have keys of their own (None: all keys follow from the seed).
    `committed` is called with the cluster when a step is sealed, before anybody is told, and after its events have been.
    `primaries` are who carries the stages (None: who is listed), and `spares` who is there besides; `hops` is what
    is known of the ways between machines.
    """

    name: str
    lost: frozenset[str] = frozenset()
    notary: Notary | None = None
    draw: int = 0
    likeness: Likeness | None = None
    identity: Identity | None = None
    committed: Callable[[Cluster], None] | None = None
    primaries: tuple[str, ...] | None = None
    spares: tuple[str, ...] = ()
    hops: Hops = field(default_factory=Hops)


class Cluster:
    """See the module. `observe` gets every event with the time of the engine's clock (None: all members in this process)."""

    launcher: Launcher
    _initiator: Worker

    def __init__(
        self, deployment: Deployment, job: Job, observe: Callable[[Event, float], None], engine: Engine | None = None
    ) -> None:
        self._job = job
        self._identities = members(job.config, deployment.identity) if self._checked else {}
        self._notary = deployment.notary or Notary(
            register(deployment.name, job.config, identity=deployment.identity) if self._checked else None
        )
        self._deployment = deployment
        self._run = deployment.name
        self._engine = engine or MemoryEngine(job.config)
        self._batch = lru_cache(maxsize=2)(job.batches.batch)
        self._observe = observe
        self.archive = Archive()

    # -- putting it together -----------------------------------------------------------------------------------------

    def deploy(self, states: Mapping[int, StageState], version: int, found: Seats | None = None) -> None:
        """Start every member and hand out the states; they count when the holders have shown their digests.

        With seats `found` machines hold the sealed states already, and `states` are those that only the trusted members had.
        """
        config = self._job.config
        route = self._route() if found is None else self._found(found)
        digests = {stage: state_digest(state) for stage, state in states.items()} if found is None else found.digests
        membership = Membership(route, version, digests, shadowed=self._shadowed)
        if found is not None:
            membership.found(found.holders)
        membership.spares = list(self._deployment.spares)
        stopwatch = Stopwatch(lambda: self.launcher.now, self._deployment.hops)
        self.coordinator = Coordinator(self._run, membership, self._policy(), self._notary, stopwatch, self._committed)
        costs, likeness = self._job.plan.costs, self._deployment.likeness
        blueprint = blueprint_of(self._job, self._run, arithmetics(config), likeness)
        builder = Builder.of(self._job, blueprint, likeness)
        trusted = partial(builder.execution, INITIATOR)
        referee = Referee(self._run, trusted, config.pipeline.micro_batches, costs, likeness=likeness)
        checker = Checker(self._run, trusted, config.pipeline.micro_batches, costs, likeness)
        initiator = self._initiator = builder.worker(INITIATOR, self._sign(INITIATOR), devices=2, batch=self._batch)
        workers = [name for name in dict.fromkeys((*route.primaries, *membership.spares)) if name != INITIATOR]
        trusted_actors: list[Actor] = [initiator, self.coordinator, referee, checker, self.archive]
        ensemble = Ensemble(trusted_actors, workers, builder, self._sign, self._notary.enroll)
        hooks = Hooks(self._observe, self.coordinator.worker_lost, lambda _envelope, _error: (), self.coordinator.worker_joined)
        self.launcher = self._engine.deploy(ensemble, hooks)
        if found is None:  # else everybody keeps the seat whose state it holds
            self._make_room(membership)
        self._notary.deployed(self._run, version, membership.route)
        target = membership.target()
        self.launcher.inject(
            Envelope(INITIATOR, holder, StateTransfer(states[i], Role.SHADOW if holder == target.shadows[i] else Role.PRIMARY))
            for i in states
            for holder in target.holders(i)
        )

    def _make_room(self, membership: Membership) -> None:
        """Now that machines are there, what they have told of their memory counts. Raises NotEnoughMemory."""
        if not self._room.lacking(membership.target()):
            return
        primaries = self._room.resettle(membership.route, membership.spares)
        if primaries is None:
            raise NotEnoughMemory(f"the stages cannot be seated: {self._room.wanted(membership.route, self._deployment.lost)}")
        idle = [name for name in membership.route.workers if name not in primaries]
        membership.spares = [*(name for name in membership.spares if name not in primaries), *idle]
        membership.start_on(self._route(primaries))

    def _sign(self, name: str) -> Sign:
        return partial(sign_header, identity=self._identities[name]) if self._checked else unsigned

    @property
    def transport(self) -> Any:
        """What carries the messages of an engine in memory, to look at them."""
        return self.launcher.transport  # type: ignore[attr-defined]

    @property
    def _checked(self) -> bool:
        return self._job.config.defence_name != "none"

    @property
    def _shadowed(self) -> bool:
        return self._job.config.shadowed

    def _found(self, found: Seats) -> Route:
        """The shadows among its holders; who else is to be one gets the state from them before the step."""
        route = self._route(found.primaries)
        return replace(route, shadows=tuple(w if w in found.holders[i] else None for i, w in enumerate(route.shadows)))

    def _route(self, primaries: tuple[str, ...] | None = None) -> Route:
        primaries = primaries or self._deployment.primaries
        primaries = primaries or seats(self._job.config.pipeline.stages, self._deployment.lost)
        jump = self._job.config.defence_name != "duplicate-only"
        return plain_route(primaries, [INITIATOR], shadowed=self._shadowed, jump=jump)

    def _policy(self) -> Policy:
        config = self._job.config
        return Policy(
            self._checked,
            resolve_remedy(config.defence.on_alert, config.defence.retries),
            config.pipeline.micro_batches,
            self._clip,
            lambda step: learning_rate(config.optimizer, step, config.training.steps),
            self._job.batches.tokens_per_step,
            config.defence.deadline_s,
            config.defence.ban_policy,
            config.defence.ban_after,
            self._transfer_s,
            self._shadowed,
            self._inspection(),
            self._deployment.likeness,
            self._job.dtype,
            _by_step(config.training.bypass),
            self._room,
            config.cluster.placement == "measured",
        )

    @cached_property
    def _room(self) -> Room:
        """What machines can hold by their own word; what they would need is worked out once it is asked for."""
        layers = self._job.plan.layers
        needs = cache(lambda: Needs(self._job))
        return Room(
            lambda stages: needs()(tuple(layers[i] for i in stages)),
            lambda worker: self._engine.introduce(worker).memory_bytes,
            shadowed=self._shadowed,
        )

    def _inspection(self) -> Inspection:
        """Each deployment draws anew, from the secret of the run."""
        config = self._job.config
        seed = seeds.derive(secret_of_draws(config), "deployment", self._deployment.draw)
        draws = Sampling(seed, config.defence.check_claims, config.check_steps)
        budget = config.defence.flag_budget if config.defence_name == "statistics" else 0.0
        return Inspection(draws, self._job.config.window, budget, config.defence.redraw_every)

    @property
    def _transfer_s(self) -> float:
        """Four times what the largest state (weights and two moments) takes on a link of the described cluster."""
        described = self._job.config.cluster
        largest = described.state_bytes or 3 * max(self._job.plan.parameter_bytes(self._job.dtype))
        return 4 * largest / described.bandwidth_bytes_per_s

    def _clip(self, norms: Mapping[int, Sequence[float]]) -> Clipping:
        """Norms by stage put into model order: stages need not be in it (OPT names its last norm before its layers)."""
        plan = self._job.plan
        by_name = {name: norm for i in norms for name, norm in zip(plan.trainable_of(i), norms[i], strict=True)}
        ordered = [by_name[name] for name in plan.model_order if name in by_name]
        return clipping(ordered, self._job.config.optimizer.clip_norm, self._job.dtype)

    # -- running -----------------------------------------------------------------------------------------------------

    def run_step(self, step: int, stopping: Callable[[], bool] = lambda: False) -> str | None:
        """Take the run from version `step` to the next; the answer says why that cannot be done, if it cannot.

        Where the machines that are left cannot hold all stages it waits for others, until `stopping`; then the coordinator is
        not idle afterwards. Raises NotEnoughMemory where no other can come.
        """
        coordinator = self.coordinator

        def over() -> bool:
            waits_in_vain = coordinator.paused is not None and stopping()
            return coordinator.idle() or coordinator.broken is not None or waits_in_vain

        self.launcher.inject(coordinator.begin(step))
        while not over():
            try:
                self.launcher.run_until(over)
            except Deadlock:
                if coordinator.paused is None:
                    raise
                if not self._engine.may_come:
                    raise NotEnoughMemory(f"before step {step}: {coordinator.paused}, and nobody can come") from None
        return coordinator.broken

    def settle(self) -> str | None:
        """Wait until every check that was drawn has come back; the answer says why the run must go back, if it must."""
        coordinator = self.coordinator
        self.launcher.run_until(lambda: coordinator.settled() or coordinator.broken is not None)
        return coordinator.broken

    def recall(self, rewind: Rewind) -> dict[int, StageState] | None:
        """The states of a version in the window, from whoever held them then; None where not all are shown any more."""
        digests = self.coordinator.inspector.digests(rewind.version)
        if digests is None:
            return None
        self.archive.expect(digests, rewind.version, (INITIATOR,), checked=True)
        self.launcher.inject(self.coordinator.recall(rewind.version, ARCHIVE))
        try:
            self.launcher.run_until(lambda: len(self.archive.states) == len(digests))
        except Deadlock:
            return None
        return dict(sorted(self.archive.states.items()))

    def _committed(self) -> None:
        """A step stands, and everybody waits to hear of it."""
        if self._deployment.committed is not None:
            self.launcher.inject(())  # what has happened so far is told first
            self._deployment.committed(self)

    def own_states(self) -> dict[int, StageState]:
        """The states of the stages that only trusted members hold, as the last step leaves them; call when it is committed: the
        initiator waits then.
        """
        route = self.coordinator.membership.route
        own = [i for i in route.stages if all(holder in route.trusted for holder in route.holders(i))]
        return {i: self._initiator.seats[i].candidate() for i in own}

    def _has_collected(self, wanted: int) -> bool:
        """Whether every state is there, and the coordinator knows who sent another one."""
        return len(self.archive.states) == wanted and self.coordinator.refusals == self.archive.refused

    def collect(self) -> dict[int, StageState]:
        """The sealed state of every stage; raises FaultWindowExceeded where no holder shows the one that was sealed."""
        wanted = self._job.config.pipeline.stages
        record = self.coordinator.membership
        self.archive.expect(record.digests, record.version, (INITIATOR,), checked=self._checked)
        self.launcher.inject(self.coordinator.collect(ARCHIVE))
        try:
            self.launcher.run_until(lambda: self._has_collected(wanted) or self.coordinator.broken is not None)
        except Deadlock:
            lacking = sorted(set(range(wanted)) - self.archive.states.keys())
            raise FaultWindowExceeded(f"no holder of stages {lacking} has sent the state that was sealed") from None
        if self.coordinator.broken is not None:
            raise FaultWindowExceeded(f"a state could not be collected: {self.coordinator.broken}")
        if self._checked:
            self._notary.collected(record.version, self.archive.digests)
        return dict(sorted(self.archive.states.items()))


def members(config: RunConfig, identity: Identity | None = None) -> dict[str, Identity]:
    """The keys of everybody who signs in a simulated run: they follow from its seed, so that it repeats to the bit.

    With an `identity`, that of the trusted members, which are all that sign here.
    """
    if identity is not None:
        return {INITIATOR: identity, COORDINATOR: identity}
    names = (*names_of_workers(config.pipeline.stages), COORDINATOR)
    return {name: derived(config.training.seed, name) for name in dict.fromkeys(names)}


def secret_of_draws(config: RunConfig) -> int:
    """In a simulation it follows from the run's seed, so that it repeats; workers are not told."""
    given = config.defence.check_seed
    return seeds.derive(config.training.seed, "spot checks") if given is None else given


def register(run: str, config: RunConfig, signer: Identity | None = None, *, identity: Identity | None = None) -> Register:
    """Who may sign in the run, for the notary; `signer` is the coordinator, where its key does not follow from the seed, and
    `identity` all the trusted members, where no key does.
    """
    keys = {name: identity.public for name, identity in members(config, identity).items()}
    derived_names = () if identity else tuple(name for name in keys if signer is None or name != COORDINATOR)
    if signer is not None:
        keys[COORDINATOR] = signer.public
    draws = config.defence.check_claims or config.check_steps or config.defence.redraw_every
    secret = secret_of_draws(config) if draws else None
    return Register(run, hashlib.sha256(to_toml(config).encode()).digest(), keys, derived_names, secret)


def open_notary(run: str, config: RunConfig, identity: Identity | None = None) -> Notary:
    """The notary of a run; it writes where the run has a directory. Where nothing is checked there is no evidence."""
    if config.defence_name == "none":
        return Notary()
    out, key = config.output.dir, config.output.key
    signer = None if key is None else load_or_make(Path(key))
    log = None if out is None else EvidenceLog(Path(out) / FILE, signer or members(config, identity)[COORDINATOR])
    return Notary(register(run, config, signer, identity=identity), log)


def check_evidence(run: str, config: RunConfig, version: int, identity: Identity | None = None) -> None:
    """Raise ConfigError where what a notary of this run would add to the evidence log in its directory, from `version` on, does
    not follow on what is there. Changes nothing.
    """
    if config.defence_name == "none" or config.output.dir is None or not (path := Path(config.output.dir) / FILE).exists():
        return
    key = None if config.output.key is None else Path(config.output.key)
    if key is not None and not key.exists():
        raise ConfigError(f"the key file {key} (output.key) is missing; {path} goes on only with the key that began it")
    check_goes_on(path, run, register(run, config, None if key is None else load(key), identity=identity).keys, version)


def arithmetics(config: RunConfig) -> dict[str, str]:
    """How each member of the described cluster computes, by name; referee and checker sit on the initiator's machine."""
    stages = config.pipeline.stages
    given = config.cluster.numerics or ("native",) * stages
    named = {name: resolve_arithmetic(way).name for name, way in zip(names_of_workers(stages), given, strict=True)}
    return {**named, REFEREE: named[INITIATOR], CHECKER: named[INITIATOR]}
