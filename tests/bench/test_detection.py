"""The experiment on detection against known truth: who lies, who is caught, what it costs, what the shares are shares of."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import shlex
import sys
from pathlib import Path

import pytest

from holdfast.attacks import ATTACKS, Ledger
from holdfast.bench.cell import ALL_STAGES, HONEST, Cell, Setup, config_of, defence_tables, directions_of, honest_cell
from holdfast.bench.figure import draw
from holdfast.bench.intervals import expected_share, proportion
from holdfast.bench.measure import _innocents_named
from holdfast.bench.rows import Row, rows_of
from holdfast.bench.suites import DEFENCES, PLANTED, SUITES, Grid, plan
from holdfast.bench.table import COLUMNS, findings, frame, write
from holdfast.bench.watch import Watch
from holdfast.bench.workshop import Outcome, run_cells
from holdfast.claim import ClaimKey, Direction
from holdfast.errors import ConfigError, MissingExtra
from holdfast.event import Ruling
from holdfast.report.pipes import told_pipes
from holdfast.sweep.jobs import job_of
from holdfast.sweep.style import FORMATS
from holdfast.verify.spotcheck import Sampling

ROOT = Path(__file__).parent.parent.parent
QUICK = SUITES["quick"]
SETUP = Setup(steps=QUICK.steps)
BROKEN = """\
from dataclasses import dataclass
from holdfast.attacks import Attack

@dataclass(kw_only=True)
class Broken(Attack):
    def forge(self, honest, scene):
        raise ZeroDivisionError("a defect of the attack")
"""


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return run_cells(plan(QUICK.grid, SETUP).cells, SETUP)


@pytest.fixture(scope="module")
def table(outcomes: list[Outcome]) -> dict[tuple[str, str], Row]:
    return {(row.attack, row.defence): row for row in rows_of(outcomes, SETUP)}


# -- known truth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["sign-flip", "gaussian"])
def test_without_a_defence_every_lie_is_in_the_weights(table, attack: str) -> None:
    row = table[attack, "none"]
    assert (row.forged, row.ruled, row.detected, row.tpr) == (4, 4, 0, 0.0)
    assert (row.runs, row.runs_lied, row.runs_detected, row.runs_clean) == (1, 1, 0, 0)
    assert (row.honest_checks, row.fpr, row.steps_to_alert, row.suspects) == (0, None, None, None)
    assert (row.virtual_ratio, row.bytes_ratio, row.memory_ratio, row.referee_passes) == (1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(("attack", "forged"), [("sign-flip", 4), ("gaussian", 4), ("wrong-update", 2), ("framing", 4)])
@pytest.mark.parametrize("defence", ["duplicate", "duplicate-only"])
def test_with_duplicates_every_lie_is_caught_named_and_undone(table, attack: str, forged: int, defence: str) -> None:
    row = table[attack, defence]
    assert (row.forged, row.ruled, row.detected, row.tpr) == (forged, forged, forged, 1.0)
    assert row.false_alarms == 0
    assert 48 - 4 * forged <= row.honest_checks <= 48 - forged, "a lie takes at most its neighbours out of the count"
    assert (row.caught, row.steps_to_alert, row.suspects) == (1.0, 0.0, 2.0)
    assert (row.lies_alerted, row.lies_named, row.runs_named_rightly, row.runs_innocent_named) == (forged, forged, 1, 0)
    assert (row.runs_clean, row.steps_lost, row.rollbacks) == (1, 0.0, 0)
    assert row.referee_passes is not None
    assert row.referee_passes > 0


@pytest.mark.parametrize("defence", ["duplicate", "duplicate-only"])
def test_honest_runs_have_no_false_alarm_and_show_what_the_defence_costs(table, defence: str) -> None:
    """In each of 2 steps, each of 4 untrusted stages claims 2 micro-batches both ways, a gradient and an update."""
    row = table[HONEST, defence]
    assert (row.honest_checks, row.false_alarms, row.fpr) == (2 * 4 * (2 * 2 + 2), 0, 0.0)
    assert (row.forged, row.tpr, row.caught, row.runs_clean, row.referee_passes) == (0, None, None, 1, 0.0)
    assert 1.0 < row.virtual_ratio < 1.6
    assert 1.0 < row.memory_ratio < 2.0
    assert row.bytes_ratio > 1.0


def test_a_lie_about_headers_needs_headers(table) -> None:
    for attack in ("framing", "wrong-update"):
        row = table[attack, "none"]
        assert (row.forged, row.ruled, row.tpr, row.runs_clean) == (0, 0, None, 1)


def test_restarts_are_steps_lost() -> None:
    setup = Setup(steps=2)
    cell = Cell("sign-flip", "2", "forward", 1.0, "duplicate,on_alert=restart", 0)
    row = rows_of(run_cells([cell.clean(), cell], setup), setup)[-1]
    assert (row.steps_lost, row.runs_clean, row.tpr, row.failed) == (2.0, 1, 1.0, 0)


def test_the_jump_is_worth_what_the_knowledgeable_attacker_is_not_caught_for() -> None:
    setup = Setup(steps=2)
    cells = [Cell("other-input", "2", "forward", 1.0, defence, 0) for defence in ("duplicate", "duplicate-only")]
    caught, fooled = rows_of(run_cells([cells[0].clean(), *cells], setup), setup, cells)
    assert (caught.tpr, caught.false_alarms, caught.runs_innocent_named, caught.runs_clean) == (1.0, 0, 0, 1)
    assert (fooled.tpr, fooled.runs_innocent_named, fooled.runs_clean) == (0.0, 1, 0)
    assert fooled.false_alarms > 0


# -- spot checks ---------------------------------------------------------------------------------------------------------


def test_spot_checks_of_everything_catch_the_first_lie_and_undo_it() -> None:
    setup = Setup(steps=4)
    cell = Cell("sign-flip,worker=w2,first_step=1", ALL_STAGES, "forward", 1.0, "spot-check,check_steps=1.0", 0)
    row = rows_of(run_cells([cell.clean(), cell.unhindered(), cell], setup), setup)[-1]
    assert row.caught == row.caught_expected == 1.0
    assert (row.runs_inside_window, row.runs_inside_window_clean, row.runs_clean) == (1, 1, 1)
    assert (row.rollbacks, row.runs_named_rightly, row.false_alarms) == (1, 1, 0)
    assert row.steps_lost is not None
    assert row.steps_lost >= 1
    assert row.honest_checks > 0


def test_a_lottery_without_luck_is_expected_to_miss() -> None:
    setup = Setup(steps=1)
    cell = Cell("sign-flip", "2", "forward", 1.0, "spot-check,check_claims=1e-9,check_steps=0.0", 0)
    row = rows_of(run_cells([cell.clean(), cell.unhindered(), cell], setup), setup)[-1]
    assert (row.tpr, row.runs_clean, row.runs_inside_window) == (0.0, 0, 0)
    assert row.caught_expected == pytest.approx(2e-9)


def test_a_plan_adds_the_lies_that_nobody_hinders() -> None:
    cells = plan(Grid(("sign-flip",), ("spot-check,check_steps=0.1",), seeds=range(1)), SETUP).cells
    assert Cell("sign-flip", ALL_STAGES, "forward", 0.5, "none", 0) in cells
    assert honest_cell("none", 0) in cells


@pytest.mark.parametrize(("p", "claims"), [(0.01, 16), (0.1, 2), (0.1, 16)])
def test_collusion_is_caught_as_often_as_the_formula_says(p: float, claims: int) -> None:
    """1-(1-p)^n against the draws themselves, over 2000 secrets."""
    keys = [ClaimKey(step, 0, Direction.FORWARD, 2, m) for step in range(claims // 2) for m in range(2)]
    caught = sum(any(Sampling(secret, claims=p).draws_claim(key) for key in keys) for secret in range(2000))
    expected = expected_share(p, 0.0, [(claims, claims // 2)])
    assert expected == pytest.approx(1 - (1 - p) ** claims)
    interval = proportion(caught, 2000, confidence=0.999)
    assert interval is not None
    assert interval[0] <= expected <= interval[1]


def test_expected_shares_are_means_over_runs() -> None:
    assert expected_share(0.1, 0.0, []) is None
    assert expected_share(0.0, 0.1, [(4, 2)]) == pytest.approx(1 - 0.9**2)
    assert expected_share(0.5, 0.0, [(1, 1), (2, 1)]) == pytest.approx((0.5 + 0.75) / 2)


# -- intervals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (5, 10, 0.1871, 0.8129), (1, 20, 0.0013, 0.2487), (0, 10_000, 0.0, 0.000369)],
)
def test_intervals_are_those_of_clopper_and_pearson(successes: int, trials: int, low: float, high: float) -> None:
    assert proportion(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_an_interval_ends_where_the_count_becomes_unlikely() -> None:
    def upper_tail(share: float) -> float:
        return sum(math.comb(20, k) * share**k * (1 - share) ** (20 - k) for k in range(7, 21))

    interval = proportion(7, 20)
    assert interval is not None
    assert upper_tail(interval[0]) == pytest.approx(0.025)
    assert proportion(0, 0) is None


# -- blame ---------------------------------------------------------------------------------------------------------------


def test_only_who_lied_may_be_named() -> None:
    ledger = Ledger()
    watch = Watch(range(1, 5), ledger)
    key = ClaimKey(1, 0, Direction.FORWARD, 2, 0)
    ledger.record("w2", key, "output", b"honest", b"forged")
    watch.remember_lies()
    watch.observe(Ruling(key, ("w2",), 2, "output"), 0.0)
    assert _innocents_named(watch, 6) == ()
    watch.observe(Ruling(key, ("w3",), 2, "output"), 0.0)
    watch.observe(Ruling(ClaimKey(3, 0, Direction.UPDATE, 2), ("w2",), 2, "state"), 0.0)
    assert _innocents_named(watch, 6) == ("w2", "w3")
    ledger.taint("w2", 2, 4, weights=True)
    assert _innocents_named(watch, 6) == ("w3",)


# -- grids ---------------------------------------------------------------------------------------------------------------


def test_a_defence_is_a_name_and_any_settings() -> None:
    assert defence_tables("none") == {"defence": {"name": "none"}}
    spec = "duplicate,retries=1,cluster.latency_s=0.01,cluster.speeds=1+1+2+1+1+1.5"
    assert defence_tables(spec) == {
        "defence": {"name": "duplicate", "retries": 1},
        "cluster": {"latency_s": 0.01, "speeds": [1, 1, 2, 1, 1, 1.5]},
    }
    config = config_of(honest_cell(spec, 3), SETUP)
    assert (config.defence.retries, config.cluster.speeds, config.training.seed) == (1, (1, 1, 2, 1, 1, 1.5), 3)
    assert defence_tables("duplicate,cluster.classes=a+b")["cluster"] == {"classes": ["a", "b"]}


def test_a_clean_run_keeps_what_is_not_the_defence() -> None:
    cell = Cell("zeros", "2", "both", 0.3, "spot-check,check_steps=0.2,cluster.latency_s=0.5,defence.window=4", 9)
    assert cell.clean() == honest_cell("none,cluster.latency_s=0.5", 9)
    assert cell.clean().clean() == cell.clean()
    assert cell.unhindered() == dataclasses.replace(cell, defence="none,cluster.latency_s=0.5")
    paired = dataclasses.replace(cell, defence="duplicate,on_alert=skip,check_claims=0.1")
    assert paired.unhindered() == dataclasses.replace(cell, defence="duplicate,on_alert=skip")


def test_directions_are_the_attacks_own_unless_somebody_says() -> None:
    assert directions_of("sign-flip") == ("forward",)
    assert directions_of("gaussian") == ("backward",)
    assert directions_of("wrong-update") == ("update",)
    assert directions_of("gaussian,direction=both", ("forward",)) == ("both",)
    assert directions_of("zeros", ("every",)) == ("forward", "backward", "both")
    assert directions_of(HONEST, ("forward",)) == ("-",)
    with pytest.raises(ConfigError, match="direction must be one of gradient"):
        directions_of("wrong-gradient", ("backward",))


def test_what_an_attack_says_itself_counts_before_the_grid() -> None:
    cells = plan(Grid(("zeros,rate=0.9,stages=2-3",), ("none",), stages=("1",), rates=(0.1,), seeds=range(1)), SETUP).cells
    cell = next(cell for cell in cells if not cell.honest)
    assert (cell.rate, cell.stage) == (0.9, "2+3")
    (attack,) = config_of(cell, SETUP).attack
    assert (attack.rate, attack.stages, attack.spec) == (0.9, (2, 3), "zeros,direction=forward")


def test_a_grid_is_every_combination_with_an_honest_run_for_each_defence() -> None:
    grid = Grid(("zeros", HONEST), ("none", "duplicate"), ("1", "2-3"), ("forward", "both"), (0.3, 0.7), range(5, 7))
    cells = plan(grid, SETUP).cells
    assert len(cells) == len(set(cells)) == 2 * 2 * (1 + 2 * 2 * 2)
    assert {cell.seed for cell in cells} == {5, 6}


def test_every_attack_is_in_the_catalogue_and_every_suite_can_be_planned() -> None:
    assert {*SUITES["catalogue"].grid.attacks, *PLANTED} == set(ATTACKS)
    for suite in SUITES.values():
        small = dataclasses.replace(suite.grid, seeds=range(1))
        planned = plan(small, Setup(steps=suite.steps))
        missing = {cell.attack for cell in planned.impossible}
        assert missing == {spec for spec in small.attacks if spec.partition(",")[0] not in ATTACKS}
        known = {*DEFENCES, *small.defences}
        assert all(cell.defence in known or cell.defence.startswith("none,") for cell in planned.cells)


def test_what_a_suite_lacks_is_loud_and_what_a_user_mistypes_is_refused() -> None:
    grid = Grid(("sign-flip", "no-such-attack"), ("none", "none,no_such_setting=1"), seeds=range(1))
    planned = plan(grid, SETUP)
    assert {cell.attack for cell in planned.cells} == {HONEST, "sign-flip"}
    assert len(planned.impossible) == 4
    assert any("unknown attack 'no-such-attack'" in why for why in planned.impossible.values())
    assert any("no_such_setting" in why for why in planned.impossible.values())
    with pytest.raises(ConfigError, match="unknown attack"):
        plan(grid, SETUP, frozenset(["no-such-attack"]))
    with pytest.raises(ConfigError, match="attackable"):
        plan(Grid(("sign-flip",), ("none",), stages=("5",), seeds=range(1)), SETUP)
    with pytest.raises(ConfigError, match="--scale"):
        plan(QUICK.grid, Setup(scale="vast"))


# -- failures ------------------------------------------------------------------------------------------------------------


def test_a_failing_cell_is_kept_and_loses_no_other(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    setup = Setup(steps=1)
    grid = Grid((f"{tmp_path}/broken.py:Broken", "zeros"), ("duplicate",), rates=(1.0,), seeds=range(1))
    seen: list[Outcome] = []
    found = run_cells(plan(grid, setup).cells, setup, done=seen.append)
    assert seen == found
    rows = {row.attack: row for row in rows_of(found, setup)}
    broken = rows[grid.attacks[0]]
    assert (broken.runs, broken.failed, broken.tpr) == (0, 1, None)
    assert "ZeroDivisionError: a defect of the attack" in (broken.error or "")
    assert (rows["zeros"].tpr, rows["zeros"].failed) == (1.0, 0)
    assert "(1 failed)" in told_pipes(rows_of(found, setup), COLUMNS)
    write(tmp_path / "out", rows_of(found, setup), found, setup, {})
    draw(rows_of(found, setup), tmp_path / "out")


def test_a_run_that_stops_on_purpose_is_an_outcome_and_no_failure() -> None:
    """With nobody at the board to ask, what is withheld is never replaced."""
    setup = Setup(steps=1)
    cell = Cell("withhold", "2", "forward", 1.0, "none", 0)
    found = run_cells([cell.clean(), cell], setup)
    row = rows_of(found, setup)[-1]
    assert (row.runs, row.stopped, row.failed, row.runs_clean) == (0, 1, 0, 0)
    assert "nothing has moved" in (row.error or "")


def test_a_cell_whose_clean_run_failed_is_no_measurement(outcomes: list[Outcome]) -> None:
    clean = honest_cell("none", 0)
    spoilt = [Outcome(clean, error="lost") if outcome.cell == clean else outcome for outcome in outcomes]
    assert {row.error for row in rows_of(spoilt, SETUP)} == {"lost", "its clean run failed: lost"}


# -- what is written -----------------------------------------------------------------------------------------------------


def test_the_table_is_tidy(outcomes: list[Outcome], tmp_path: Path) -> None:
    rows = rows_of(outcomes, SETUP)
    columns = [field.name for field in dataclasses.fields(Row)]
    write(tmp_path, rows, outcomes, SETUP, {"command": "x"})
    lines = [json.loads(line) for line in (tmp_path / "detection.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [columns] * len(rows)
    assert all(value is None or isinstance(value, (str, int, float)) for line in lines for value in line.values())
    keys = [tuple(line[name] for name in ("attack", "direction", "stage", "rate", "defence")) for line in lines]
    assert len(set(keys)) == len(keys) == 15
    with (tmp_path / "detection.csv").open() as file:
        told = list(csv.DictReader(file))
    assert [list(line) for line in told] == [columns] * len(rows)
    assert [line["detected"] for line in told] == [str(row.detected) for row in rows]
    page = (tmp_path / "detection.md").read_text()
    assert "| sign-flip | forward | all | 1 | duplicate | 1 | 4/4 = 100 % [39.8, 100.0] | 0/36 = 0 % [0.0, 9.7] |" in page
    assert "None: nothing missed" in page


def test_every_column_is_explained() -> None:
    page = (ROOT / "docs/detection.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    told = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert {field.name for field in dataclasses.fields(Row)} <= told
    assert set(SUITES) <= told


def test_shares_lie_inside_their_intervals_and_counts_add_up(table) -> None:
    for row in table.values():
        for share, low, high in ((row.tpr, row.tpr_low, row.tpr_high), (row.fpr, row.fpr_low, row.fpr_high)):
            assert share is None or 0 <= low <= share <= high <= 1
        assert row.detected <= row.ruled <= row.forged
        assert row.false_alarms <= row.honest_checks
        assert row.lies_named <= row.lies_alerted
    assert list(frame([])) == [field.name for field in dataclasses.fields(Row)]
    assert set(COLUMNS) >= {"caught claims", "false alarms", "named rightly", "clean weights"}


def test_findings_name_what_went_wrong_and_how_to_see_it(outcomes: list[Outcome]) -> None:
    assert findings(outcomes, SETUP) == [], "defences off are no finding"
    wrong = [
        dataclasses.replace(
            outcome, measurement=dataclasses.replace(outcome.measurement, missed=1, innocents_named=("w3",), digest="other")
        )
        for outcome in outcomes
        if outcome.measurement is not None and outcome.cell.defence == "duplicate"
    ]
    again = [dataclasses.replace(outcome, cell=dataclasses.replace(outcome.cell, seed=1)) for outcome in wrong[:1]]
    told = findings([*outcomes[:1], *wrong, *again], SETUP)
    assert len(told) == len(wrong)
    assert told[0].startswith(
        "honest against duplicate: lies missed in 2 of 2 runs; innocent but named: w3 in 2 of 2 runs; other"
    )
    assert told[0].endswith(f"`{wrong[0].cell.command(SETUP)}`")
    stopped = findings([Outcome(outcomes[0].cell, error="no way on", stopped=True)], SETUP)
    assert stopped[0].startswith("honest against none: stopped (no way on) in 1 of 1 runs")


def test_the_command_of_a_cell_runs_that_cell(outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from holdfast.bench import workshop
    from holdfast.cli.main import app

    setup = Setup("tiny", 3, 1, ("optimizer.beta2=0.9",))
    cell = Cell("zeros,rate=0.9", "2-3", "both", 0.9, "duplicate,on_alert=skip", 4)
    seen: list[tuple[tuple[Cell, ...], Setup]] = []
    study_of = workshop.study_of
    monkeypatch.setattr(workshop, "study_of", lambda cells, given: seen.append((cells, given)) or study_of(cells[:1], given))
    words = [*shlex.split(cell.command(setup))[1:], "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, words).exit_code == 0
    cells, given = seen[0]
    assert given == setup
    assert cell in cells
    assert [found for found in cells if not found.honest] == [cell]


def test_the_figure_says_the_numbers(outcomes: list[Outcome], tmp_path: Path) -> None:
    paths = draw(rows_of(outcomes, SETUP), tmp_path)
    assert [path.suffix[1:] for path in paths] == list(FORMATS)
    assert all(path.stat().st_size > 5_000 for path in paths)
    drawing = (tmp_path / "detection.svg").read_text(encoding="utf-8")
    for word in ("sign-flip, forward", "duplicate-only", "100 %", "0 %", "no lie told", "false alarms", "virtual time"):
        assert word in drawing
    assert draw([], tmp_path / "none") == []


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, use in (
        ("scipy.stats", lambda: proportion(1, 2)),
        ("pandas", lambda: frame([])),
        ("matplotlib", lambda: draw([], tmp_path)),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtra, match=r"holdfast\[bench\]"):
            use()


# -- the workshop --------------------------------------------------------------------------------------------------------


def test_cells_of_one_seed_share_their_job_and_defences_do_not_leak_into_it() -> None:
    first = job_of(config_of(Cell("zeros", "2", "forward", 1.0, "duplicate", 0), SETUP))
    second = job_of(config_of(honest_cell("none", 0), SETUP))
    other = job_of(config_of(honest_cell("none", 1), SETUP))
    assert first.corpus is second.corpus
    assert first.corpus is not other.corpus
    assert (first.config.defence_name, second.config.defence_name, second.config.attack) == ("duplicate", "none", ())


def test_a_cell_repeats_to_the_bit() -> None:
    cell = Cell("gaussian", ALL_STAGES, "backward", 1.0, "none", 0)
    setup = Setup(steps=1)
    first, second = (run_cells([cell], setup)[0].measurement for _ in range(2))
    assert first is not None
    assert second is not None
    assert dataclasses.replace(first, wall_s=0.0) == dataclasses.replace(second, wall_s=0.0)


@pytest.mark.slow
def test_several_processes_measure_what_one_does(outcomes: list[Outcome]) -> None:
    together = run_cells([outcome.cell for outcome in outcomes], SETUP, processes=2)
    for one, other in zip(outcomes, together, strict=True):
        assert one.cell == other.cell
        assert one.measurement is not None
        assert other.measurement is not None
        assert dataclasses.replace(one.measurement, wall_s=0.0) == dataclasses.replace(other.measurement, wall_s=0.0)
