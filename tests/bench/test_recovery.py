"""The experiment on recovery: what is lost by each way, to which weights, and that a broken promise is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from holdfast.bench.described import Size
from holdfast.bench.incidents import CHECKPOINT, CRASHED, EVERY, TAKEOVER, crash, incident_config, lie
from holdfast.bench.killed import Kill, kill_config, kill_some
from holdfast.bench.recovery import Plan, Recovery, cells_of, command_of, gather, is_real, quick, study_of
from holdfast.bench.recovery_figure import draw
from holdfast.bench.recovery_report import headline, sections, summary, write
from holdfast.bench.spot import Market, SpotEngine
from holdfast.bench.trace import Day, Ways, day, expected_goodput
from holdfast.event import Joined, Reseated, RolledBack, StepSealed, TakenOver, WorkerLost
from holdfast.sweep import Store
from holdfast.sweep.jobs import job_of
from holdfast.trainer import Trainer

SIZE = Size()
BRIEF = dataclasses.replace(quick(), hours=1.5, lives_h=(1.0,), ways=(Ways(TAKEOVER, 4), Ways(CHECKPOINT, 4)))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Recovery:
    return gather(BRIEF, study_of(BRIEF).run(Store(tmp_path_factory.mktemp("cells") / "out")))


# -- one thing goes wrong ------------------------------------------------------------------------------------------------


def test_a_takeover_loses_no_step_and_a_rollback_those_since_the_checkpoint() -> None:
    takeover = crash("gigabit", SIZE, TAKEOVER, (2,), "backward")
    assert (takeover.steps_lost, takeover.rollbacks, takeover.equal, takeover.formula_s) == (0, 0, True, None)
    assert takeover.extra_s > 0
    assert takeover.slower > 1.0, "one worker does the work of two, and nobody came"
    back = crash("gigabit", SIZE, CHECKPOINT, (2,), "backward")
    assert (back.steps_lost, back.rollbacks, back.equal) == (CRASHED - EVERY, 1, True)
    assert back.extra_s == pytest.approx(back.formula_s, rel=0.1)
    assert back.extra_s > takeover.extra_s


def test_two_neighbours_at_once_are_beyond_the_fault_window() -> None:
    apart, neighbours = (crash("local", SIZE, TAKEOVER, stages, "begin") for stages in ((1, 3), (1, 2)))
    assert (apart.steps_lost, apart.rollbacks, apart.equal) == (0, 0, True)
    assert (neighbours.steps_lost, neighbours.rollbacks, neighbours.equal) == (CRASHED - EVERY, 1, True)


@pytest.mark.parametrize(
    ("way", "restarted", "skipped", "replaced", "equal"),
    [
        ("duplicate,on_alert=replace", 0, 0, 4, True),
        ("duplicate,on_alert=restart", 1, 0, 0, True),
        ("duplicate,on_alert=skip", 0, 2, 0, False),
    ],
)
def test_a_lie_costs_what_the_remedy_says(way: str, restarted: int, skipped: int, replaced: int, equal: bool) -> None:
    row = lie("local", SIZE, way, 2, "forward")
    assert (row.restarted, row.skipped, row.replaced, row.equal) == (restarted, skipped, replaced, equal)
    assert row.extra_s > 0


# -- a day ---------------------------------------------------------------------------------------------------------------


def test_the_market_is_drawn_by_its_seed_and_has_its_means() -> None:
    market = Market(100.0, 50.0, 3)
    moments = market.moments("w1", 60_000.0)
    assert moments == market.moments("w1", 60_000.0)
    assert moments != market.moments("w2", 60_000.0)
    assert [there for _, there in moments] == [bool(i % 2) for i in range(len(moments))]
    times = [0.0, *(moment for moment, _ in moments)]
    stays = [after - before for before, after in zip(times[::2], times[1::2], strict=False)]
    assert 85 < sum(stays) / len(stays) < 115


@pytest.mark.parametrize("defence", [TAKEOVER, CHECKPOINT])
def test_who_goes_comes_back_and_the_weights_are_those_of_a_calm_day(defence: str) -> None:
    size = Size(seconds_per_forward=8.0)
    config = incident_config("gigabit", size, defence, steps=12, checkpoint_every=3)
    events = []
    engine = SpotEngine(config, Market(1500.0, 200.0, 1), 1e5)
    job = job_of(config)
    trainer = Trainer(config, observers=[lambda event, _: events.append(event)], job=job, open_engine=lambda: engine)
    result = trainer.run()
    assert result.weights_digest == Trainer(config, job=job).run().weights_digest
    of = {kind: [event for event in events if isinstance(event, kind)] for kind in (WorkerLost, Joined, Reseated, RolledBack)}
    assert engine.gone > 1
    assert len(of[WorkerLost]) <= engine.gone
    assert of[Joined]
    assert of[Reseated], "who came has a seat, with defences off too"
    assert of[RolledBack] if defence == CHECKPOINT else any(isinstance(event, TakenOver) for event in events)
    assert sum(isinstance(event, StepSealed) for event in events) >= 12


def test_who_comes_back_and_goes_again_in_the_same_step_does_not_end_the_run() -> None:
    """Twice back from the same step without the same worker is a run in a circle, unless the worker had been back between."""
    config = incident_config("gigabit", Size(seconds_per_forward=8.0), CHECKPOINT, steps=4, checkpoint_every=0)
    engine = SpotEngine(config, Scripted((("w2", (450.0, 460.0, 950.0, 960.0, 1450.0, 1460.0)),)), 1e5)
    events = []
    Trainer(config, observers=[lambda event, _: events.append(event)], job=job_of(config), open_engine=lambda: engine).run()
    assert [event.step for event in events if isinstance(event, RolledBack)] == [1, 1, 1]


@dataclasses.dataclass(frozen=True)
class Scripted(Market):
    """Who goes and comes when is written down."""

    script: tuple[tuple[str, tuple[float, ...]], ...] = ()
    life_s: float = 0.0
    gone_s: float = 0.0

    def __init__(self, script: tuple[tuple[str, tuple[float, ...]], ...]) -> None:
        object.__setattr__(self, "script", script)

    def moments(self, worker: str, until_s: float) -> list[tuple[float, bool]]:
        return [(moment, bool(i % 2)) for name, times in self.script if name == worker for i, moment in enumerate(times)]


def test_a_restart_takes_the_time_that_it_is_said_to_take() -> None:
    way, market = Ways(CHECKPOINT, 4), Market(1200.0, 200.0, 1)
    size = Size(seconds_per_forward=8.0)
    days = [day("gigabit", size, way, market, 1.5, restart_s) for restart_s in (0.0, 1000.0)]
    assert days[0].rollbacks > 0
    assert days[1].steps < days[0].steps


def test_the_formula_knows_its_limits() -> None:
    calm = Day(CHECKPOINT, 10, 1e9, 10.0, 24.0, 0, 100, 100, 0, 0, 0, 60.0, 0.0, 0.0)
    never = Market(1e12, 600.0)
    assert expected_goodput(calm, never, 60.0) == pytest.approx(1.0, abs=1e-3)
    assert expected_goodput(dataclasses.replace(calm, checkpoint_s=600.0), never, 60.0) == pytest.approx(0.5, abs=1e-3)
    often = Market(600.0, 0.0)
    assert expected_goodput(calm, often, 60.0) == pytest.approx(600 / (150 * 53.598), rel=1e-3)
    takeover = dataclasses.replace(calm, defence=TAKEOVER, step_s=75.0)
    assert expected_goodput(takeover, often, 60.0) == pytest.approx(0.8 / 1.5)


# -- this machine --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_costs_part_of_a_step() -> None:
    (kill,) = kill_some(kill_config(1, stages=4, width=16, micro_batches=2), 1, 0)
    assert (kill.equal, kill.rollbacks, kill.attempts) == (True, 0, 1)
    assert 0 < kill.examined <= kill.pieces


# -- what is written -----------------------------------------------------------------------------------------------------


def test_all_of_it_is_measured_once(found: Recovery, tmp_path: Path) -> None:
    assert found.findings() == []
    assert [(row.way, row.what) for row in found.incidents][:2] == [(TAKEOVER, "crash"), (CHECKPOINT, "crash")]
    takeover, back = found.trace
    assert takeover.takeovers > 0
    assert (takeover.rollbacks, takeover.computed) == (0, takeover.steps)
    assert back.rollbacks > 0
    assert back.computed > back.steps
    assert 0 < back.goodput < takeover.goodput < 1
    assert (takeover.ended, back.ended) == (None, None)
    crashes = dataclasses.replace(BRIEF, parts=("crash",))
    store, measured = Store(tmp_path / "out"), []
    first = gather(crashes, study_of(crashes).run(store, tell=measured.append))
    again = gather(crashes, study_of(crashes).run(store, tell=measured.append))
    assert again.incidents == first.incidents == [row for row in found.incidents if row.what == "crash"]
    assert len(measured) == 4


def test_every_cell_has_a_key_and_a_command_of_its_own_place() -> None:
    plan = dataclasses.replace(Plan(), seeds=(0, 1), lives_h=(3.0,))
    cells = cells_of(plan)
    assert len({cell.key for cell in cells}) == len(cells)
    (kills,) = (cell for cell in cells if cell.axes["part"] == "processes")
    assert is_real(kills)
    day = next(cell for cell in cells if cell.axes["part"] == "trace" and cell.axes["seed"] == 1)
    assert "--life-hours 3 --gone-minutes 10 --hours 24 --restart-seconds 0 --seeds 2" in command_of(day)


def test_every_row_is_written_and_drawn(found: Recovery, tmp_path: Path) -> None:
    write(tmp_path, found, "gigabit", {"commit": "0"})
    assert {path.suffix for path in draw(found, tmp_path)} == {".svg", ".pdf", ".png"}
    records = [json.loads(line) for line in (tmp_path / "recovery.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["part"] for record in records] == ["crash"] * 4 + ["lie"] * 5 + ["trace"] * 2
    text = (tmp_path / "recovery.md").read_text(encoding="utf-8")
    assert [title in text for title, _ in sections(found)] == [True] * 4
    assert all(line in text for line in summary(found))
    assert "None: takeover and replace lost no step" in text
    assert draw(Recovery([], [], []), tmp_path) == []


def test_a_part_that_is_alone_is_shown(found: Recovery) -> None:
    """A terminal saw nothing of the processes that were killed: the first section was left out, whichever it was."""
    kill = Kill("w2", 2, 0.091, 0.114, 0.009, 8.7, 10, 50, 0.258, 0, equal=True, rollbacks=0)
    killed = Recovery([], [], [], kills=[kill])
    assert [title for title, _ in headline(killed)] == ["Processes killed on this machine (real seconds)"]
    assert summary(killed) == ["processes: a kill noticed in 0.091 s; weights equal after 1 of 1 kills"]
    crashes = Recovery([row for row in found.incidents if row.what == "crash" and len(row.stages) == 1], [], [])
    assert headline(crashes) == sections(crashes) != []
    assert [title for title, _ in headline(found)] == [title for title, _ in sections(found)][1:]


def test_other_weights_are_a_finding(found: Recovery) -> None:
    spoilt = [dataclasses.replace(row, equal=False) for row in found.incidents]
    told = Recovery(spoilt, [], []).findings()
    assert sum("other weights" in line for line in told) == 5, "two takeovers, replace, restart, relay"
    lost = [dataclasses.replace(row, steps_lost=1) for row in found.incidents]
    assert sum("steps lost" in line for line in Recovery(lost, [], []).findings()) == 1
