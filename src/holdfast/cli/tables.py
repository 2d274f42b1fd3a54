"""Tables of what machines of strangers say of themselves: nothing in them is markup, and control characters show as ?."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def plain(value: object) -> str:
    """What can be printed of a value, on one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value))


def show(headings: Sequence[str], rows: Iterable[Sequence[object]], *, nothing: str = "") -> None:
    """Print a table, or `nothing` where it would be empty. Colours only on a terminal, and not with NO_COLOR."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = [[Text(plain(cell)) for cell in row] for row in rows]
    if not lines:
        if nothing:
            print(nothing)
        return
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # who reads a pipe has no edge to wrap at
    console.print(table)


def ago(seconds: float | None) -> str:
    """A span for people: 0.4 s, 12 s, 3 min, 5 h, 2 d; a dash for None.

    >>> ago(0.44), ago(200), ago(None)
    ('0.4 s', '3 min', '-')
    """
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for unit, size in (("d", 172800), ("h", 7200)):
        if seconds >= size:
            return f"{seconds / (size / 2):.0f} {unit}"
    return f"{seconds / 60:.0f} min"
