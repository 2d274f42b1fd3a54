"""A host dies in the middle of a step, is started again with the same command, and goes on from the last commit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.checkpoint import latest_checkpoint, version_of
from holdfast.cluster import Cluster
from holdfast.evidence.audit_log import Status, audit
from holdfast.evidence.log import FILE
from holdfast.host import Premises
from holdfast.message import Envelope
from holdfast.result import RunResult
from holdfast.verify import referee

from .hosted import SMALL, Opened, Visitor, free_port

CHANGES: dict[str, Any] = {"training": {"steps": 9}, "output": {"checkpoint_every": 4}}
FATAL = 6


class Death(Exception):
    """The host dies here."""


@cache
def clean() -> RunResult:
    return Experiment({**SMALL, "training": {"steps": 9}}).run()


class Scene:
    """An open run whose host dies in the middle of step `FATAL`, and can be started again at the same place."""

    def __init__(self, tmp_path: Path, visitors: list[Visitor], **changes: Any) -> None:
        self.out = tmp_path / "run"
        self.tmp_path = tmp_path
        self.visitors = visitors
        self.changes = {**CHANGES, **changes}
        self.premises = Premises(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", uses=6)
        self.told: list[str] = []

    def open(self, prepare: Callable[[Cluster], None] = lambda _cluster: None) -> Opened:
        output = {"dir": str(self.out), **self.changes["output"]}
        return Opened(self.out, self.premises, prepare=prepare, **{**self.changes, "output": output})

    def join(self, opened: Opened, names: str = "ab", **machine: Any) -> None:
        invite = opened.invite()
        self.visitors += [Visitor(invite, self.tmp_path / name, **machine) for name in names]

    def die(self, names: str = "ab", **machine: Any) -> None:
        """The first life of the host."""
        opened = self.open(fatal)
        self.join(opened, names, **machine)
        opened.thread.join(60)
        assert isinstance(opened.error, Death), opened.error

    def events(self, *names: str) -> list[dict[str, Any]]:
        records = map(json.loads, (self.out / "report.jsonl").read_text().splitlines())
        return [record for record in records if not names or record["event"] in names]

    def computed_again(self) -> list[int]:
        """The steps that were begun after the host was started again, from its evidence: seals behind the last resumption."""
        found = [json.loads(line) for line in (self.out / FILE).read_text().splitlines()]
        last = max(i for i, record in enumerate(found) if record["kind"] == "resumed")
        return [record["body"]["step"] for record in found[last:] if record["kind"] == "seal"]


def fatal(cluster: Cluster) -> None:
    """The host dies when the first claims of step `FATAL` are there."""
    coordinator = cluster.coordinator
    receive, heard = coordinator.receive, 0

    def mortal(envelope: Envelope) -> Any:
        nonlocal heard
        heard += coordinator.membership.version == FATAL and not coordinator.idle()
        if heard > 6:
            raise Death
        return receive(envelope)

    coordinator.receive = mortal  # type: ignore[method-assign]


@pytest.fixture
def scene(tmp_path: Path, visitors: list[Visitor]) -> Callable[..., Scene]:
    return lambda **changes: Scene(tmp_path, visitors, **changes)


@pytest.mark.timeout(120)
def test_nothing_before_the_last_commit_is_computed_again(scene: Callable[..., Scene]) -> None:
    run = scene()
    run.die()
    assert version_of(latest_checkpoint(run.out / "checkpoints") or Path()) == 4
    moved = Counted()
    result = run.open(moved.watch).end()
    assert run.computed_again() == list(range(FATAL, 9))
    assert [(event["version"], len(event["workers"])) for event in run.events("Reunited")] == [(FATAL, 2)]
    assert moved.states == 0, "who holds a state already keeps it, and it does not travel"
    assert result.weights_digest == clean().weights_digest
    assert (result.train_loss, result.tokens, result.rollbacks) == (clean().train_loss, clean().tokens, 0)
    assert [event["step"] for event in run.events("StepSealed")] == list(range(9))
    assert audit((run.out / FILE).read_bytes(), referee).status is Status.INTACT


class Counted:
    """Counts the states that machines send in the first steps."""

    def __init__(self) -> None:
        self.states = 0

    def watch(self, cluster: Cluster) -> None:
        transfers = cluster.coordinator.membership.transfers

        def counted() -> Any:
            orders = transfers()
            self.states += len(orders)
            return orders

        cluster.coordinator.membership.transfers = counted  # type: ignore[method-assign]


assert time
