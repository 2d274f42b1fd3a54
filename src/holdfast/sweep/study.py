"""A study is a list of cells, how one is measured, and how it is repeated: what `sweep` and every `bench` have to be run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from holdfast.sweep.cell import Cell
from holdfast.sweep.record import LINES, Record, write_lines
from holdfast.sweep.run import Runner, run_cells, run_training
from holdfast.sweep.store import Store


def _its_own(cell: Cell) -> str:
    return cell.command


def _never(_cell: Cell) -> bool:
    return False


@dataclass(frozen=True)
class Study:
    """`command` gives the command line that repeats a cell. Cells that are `alone` are run one by one in this process, whatever
    the jobs: a clock would tell of its neighbours, and processes that start processes are none of a pool's. `text` is the file
    that the cells come from.
    """

    name: str
    cells: Sequence[Cell]
    runner: Runner = run_training
    command: Callable[[Cell], str] = _its_own
    alone: Callable[[Cell], bool] = _never
    text: str = ""

    @property
    def axes(self) -> list[str]:
        """In the order in which cells first have them."""
        return list(dict.fromkeys(axis for cell in self.cells for axis in cell.axes))

    def run(self, store: Store, *, jobs: int = 1, tell: Callable[[Record], None] = lambda _record: None) -> list[Record]:
        """A record for each cell, in their order; what the store has is not run again (see `run_cells`)."""
        records: dict[str, Record] = {}
        apart = [([cell for cell in self.cells if not self.alone(cell)], jobs), ([c for c in self.cells if self.alone(c)], 1)]
        for cells, at_a_time in apart:
            if cells:
                found = run_cells(cells, store, jobs=at_a_time, tell=tell, runner=self.runner, command=self.command)
                records |= {record.key: record for record in found}
        return [replace(records[cell.key], axes=dict(cell.axes)) for cell in self.cells]

    def write_grid(self, store: Store) -> None:
        """Say in the store which cells the study has. Raises ConfigError where another process fills it."""
        with store.lock():
            store.write_grid(self.name, self.axes, self.cells, self.text)

    def fill(self, store: Store, *, jobs: int = 1, tell: Callable[[Record], None] = lambda _record: None) -> list[Record]:
        """`write_grid`, `run`, and all records in `cells.jsonl` beside the store's own files, for others."""
        self.write_grid(store)
        records = self.run(store, jobs=jobs, tell=tell)
        write_lines(store.directory / LINES, records)
        return records
