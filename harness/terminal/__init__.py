"""What people see in a terminal, by rich: tables that fit its width.

Elsewhere (a file, a pipe) the same content is plain lines. Colours only repeat what words say; NO_COLOR turns them off.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.terminal.streams import printable, uncleaned

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

UNLIMITED = 10_000  # columns of what is no terminal
ECHO = 2  # columns for the "^C" that a terminal writes behind a live display: if it wrapped, a line would stay twice
GAP = 2  # between columns, one of it the box's
SHORT = 8  # characters of a header that is not wrapped
STYLES = {"ok": "green", "running": "cyan", "yes": "green", "ready": "green", "supported": "green"}
STYLES |= dict.fromkeys(("failed", "oom", "diverged", "lost", "refused", "no", "missing", "refuted"), "red")
STYLES |= dict.fromkeys(("unfit", "pruned", "tight", "depends", "too small to matter", "not decided", "left"), "yellow")


@dataclass(frozen=True)
class FittedColumn:
    """A column of a table that is made to fit.

    rank: columns of the highest rank are left out first where there is no room. least: characters that a text may be
    cut to (null: it is shown whole or not at all). wraps: it is broken between words instead of being cut. right:
    whether it is aligned right.
    """

    header: str
    rank: int = 0
    least: int | None = None
    right: bool = False
    wraps: bool = False


def console(to_stderr: bool = False, wide: bool = False) -> Console:
    """The console of standard output, or of standard error. Its width is the terminal's; unlimited if `wide`, or where
    there is no terminal."""
    from harness.terminal.consoles import CleanConsole

    file = uncleaned(sys.stderr if to_stderr else sys.stdout)
    width = None if file.isatty() and not wide else UNLIMITED
    return CleanConsole(file=file, width=width, legacy_windows=False)


def live(on: Console, **keywords: Any) -> Live:
    """A display on the console `on` that is redrawn in place. keywords: of rich's Live."""
    from harness.terminal.consoles import CleanLive

    return CleanLive(console=on, **keywords)


def show(on: Console, parts: Iterable[RenderableType]) -> None:
    """Print each of `parts`. A line that is not to be wrapped is left to the terminal, so that it can be copied."""
    for part in parts:
        copied = getattr(part, "no_wrap", None)
        on.print(part, crop=False, no_wrap=copied, overflow="ignore" if copied else None)


def lines(*parts: RenderableType, width: int = UNLIMITED) -> list[str]:
    """What `parts` looks like without colours, `width` characters wide."""
    from harness.terminal.consoles import CleanConsole

    text = io.StringIO()
    show(CleanConsole(file=text, width=width, color_system=None), parts)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def needed(columns: Sequence[FittedColumn], rows: Sequence[Sequence[str]]) -> int:
    """Characters that `columns` take when nothing is cut."""
    return sum(_cells(column, rows, i)[1] + GAP for i, column in enumerate(columns))


def fitted(
    columns: Sequence[FittedColumn], rows: Sequence[Sequence[str | Text]], width: int, indent: int = 0
) -> tuple[Padding | Table, list[str]]:
    """A table of the columns that fit into `width` characters, and the headers of those that do not.

    The column of the lowest rank is always shown, cut if need be. A cell is coloured by its word, if that has a colour.
    """
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    rows = [[printable(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    widths = _widths(columns, rows, width - indent)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold")
    for i, size in widths.items():
        column = columns[i]
        table.add_column(
            Text(printable(column.header)),
            justify="right" if column.right else "left",
            no_wrap=column.least is not None and not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
            width=size,
        )
    for row in rows:
        cells = (row[i] for i in widths)
        table.add_row(*(Text(cell, STYLES.get(cell, "")) if isinstance(cell, str) else cell for cell in cells))
    left_out = [column.header for i, column in enumerate(columns) if i not in widths]
    return (Padding(table, (0, 0, 0, indent), expand=False) if indent else table), left_out


def _widths(columns: Sequence[FittedColumn], rows: Sequence[Sequence[str | Text]], room: int) -> dict[int, int]:
    """The columns that fit into `room` characters, in their order, with the width of each."""
    widths: dict[int, int] = {}
    by_rank = sorted(range(len(columns)), key=lambda i: (columns[i].rank, i))
    for i in by_rank:
        least, _ = _cells(columns[i], rows, i)
        if not widths or sum(widths.values()) + GAP * len(widths) + least <= room:
            widths[i] = least
    spare = max(0, room - sum(widths.values()) - GAP * (len(widths) - 1))
    for i in by_rank:  # what is left goes to texts that would be cut
        if i in widths:
            more = min(spare, _cells(columns[i], rows, i)[1] - widths[i])
            widths[i] += more
            spare -= more
    return {i: min(widths[i], max(1, room)) for i in sorted(widths)}


def _cells(column: FittedColumn, rows: Sequence[Sequence[str | Text]], i: int) -> tuple[int, int]:
    """The least and the whole width of a column, in characters of the terminal. Long headers wrap between words."""
    from rich.cells import cell_len

    header = printable(column.header)
    words = max(map(cell_len, [header] if len(header) <= SHORT else header.split()), default=0)
    texts = (row[i] for row in rows)
    whole = max([words, *(cell_len(text) if isinstance(text, str) else text.cell_len for text in texts)])
    return (whole if column.least is None else max(words, min(whole, column.least))), whole
