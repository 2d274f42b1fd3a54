"""A host dies in the middle of a step, is started again with the same command, and goes on from the last commit."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from holdfast import Experiment
from holdfast.checkpoint import latest_checkpoint, version_of
from holdfast.cluster import Cluster
from holdfast.digest import state_digest
from holdfast.errors import CheckpointError
from holdfast.evidence.audit_log import Status, audit
from holdfast.evidence.casebook import Law
from holdfast.evidence.log import FILE
from holdfast.host import Premises
from holdfast.journal import Commit, Journal
from holdfast.message import Envelope, SendState
from holdfast.result import RunResult
from holdfast.stage import INITIATOR
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge, misstates

from .hosted import PATIENCE_S, SMALL, Opened, Visitor, free_port, wait_for

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
        self.prepare: Callable[[Cluster], None] = lambda _cluster: None

    def open(self, prepare: Callable[[Cluster], None] = lambda _cluster: None) -> Opened:
        output = {"dir": str(self.out), **self.changes["output"]}
        return Opened(self.out, self.premises, prepare=prepare, **{**self.changes, "output": output})

    def join(self, opened: Opened, names: str = "ab", **machine: Any) -> None:
        invite = opened.invite()
        self.visitors += [Visitor(invite, self.tmp_path / name, **machine) for name in names]

    def die(self, names: str = "ab", **machine: Any) -> None:
        """The first life of the host; its door dies with it, so that who comes back comes back to the next one."""
        opened = self.open(lambda cluster: [self.prepare(cluster), fatal(cluster, lambda: opened.host.close())])
        self.join(opened, names, **machine)
        opened.thread.join(PATIENCE_S)
        assert isinstance(opened.error, Death), opened.error

    def machine(self, name: str) -> Visitor:
        return next(visitor for visitor in self.visitors if any(f"let in as {name};" in line for line in visitor.told))

    def alter(self, name: str, *, honest: bool) -> None:
        """Have a machine keep other states than it held; an honest one announces their digests, another one the sealed ones."""
        kept = self.machine(name).guest._kept
        wait_for(lambda: list(kept.holdings))
        states = [
            (digest, replace(state, weights={n: t + 1 for n, t in state.weights.items()})) for digest, state in kept.holdings
        ]
        kept._holdings = tuple((state_digest(state) if honest else digest, state) for digest, state in states)

    def events(self, *names: str) -> list[dict[str, Any]]:
        whole = (self.out / "report.jsonl").read_text().split("\n")[:-1]  # the last line may be being written
        records = map(json.loads, whole)
        return [record for record in records if not names or record["event"] in names]

    def computed_again(self) -> list[int]:
        """The steps that were begun after the host was started again, from its evidence: seals behind the last resumption."""
        found = [json.loads(line) for line in (self.out / FILE).read_text().splitlines()]
        last = max(i for i, record in enumerate(found) if record["kind"] == "resumed")
        return [record["body"]["step"] for record in found[last:] if record["kind"] == "seal"]


def fatal(cluster: Cluster, before: Callable[[], None] = lambda: None) -> None:
    """The host dies when the first claims of step `FATAL` are there, `before` it this is done."""
    coordinator = cluster.coordinator
    receive, heard = coordinator.receive, 0

    def mortal(envelope: Envelope) -> Any:
        nonlocal heard
        heard += coordinator.membership.version == FATAL and not coordinator.idle()
        if heard > 6:
            before()
            raise Death
        return receive(envelope)

    coordinator.receive = mortal  # type: ignore[method-assign]


@pytest.fixture
def scene(tmp_path: Path, visitors: list[Visitor], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scene]:
    """Who comes back does so soon, and is waited for; who does not for `stragglers_s`."""
    monkeypatch.setattr("holdfast.join.PAUSE_S", 0.1)
    monkeypatch.setattr("holdfast.admission.knock.LONGEST_PAUSE_S", 0.5)

    def scene(stragglers_s: float = PATIENCE_S, **changes: Any) -> Scene:
        monkeypatch.setattr("holdfast.comeback.STRAGGLERS_S", stragglers_s)
        return Scene(tmp_path, visitors, **{"machines": {"return_s": PATIENCE_S}, **changes})

    return scene


@pytest.mark.timeout(240)
def test_nothing_before_the_last_commit_is_computed_again(scene: Callable[..., Scene]) -> None:
    run = scene()
    run.die()
    assert version_of(latest_checkpoint(run.out / "checkpoints") or Path()) == 4
    orders: list[SendState] = []
    result = run.open(partial(collect_orders, orders)).end()
    assert run.computed_again() == list(range(FATAL, 9))
    assert [(event["version"], event["workers"]) for event in run.events("Reunited")] == [(FATAL, ["w1", "w2"])]
    assert {order.to for order in orders} == {INITIATOR}, "who holds a state keeps it; only the initiator's shadow is made anew"
    assert_clean(run, result)


def assert_clean(run: Scene, result: RunResult) -> None:
    assert result.weights_digest == clean().weights_digest
    assert (result.train_loss, result.tokens, result.rollbacks) == (clean().train_loss, clean().tokens, 0)
    assert [event["step"] for event in run.events("StepSealed")] == list(range(9))
    assert audit((run.out / FILE).read_bytes(), Law(compare, judge, misstates)).status is Status.INTACT


def collect_orders(orders: list[SendState], cluster: Cluster) -> None:
    """What states are ordered to travel before steps."""
    transfers = cluster.coordinator.membership.transfers

    def heard() -> list[tuple[str, SendState]]:
        found = transfers()
        orders.extend(order for _, order in found)
        return found

    cluster.coordinator.membership.transfers = heard  # type: ignore[method-assign]


def assert_from_checkpoint(run: Scene, result: RunResult, why: str) -> None:
    """It said why, went back to the last certified checkpoint, and ends clean all the same."""
    (aside,) = run.events("JournalSetAside")
    assert aside["version"] == 4
    assert why in aside["reason"]
    assert run.events("Reunited") == []
    assert run.computed_again() == list(range(4, 9))
    assert_clean(run, result)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_again_before_it_has_sealed_anything(scene: Callable[..., Scene]) -> None:
    run = scene()
    run.die()
    again = run.open(fatal)
    again.thread.join(PATIENCE_S)
    assert isinstance(again.error, Death)
    result = run.open().end()
    assert [event["version"] for event in run.events("Reunited")][-1] == FATAL
    assert run.computed_again() == list(range(FATAL, 9))
    assert_clean(run, result)


@pytest.mark.timeout(240)
def test_a_commit_that_could_not_be_written_down_was_told_to_nobody(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when step 6 is sealed: the run ends with a clear word, its machines wait, and step 6 is taken again."""
    write, fsync = Journal.write, os.fsync

    def full(journal: Journal, commit: Commit, states: Any) -> None:
        writer = threading.get_ident()  # checkpoints are written by others meanwhile

        def refuse(file: int) -> None:
            if threading.get_ident() == writer:
                raise OSError(28, "No space left on device")
            fsync(file)

        with pytest.MonkeyPatch.context() as patch:
            if commit.version == FATAL + 1:
                patch.setattr("os.fsync", refuse)
            write(journal, commit, states)

    run = scene()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", full)
        opened = run.open()
        run.join(opened)
        opened.thread.join(PATIENCE_S)
    assert isinstance(opened.error, CheckpointError)
    assert "No space left" in str(opened.error)
    result = run.open().end()
    assert run.computed_again() == list(range(FATAL, 9))
    assert_clean(run, result)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_machine_that_died_too_is_replaced_by_its_shadow(scene: Callable[..., Scene]) -> None:
    run = scene(stragglers_s=0.5)
    run.die()
    run.machine("w1").end()
    result = run.open().end()
    assert [event["workers"] for event in run.events("Reunited")] == [["w2"]]
    assert run.computed_again() == list(range(FATAL, 9))
    assert_clean(run, result)


@pytest.mark.timeout(240)
def test_who_did_not_come_back_has_no_seat_when_the_run_goes_back(scene: Callable[..., Scene]) -> None:
    """w1 died with the host, w2 comes back and goes before its first step: what is deployed then waits for neither."""
    run = scene(stragglers_s=0.5)
    run.die()
    run.machine("w1").end()
    leave = iter([run.machine("w2").end])
    result = run.open(lambda _cluster: next(leave, lambda: None)()).end()
    assert [event["workers"] for event in run.events("Reunited")] == [["w2"]]
    (back,) = run.events("RolledBack")
    assert back["version"] == 4
    assert run.events("Placed")[-1]["primaries"] == ["initiator"] * 4
    assert result.weights_digest == clean().weights_digest


@pytest.mark.timeout(240)
def test_a_stage_that_nobody_holds_takes_the_run_back_to_its_checkpoint(scene: Callable[..., Scene]) -> None:
    run = scene()
    run.die()
    for visitor in list(run.visitors):
        visitor.end()
    opened = run.open()
    run.join(opened)  # the same machines, started anew
    assert_from_checkpoint(run, opened.end(), "no machine is there that keeps stages 1, 2 as sealed in version 6")


@pytest.mark.timeout(240)
def test_a_machine_that_shows_another_state_is_not_gone_on_from(scene: Callable[..., Scene]) -> None:
    """w1 keeps another state of stage 1 and says so; w2 shadowed it."""
    run = scene()
    run.die()
    run.alter("w1", honest=True)
    result = run.open().end()
    assert [event["workers"] for event in run.events("Reunited")] == [["w2"]]
    assert run.computed_again() == list(range(FATAL, 9))
    assert_clean(run, result)


@pytest.mark.timeout(240)
def test_a_machine_that_lies_about_what_it_holds_is_caught_in_the_step(scene: Callable[..., Scene]) -> None:
    """w1 says that it holds the sealed state, and computes from another one."""
    run = scene()
    run.die()
    run.alter("w1", honest=False)
    result = run.open().end()
    assert [event["workers"] for event in run.events("Reunited")] == [["w1", "w2"]]
    assert set(result.blamed_workers) == {"w1"}
    assert run.computed_again() == list(range(FATAL, 9))
    assert_clean(run, result)


@pytest.mark.timeout(240)
def test_a_liar_that_is_the_last_holder_takes_the_run_back_to_its_checkpoint(scene: Callable[..., Scene]) -> None:
    """w1 is gone, and w2 says that it holds both stages, and has another state of each: what it passes on is hashed."""
    run = scene(stragglers_s=0.5)
    run.die()
    run.machine("w1").end()
    run.alter("w2", honest=False)
    opened = run.open()
    back = wait_for(lambda: run.events("RolledBack"))
    assert back[0]["version"] == 4
    assert "both holders of a stage are lost, w2 last (it sent the coordinator another state" in back[0]["reason"]
    run.join(opened, "a" if run.machine("w1") is run.visitors[0] else "b")
    result = opened.end()
    assert result.weights_digest == clean().weights_digest
    assert result.rollbacks == 1
    assert result.tokens == clean().tokens


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "damage", ["truncated", pytest.param("states", marks=pytest.mark.slow), pytest.param("replayed", marks=pytest.mark.slow)]
)
def test_a_damaged_journal_is_refused(scene: Callable[..., Scene], damage: str) -> None:
    run = scene()
    older = Commits(run, damage == "replayed")
    run.die()
    record, states = (sorted((run.out / "journal").glob(f"{kind}-*"))[-1] for kind in ("commit", "states"))
    if damage == "truncated":
        record.write_bytes(record.read_bytes()[:-40])
    elif damage == "states":
        states.write_bytes(states.read_bytes()[:-4] + b"nope")
    else:
        older.put_back()
    why = {"truncated": "torn or altered", "states": "does not hold the state of stage", "replayed": "the journal is old"}
    assert_from_checkpoint(run, run.open().end(), why[damage])


class Commits:
    """A copy of the journal as it was after step 3."""

    def __init__(self, run: Scene, wanted: bool) -> None:
        self._run = run
        if wanted:
            run.prepare = self._copy_at

    def _copy_at(self, cluster: Cluster) -> None:
        begin = cluster.coordinator.begin

        def copying(step: int) -> Any:
            if step == 4:
                shutil.copytree(self._run.out / "journal", self._run.tmp_path / "older")
            return begin(step)

        cluster.coordinator.begin = copying  # type: ignore[method-assign]

    def put_back(self) -> None:
        shutil.rmtree(self._run.out / "journal")
        shutil.copytree(self._run.tmp_path / "older", self._run.out / "journal")


@pytest.mark.timeout(240)
def test_without_a_journal_it_goes_on_from_its_checkpoint(scene: Callable[..., Scene]) -> None:
    run = scene(machines={"journal": False})
    opened = run.open(fatal)
    run.join(opened)
    opened.thread.join(PATIENCE_S)
    assert isinstance(opened.error, Death)
    assert not (run.out / "journal").exists()
