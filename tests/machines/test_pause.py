"""Where a deployment finds no room in the machines that are there the run waits, and goes on when others come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast import RunResult
from holdfast.bench.workshop import job_of
from holdfast.config import RunConfig, resolve
from holdfast.errors import NotEnoughMemory, StoppedWaiting
from holdfast.event import Event, Joined, Paused, Placed, RolledBack, RunStarted, StepSealed, WorkerLost
from holdfast.machines import Machines, Patience
from holdfast.placement.load import Needs
from holdfast.settings import merge
from holdfast.trainer import Trainer

from .alike import SMALL
from .hosted import PATIENCE_S

ROOMY = 10**9


def config_of(initiator: int = 1, **changes: Any) -> RunConfig:
    """Four stages on w1 and w2; the initiator has as many times what it needs for its own stages and its shadow."""
    memories = (initiator * needs(0, 3, 2), ROOMY, ROOMY, initiator * needs(0, 3, 2))
    return resolve(merge(SMALL, {"cluster": {"memories": memories}, "defence": {"deadline_s": 60.0}, **changes}))


def needs(*stages: int) -> int:
    job = job_of(resolve(SMALL))
    return Needs(job)(tuple(job.plan.layers[i] for i in stages))


@cache
def clean() -> str:
    return Trainer(resolve(SMALL)).run().weights_digest


class Run:
    """A run over machines in threads whose door stays open; `memory` is what each tells of its own, `at` gets each event."""

    def __init__(
        self, config: RunConfig, in_threads: Any, at: Callable[[Run, Event], None] = lambda _run, _event: None, **memory: int
    ) -> None:
        def prepare(crew: Any) -> None:
            crew.memory, crew.open_door = memory, True

        self.events: list[Event] = []
        self.result: RunResult | None = None
        self.stage = in_threads(config, None, prepare)
        self._at = at
        self.trainer = Trainer(config, observers=[self._observe], open_engine=self.stage.open)

    def end(self) -> Run:
        self.result = self.trainer.run()
        return self

    def _observe(self, event: Event, _seconds: float) -> None:
        self.events.append(event)
        self._at(self, event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def assert_clean(self) -> None:
        assert self.result is not None
        assert self.result.weights_digest == clean()
        kinds = [type(event) for event in self.events]
        assert kinds.index(RunStarted) < kinds.index(Paused) < kinds.index(StepSealed)


def let_in(*names: str) -> Callable[[Run, Event], None]:
    def at(run: Run, event: Event) -> None:
        if isinstance(event, Paused) and len(run.of(Paused)) <= len(names):
            run.stage.crew.start(names[len(run.of(Paused)) - 1])

    return at


def test_who_came_has_too_little_and_another_machine_takes_its_stage(in_threads: Any) -> None:
    run = Run(config_of(), in_threads, let_in("w9"), w1=10, w2=needs(2, 1), w9=needs(1)).end()
    (paused,) = run.of(Paused)
    assert "w1 would hold stages 1" in paused.reason
    assert "waits for a machine with at least" in paused.reason
    assert [event.worker for event in run.of(Joined)] == ["w9"]
    assert [event.primaries for event in run.of(Placed)] == [("initiator", "w9", "w2", "initiator")]
    run.assert_clean()


def test_what_is_told_of_the_placement_is_what_machines_have_room_for(in_threads: Any) -> None:
    """How much memory w1 has is known when it comes; w2 can hold its stage too."""
    run = Run(config_of(2), in_threads, w1=10, w2=ROOMY).end()
    assert [event.primaries for event in run.of(Placed)] == [("initiator", "w2", "w2", "initiator")]
    assert run.of(Placed)[0].memory_bytes["w2"] == needs(2, 1)
    assert run.result is not None
    assert run.result.weights_digest == clean()


def test_a_newcomer_that_has_too_little_too_does_not_end_the_wait(in_threads: Any) -> None:
    run = Run(config_of(), in_threads, let_in("w8", "w9"), w1=10, w2=needs(2, 1), w8=10, w9=needs(1))
    answers = []

    def at(run: Run, event: Event) -> None:
        if isinstance(event, Paused) and not answers:
            answers.append(run.stage.crew.start("w8"))
        if isinstance(event, Joined) and event.worker == "w8":
            run.stage.crew.start("w9")

    run._at = at
    run.end()
    assert [event.worker for event in run.of(Joined)] == ["w8", "w9"]
    assert run.of(Placed)[0].primaries == ("initiator", "w9", "w2", "initiator")
    run.assert_clean()


def test_where_a_measured_placement_finds_no_room_the_run_waits(in_threads: Any) -> None:
    config = config_of(cluster={"placement": "measured", "memories": config_of().cluster.memories})
    run = Run(config, in_threads, let_in("w9"), w1=10, w2=needs(2, 1), w9=ROOMY).end()
    (paused,) = run.of(Paused)
    assert "no placement was found that fits" in paused.reason
    assert "waits for a machine, for which" in paused.reason
    assert "w1" not in run.of(Placed)[0].primaries
    run.assert_clean()


def test_after_the_run_went_back_it_waits_for_those_who_went(in_threads: Any) -> None:
    """Both holders of stage 1 go at once, and the initiator has no room for what they held."""

    def at(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 2 and not run.of(RolledBack):
            run.stage.crew.kill("w1")
            run.stage.crew.kill("w2")
        if isinstance(event, Paused) and event.step == 0 and not back:
            back.append(event)
            run.stage.crew.start("w1")
            run.stage.crew.start("w2")

    back: list[Paused] = []
    run = Run(config_of(), in_threads, at)
    run.result = run.trainer.run()
    reason = back[0].reason
    assert "to come back" in reason
    assert {event.worker for event in run.of(WorkerLost)} == {event.worker for event in run.of(Joined)} == {"w1", "w2"}
    assert run.result.rollbacks == 1
    assert run.result.weights_digest == clean()
    assert "w1" not in run.trainer._standing.lost


def test_what_no_machine_could_change_is_refused_at_once(in_threads: Any) -> None:
    """The initiator has too little for what only it may hold."""
    memories = (needs(0, 3), ROOMY, ROOMY, needs(0, 3))
    run = Run(config_of(cluster={"memories": memories}), in_threads)
    with pytest.raises(NotEnoughMemory, match=r"initiator has .* but what nobody else may hold"):
        run.trainer.run()
    assert run.of(Paused) == []


def test_a_run_that_is_stopped_while_it_waits_ends_and_says_for_what(in_threads: Any) -> None:
    def at(run: Run, event: Event) -> None:
        if isinstance(event, Paused):
            run.trainer.stop()

    run = Run(config_of(), in_threads, at, w1=10, w2=needs(2, 1))
    with pytest.raises(
        StoppedWaiting, match="stopped while the run waited: the stages cannot be seated: w1 would hold"
    ) as left:
        run.trainer.run()
    assert left.value.exit_code == 130


@pytest.mark.timeout(240)
@pytest.mark.parametrize("placement", ["listed", "measured"])
def test_a_run_that_is_stopped_while_it_waits_for_its_first_machines_leaves_at_once(in_threads: Any, placement: str) -> None:
    """One is there, the other may come at any time."""
    run = Run(config_of(cluster={"placement": placement}), in_threads)
    prepare = run.stage.prepare

    def without_one(crew: Any) -> None:
        prepare(crew)
        crew.unplugged = {"w1"}
        threading.Timer(0.5, run.trainer.stop).start()

    run.stage.prepare, run.stage.patience = without_one, Patience(start_s=1e9)
    with pytest.raises(StoppedWaiting, match="stopped while the run waited for w1"):
        run.trainer.run()
    assert run.of(StepSealed) == []


@pytest.mark.timeout(240)
def test_a_run_that_is_stopped_before_it_has_an_engine_waits_for_nobody(in_threads: Any) -> None:
    run = Run(config_of(), in_threads)
    run.stage.patience = Patience(start_s=1e9)
    run.trainer.stop()
    with pytest.raises(StoppedWaiting, match="waited for w1, w2"):
        run.trainer.run()


@pytest.mark.timeout(240)
def test_a_later_deployment_that_waits_is_left_too(in_threads: Any) -> None:
    """Both neighbours go at once, and the run, which would wait long for them, is stopped."""

    def at(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 2 and not run.of(RolledBack):
            run.stage.crew.unplugged |= {"w1", "w2"}
            run.stage.crew.kill("w1")
            run.stage.crew.kill("w2")
        if isinstance(event, RolledBack):
            run.trainer._standing.lost.clear()
            threading.Timer(0.5, run.trainer.stop).start()

    run = Run(config_of(2), in_threads, at)
    run.stage.patience = Patience(start_s=1e9, deploy_s=1e9, answer_s=2.0, deadlock_s=PATIENCE_S)
    with pytest.raises(StoppedWaiting, match="stopped while the run waited for w1, w2"):
        run.trainer.run()
    assert len(run.of(RolledBack)) == 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("others", ["gone", "there"])
def test_who_goes_while_the_run_is_deployed_again_is_not_waited_for_without_end(
    in_threads: Any, others: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two neighbours are lost; a third machine goes when the old cluster is shut and the new one not yet built.

    Time flies where nobody is waited for but who has gone: who is there has all the time that it needs.
    """
    settings = {"model": {"name": "gpt2:layers=6,width=32,heads=2"}, "pipeline": {"stages": 6}}
    config = resolve(merge(merge(SMALL, settings), {"defence": {"deadline_s": 60.0}}))
    last = ["w1"] if others == "there" else ["w1", "w4"]
    gone, ahead_s, wait = set(last), [0.0], Machines._wait_for
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s[0], sleep=time.sleep)
    monkeypatch.setattr("holdfast.machines.time", clock)

    def wait_for(machines: Machines, names: Sequence[str]) -> None:
        ahead_s[0] += 50.0 if set(names) <= gone and not last else 0.0
        wait(machines, names)

    monkeypatch.setattr(Machines, "_wait_for", wait_for)

    def at(run: Run, event: Event) -> None:
        if isinstance(event, StepSealed) and event.step == 2 and not run.of(RolledBack):
            run.stage.crew.kill("w2")
            run.stage.crew.kill("w3")
        if isinstance(event, RolledBack) and last:
            shut = run.stage.machines._shut

            def shut_and_lose() -> None:
                shut()
                run.stage.crew.unplugged |= set(last)
                while last:
                    run.stage.crew.kill(last.pop())

            run.stage.machines._shut = shut_and_lose

    run = Run(config, in_threads, at)
    run.stage.patience = Patience(start_s=1e9, deploy_s=PATIENCE_S, answer_s=2.0, deadlock_s=PATIENCE_S)
    run.result = run.trainer.run()
    lost = [event.worker for event in run.of(WorkerLost)]
    assert lost == ["w2", "w3", *(["w1"] if others == "there" else ["w1", "w4"])]
    assert all("did not come within 200 s" in event.reason for event in run.of(WorkerLost)[2:])
    assert run.result.weights_digest == Trainer(resolve(merge(SMALL, settings))).run().weights_digest


def test_a_machine_that_goes_while_the_run_waits_is_told_as_lost(in_threads: Any) -> None:
    def at(run: Run, event: Event) -> None:
        if isinstance(event, Paused) and len(run.of(Paused)) == 1:
            run.stage.crew.kill("w2")
        if isinstance(event, WorkerLost) and event.worker == "w2":
            run.stage.crew.start("w8")
            run.stage.crew.start("w9")

    run = Run(config_of(), in_threads, at, w1=10, w2=needs(2, 1), w8=needs(2, 1), w9=needs(2, 1)).end()
    assert [event.worker for event in run.of(WorkerLost)] == ["w2"]
    assert set(run.of(Placed)[-1].primaries) == {"initiator", "w8", "w9"}
    run.assert_clean()
