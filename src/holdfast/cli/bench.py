"""`holdfast bench`: the experiments that measure what is promised, one module each."""

from __future__ import annotations

import typer

from holdfast.cli import (
    bench_aggregation,
    bench_backdoor,
    bench_detection,
    bench_overhead,
    bench_recovery,
    bench_roc,
    bench_tables,
)

app = typer.Typer(help="Measure what is promised, on grids of small runs.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    pass


for _module in (bench_tables, bench_detection, bench_aggregation, bench_overhead, bench_recovery, bench_roc, bench_backdoor):
    _module.register(app)
