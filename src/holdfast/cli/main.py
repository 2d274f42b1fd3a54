"""The entry point, and the border where errors become one line and an exit code: nothing below prints a traceback.

Exit codes: 0 the promised result, 1 a finding, 2 usage, 3 the machine or the installation, 4 the network, 5 not finished,
130 stopped by hand.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

import holdfast
from holdfast.cli import (
    audit,
    bench,
    demo,
    doctor,
    evaluate,
    export,
    host,
    invite,
    join,
    models,
    new,
    nodes,
    report,
    status,
    sweep,
    train,
)
from holdfast.errors import HoldfastError

INTERNAL_ERROR = 1
INTERRUPTED = 130
WIDEST = 120
"""Columns of help, where the terminal has so many."""

app = typer.Typer(
    name="holdfast",
    help="Train language models in a pipeline of machines that may fail, spy or lie, with the same weights as if they had not.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"holdfast {holdfast.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; allowed anywhere on the line.")
    ] = False,
) -> None:
    pass


for _module in (demo, train, sweep, evaluate, models, doctor, export, report, audit, host, invite, join, nodes, status):
    _module.register(app)
app.add_typer(bench.app, name="bench")
app.add_typer(new.app, name="new")


LONGEST_ERROR = 3000
"""Signs of an error that are shown: a file may have put anything into it."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    words, debug = _without_debug(sys.argv[1:] if arguments is None else arguments)
    sys.argv = ["holdfast", *words]  # what a run records as its command, wherever the program lies
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(args=words, prog_name="holdfast")
    except HoldfastError as error:
        _fail(str(error), error.exit_code, debug=debug)
    except KeyboardInterrupt:
        _fail("stopped", INTERRUPTED, debug=debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a full disk, a vanished folder
        _fail(f"the system refused a file: {error}; make room or give permission, then go on with --resume", 3, debug=debug)
    except Exception as error:  # noqa: BLE001  (the one border: whatever it is, the user gets one line)
        told = f"{type(error).__name__}: {error}".strip().rstrip(":")
        _fail(f"unexpected {told}\nThis is a defect of Holdfast; run again with --debug for the traceback.", 1, debug=debug)
    sys.exit(0)


def _fail(message: str, code: int, *, debug: bool) -> NoReturn:
    if debug:
        import traceback

        traceback.print_exc()
    elif len(message) > LONGEST_ERROR:
        message = f"{message[:LONGEST_ERROR]}... (and more; --debug shows it)"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    """`--debug` may stand anywhere before a lone `--`; HOLDFAST_DEBUG=1 means the same."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for index, word in enumerate(words) if word != "--debug" or index > end]
    return kept, len(kept) != len(words) or os.environ.get("HOLDFAST_DEBUG", "") not in ("", "0")
