"""Grids of runs: each cell has a hash of its content, is run once, and is kept; the rest is tables.

grid    SWEEP.toml or keyword arguments --> cells          run      cells --> records, in one process or several
cell    one run: axes, settings, key                       store    one file a record, a lock
content what the files that settings name hold             workers  the processes
frame   records --> pandas, means with intervals           api      `sweep(...)`
"""

from holdfast.sweep.api import sweep
from holdfast.sweep.cell import Cell
from holdfast.sweep.frame import frame, summary
from holdfast.sweep.grid import Grid, make_grid, read_grid
from holdfast.sweep.run import run_cells, run_training, split, time_left
from holdfast.sweep.store import Record, Store

__all__ = [
    "Cell",
    "Grid",
    "Record",
    "Store",
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
