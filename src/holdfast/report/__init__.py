"""What a run leaves for people to read: a line an event, a page a comparison, progress while it goes.

    event --> JsonlReport --> report.jsonl --> read_run --> RunRecord --> render_html, render_markdown, render_csv
          --> progress (terminal), TensorBoard

An observer is called with every event and its time by the run's clock; none of them changes what the run does.
"""

from __future__ import annotations

from holdfast.report.html import render_html
from holdfast.report.jsonl import JsonlReport, read_report
from holdfast.report.log import Log, LogFile
from holdfast.report.record import RunRecord, make_record, read_result, read_run, write_run
from holdfast.report.tables import render_csv, render_markdown
from holdfast.report.tensorboard import TensorBoard
from holdfast.report.terminal import LineProgress, LiveProgress, Observer, open_progress

__all__ = [
    "JsonlReport",
    "LineProgress",
    "LiveProgress",
    "Log",
    "LogFile",
    "Observer",
    "RunRecord",
    "TensorBoard",
    "make_record",
    "open_progress",
    "read_report",
    "read_result",
    "read_run",
    "render_csv",
    "render_html",
    "render_markdown",
    "write_run",
]
