"""Grids of runs: each cell has a hash of its content, is run once, and is kept; the rest is tables.

grid     SWEEP.toml or keyword arguments --> cells         run       cells --> records, in one process or several
cell     one run: axes, settings, key                      store     one file a record, a lock
content  what the files that settings name hold            workers   the processes
record   what a cell came to, and where                    jobs      what runs have in common
frame    records --> pandas, means with intervals          api       `sweep(...)`
sources  directories --> records                           table, text, draw, page   records --> reports
"""

from holdfast.sweep.api import sweep
from holdfast.sweep.cell import Cell
from holdfast.sweep.frame import frame, summary
from holdfast.sweep.grid import Grid, make_grid, read_grid
from holdfast.sweep.record import Record
from holdfast.sweep.run import run_cells, run_training, split, time_left
from holdfast.sweep.store import Store
from holdfast.sweep.study import Study

__all__ = [
    "Cell",
    "Grid",
    "Record",
    "Store",
    "Study",
    "frame",
    "make_grid",
    "read_grid",
    "run_cells",
    "run_training",
    "split",
    "summary",
    "sweep",
    "time_left",
]
