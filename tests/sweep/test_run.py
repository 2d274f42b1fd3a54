"""Cells are run once, kept one by one, and lose nothing to those that fail."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.sweep import Cell, Record, Store, make_grid, run_cells, time_left


@pytest.fixture(scope="module")
def runners() -> ModuleType:
    """The module beside this one, under a name that a spawned process can import too."""
    here = str(Path(__file__).parent)
    if here not in sys.path:
        sys.path.append(here)
    import runners  # type: ignore[import-not-found]

    return runners


def cells(seeds: int = 4) -> tuple[Cell, ...]:
    return make_grid({}, grid={"steps": [5]}, seeds=seeds).cells


def test_what_is_there_is_not_run_again(tmp_path: Path, runners: ModuleType) -> None:
    ran: list[str] = []

    def runner(cell: Cell) -> dict[str, Any]:
        ran.append(cell.name)
        return {"x": cell.config.training.seed}

    store = Store(tmp_path)
    first = run_cells(cells(2), store, runner=runner)
    again = run_cells(cells(3), store, runner=runner)
    assert ran == ["steps 5, seed 0", "steps 5, seed 1", "steps 5, seed 2"]
    assert again[:2] == first
    assert [record.result for record in again] == [{"x": 0}, {"x": 1}, {"x": 2}]


def test_cells_of_one_key_are_run_once_and_keep_their_own_axes(tmp_path: Path) -> None:
    ran = []
    twins = [Cell({"name": "one"}, {}), Cell({"name": "other"}, {"training": {"seed": 0}})]
    records = run_cells(twins, Store(tmp_path), runner=lambda cell: ran.append(cell) or {})
    assert len(ran) == 1
    assert [record.axes for record in records] == [{"name": "one"}, {"name": "other"}]


def test_a_record_says_where_it_comes_from(tmp_path: Path) -> None:
    (record,) = run_cells(cells(1), Store(tmp_path), runner=lambda _cell: {"x": float("inf")})
    assert record.command == "holdfast train --set training.steps=5"
    assert {"commit", "torch", "machine", "command"} <= set(record.environment)
    assert record.started <= record.ended
    assert Store(tmp_path).records()[0].result == {"x": "inf"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_fails_does_not_stop_the_others(jobs: int, tmp_path: Path, runners: ModuleType) -> None:
    seen: list[Record] = []
    chosen = cells(5) if jobs > 1 else [cell for cell in cells(5) if cell.axes["seed"] != 3]
    records = run_cells(chosen, Store(tmp_path), jobs=jobs, runner=runners.stumble, tell=seen.append)
    told = {record.axes["seed"]: record.error for record in records}
    assert (told[0], told[4]) == (None, None)
    assert told[1] == "no text for seed 1"
    assert told[2] == "unexpected ZeroDivisionError: a defect"
    assert jobs == 1 or "ended by signal 9" in str(told[3])
    assert len(seen) == len(chosen)
    again = run_cells(chosen, Store(tmp_path), runner=runners.pretend)
    assert all(record.ok for record in again)
    assert again[0].started == records[0].started


def test_several_processes_compute_with_one_thread_each_and_end(tmp_path: Path, runners: ModuleType) -> None:
    records = run_cells(cells(3), Store(tmp_path), jobs=2, runner=runners.pretend)
    assert {record.result["threads"] for record in records if record.result} == {"1"}
    assert [record.axes["seed"] for record in records] == [0, 1, 2]
    assert multiprocessing.active_children() == []


KILLED = """
import sys
from holdfast.sweep import Cell, Store, run_cells
from runners import linger
if __name__ == "__main__":
    run_cells([Cell({}, {"data": {"name": name}}) for name in sys.argv[2:]], Store(sys.argv[1]), jobs=2, runner=linger)
"""


def test_no_process_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(KILLED)
    files = [tmp_path / "one", tmp_path / "two"]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path / "store", *files], env=here)
    while not all(file.exists() and file.read_text() for file in files):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while any(_runs(int(file.read_text())) for file in files):  # the test's own limit ends this where they stay
        time.sleep(0.05)


def _runs(process: int) -> bool:
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False).stdout
    return bool(told.strip()) and not told.startswith("Z")


def test_an_interrupt_leaves_what_ended(tmp_path: Path) -> None:
    def runner(cell: Cell) -> dict[str, Any]:
        if cell.config.training.seed == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run_cells(cells(4), Store(tmp_path), runner=runner)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2
    assert len(run_cells(cells(4), Store(tmp_path), runner=lambda _cell: {})) == 4


def test_two_sweeps_do_not_fill_one_store(tmp_path: Path) -> None:
    with Store(tmp_path).lock(), pytest.raises(ConfigError, match=r"another sweep .* is filling"):
        run_cells(cells(1), Store(tmp_path), runner=lambda _cell: {})
    run_cells(cells(1), Store(tmp_path), runner=lambda _cell: {})


DAMAGES = {
    "half": lambda text: text[: len(text) // 2],
    "empty": lambda _text: "",
    "another number": lambda text: text.replace('"x": 0', '"x": 1'),
    "another version": lambda text: text.replace('"schema": 1', '"schema": 99'),
    "another cell": lambda text: text.replace(json.loads(text)["key"], "0" * 64),
    "a list": lambda _text: "[]",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_is_not_whole_is_refused_and_redone(damage: str, tmp_path: Path) -> None:
    runs = []

    def runner(cell: Cell) -> dict[str, Any]:
        runs.append(cell)
        return {"x": 0}

    (record,) = run_cells(cells(1), Store(tmp_path), runner=runner)
    path = tmp_path / "cells" / f"{record.key}.json"
    path.write_text(DAMAGES[damage](path.read_text()))
    with pytest.raises(DataError, match="is no record of a cell"):
        Store(tmp_path).records()
    store = Store(tmp_path)
    run_cells(cells(1), store, runner=runner)
    assert len(runs) == 2
    assert "it is run again" in store.refused[0]
    assert Store(tmp_path).records()[0].result == {"x": 0}


def test_leftovers_of_a_killed_write_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/.tmp-x.json-1-2").write_text("half")
    run_cells(cells(1), Store(tmp_path), runner=lambda _cell: {})
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{cells(1)[0].key}.json"]


def test_the_time_left_is_that_of_cells_alike() -> None:
    grid = make_grid({}, grid={"steps": [5, 50]}, seeds=2).cells
    slow = Record("a", {"steps": 50, "seed": 0}, {}, {}, seconds=10.0)
    fast = Record("b", {"steps": 5, "seed": 0}, {}, {}, seconds=1.0)
    waiting = [cell for cell in grid if cell.axes["seed"] == 1]
    assert time_left(waiting, [slow, fast]) == 11.0
    assert time_left(waiting, [slow, fast], jobs=2) == 10.0
    assert time_left(waiting, [fast]) == 2.0
    assert time_left(waiting, []) is None
