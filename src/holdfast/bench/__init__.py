"""Experiments that measure what is promised; from Python they are functions that give pandas frames (see `api`)."""

from holdfast.bench.api import run_aggregation, run_detection, run_overhead, run_recovery, run_table

__all__ = ["run_aggregation", "run_detection", "run_overhead", "run_recovery", "run_table"]
