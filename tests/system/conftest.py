"""A laboratory for whole runs: tiny models, every message through its wire encoding, and the clean run to hold them against.

`lab.run(...)` drives a cluster without what surrounds it in an `Experiment` (tokenizer, self-test, evaluation, files). Jobs
and clean runs are made once for each configuration.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, TypeVar

import pytest
import torch

from holdfast.attacks import Campaign, Ledger, Misconduct
from holdfast.cast import Troupe
from holdfast.claim import Claim, ClaimKey, Direction, Header, StageState
from holdfast.cluster import Cluster, Deployment
from holdfast.config import RunConfig, resolve
from holdfast.digest import weights_digest
from holdfast.engine import MemoryEngine
from holdfast.event import Event, Ruling, StepSealed
from holdfast.job import Job, prepare
from holdfast.message import Envelope
from holdfast.result import Counts
from holdfast.settings import merge, split_attack

TINY: Mapping[str, Any] = {
    "model": {"name": "gpt2:layers=6,width=16,heads=2"},
    "data": {"name": "synthetic", "sequence_length": 8, "vocabulary": 300, "validation_tokens": 64},
    "pipeline": {"stages": 6, "micro_batches": 2, "micro_batch_size": 2},
    "optimizer": {"clip_norm": 0.1, "warmup_steps": 2},
    "training": {"steps": 2},
    "cluster": {"wire_check": True},
}

Account = tuple[tuple[bytes, ...], bytes, tuple[float, ...]]
"""What a header says: inputs, output, norms."""
Place = tuple[int, Direction, int, int]
"""What it says it about, whatever the attempt: step, direction, stage, micro-batch."""
Kind = TypeVar("Kind")


def place(key: ClaimKey) -> Place:
    return key.step, key.direction, key.stage, key.micro_batch


@dataclass
class Result:
    """What a run came to, and everything that was said in it."""

    config: RunConfig
    cast: Troupe
    counts: Counts = field(default_factory=Counts)
    events: list[Event] = field(default_factory=list)
    posted: list[tuple[str, Header]] = field(default_factory=list)
    states: dict[int, StageState] = field(default_factory=dict)
    virtual_s: float = 0.0

    def observe(self, event: Event, seconds: float) -> None:
        self.events.append(event)
        self.counts(event, seconds)

    def overhear(self, envelope: Envelope) -> None:
        """Every message that is sent passes here."""
        message = envelope.message
        if isinstance(message, Header):
            self.posted.append((envelope.sender, message))
        elif isinstance(message, Claim) and message.header.worker == envelope.sender and message.header.signature:
            self.posted.append((envelope.sender, message.header))

    def of(self, kind: type[Kind]) -> list[Kind]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    @cached_property
    def digest(self) -> str:
        return weights_digest({name: tensor for state in self.states.values() for name, tensor in state.weights.items()})

    @property
    def ledger(self) -> Ledger:
        return self.cast.ledger

    @property
    def attacked(self) -> int:
        return len(self.ledger.keys)

    @property
    def detected(self) -> int:
        return self.counts.detected(self.ledger.keys)

    @property
    def missed(self) -> int:
        return self.counts.missed(self.ledger.keys)

    @property
    def false_alarms(self) -> int:
        return self.counts.false_alarms(self.cast)

    @property
    def convictions(self) -> set[tuple[str, ClaimKey]]:
        """Who was named as the liar about what it said. That somebody sent another state than the sealed one is no account."""
        told = [ruling for ruling in self.of(Ruling) if ruling.reason != "state"]
        return {(worker, ruling.key) for ruling in told for worker in ruling.culprits}

    @property
    def blamed(self) -> set[str]:
        return set(self.counts.blamed_workers)

    @property
    def restarted(self) -> int:
        return self.counts.steps_restarted

    @property
    def losses(self) -> list[float]:
        return [event.loss for event in self.of(StepSealed)]

    @property
    def accounts(self) -> dict[Place, set[Account]]:
        """Everything that anybody said, by what it is about."""
        found: dict[Place, set[Account]] = defaultdict(set)
        for _, header in self.posted:
            found[place(header.key)].add((header.inputs, header.output, header.norms))
        return found

    def false_accounts(self, clean: Result) -> set[tuple[str, ClaimKey]]:
        """Who said something about which claim that nobody said in the clean run: the truth, without the liars' own ledger."""
        honest = clean.accounts
        return {
            (sender, header.key)
            for sender, header in self.posted
            if (header.inputs, header.output, header.norms) not in honest[place(header.key)]
        }


def config_of(**changes: Any) -> RunConfig:
    """The tiny configuration with changes, in the short words of an `Experiment`."""
    attacks = changes.pop("attack", ())
    attacks = [attacks] if isinstance(attacks, (str, Mapping)) else attacks
    changes["attack"] = [split_attack(attack) if isinstance(attack, str) else attack for attack in attacks]
    changes["faults"] = tuple(str(fault) for fault in changes.get("faults", ()))
    return resolve(merge(TINY, changes))


@cache
def _job(config: RunConfig) -> Job:
    return prepare(config)


def job_of(config: RunConfig) -> Job:
    """Text, tokenizer, model and plan: made once, whatever the run is up against."""
    bare = config.model_copy(update={"attack": (), "faults": (), "defence": RunConfig().defence})
    network = config.cluster.model_copy(update={"jitter_s": 0.0, "loss": 0.0, "seed": 0, "wire_check": False})
    return replace(_job(bare.model_copy(update={"cluster": network})), config=config)


def execute(config: RunConfig, objects: Mapping[int, Misconduct] | None = None) -> Result:
    """A run from the first step to the last; fails where it cannot go on."""
    job = job_of(config)
    result = Result(config, Troupe(config, objects))
    cluster = Cluster(Deployment("run"), job, result.observe, MemoryEngine(job.config, result.cast))
    cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
    send = cluster.transport.send

    def overheard(envelope: Envelope) -> None:
        result.overhear(envelope)
        send(envelope)

    cluster.transport.send = overheard  # type: ignore[method-assign]
    for step in range(config.training.steps):
        broken = cluster.run_step(step)
        assert broken is None, broken
    result.states = cluster.collect()
    result.virtual_s = cluster.launcher.now
    return result


@cache
def _clean(config: RunConfig) -> Result:
    return execute(config)


class Lab:
    """See the module."""

    config = staticmethod(config_of)
    job = staticmethod(job_of)
    execute = staticmethod(execute)

    def run(self, objects: Mapping[int, Misconduct] | None = None, **settings: Any) -> Result:
        return execute(config_of(**settings), objects)

    def only(self, pattern: str, attack: str, stage: int) -> str:
        """The attack on one stage in the steps with an X: `only("X..", "zeros", 2)` strikes in the first of three."""
        wanted = [letter == "X" for letter in pattern]
        for seed in itertools.count():
            drawn = Campaign((stage,), 0.5, seed)
            if [drawn.strike(step) is not None for step in range(len(pattern))] == wanted:
                break
        return f"{attack},stages={stage},rate=0.5,seed={seed}"

    def clean(self, result: Result) -> Result:
        """The same run on a calm network, with nobody who lies or breaks, `replace` at hand."""
        config = result.config
        network = config.cluster.model_copy(update={"jitter_s": 0.0, "loss": 0.0, "seed": 0})
        defence = RunConfig().defence.model_copy(update={"name": config.defence.name})
        return _clean(config.model_copy(update={"attack": (), "faults": (), "defence": defence, "cluster": network}))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """One torch thread, as in every run: two would give other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Lab()
    torch.set_num_threads(threads)
