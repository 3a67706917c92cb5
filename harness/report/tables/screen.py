"""Tables for a terminal: the answer first, the columns that fit by importance, and captions wrapped to its width."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from harness import terminal
from harness.report.tables.formats import one_line
from harness.report.tables.table import Table
from harness.terminal import FittedColumn

# From the first that is shown to the last: what tells rows apart, the first score, costs, a score of each other task;
# all others last, and those that say the same of every row.
IMPORTANCE = (
    *("Method", "Claim", "Data", "Model", "Study", "Verdict", "Plan", "Setting", "SCORE", "Effect"),
    *("Peak train memory", "Remark", "Tokens/s", "OTHER SCORE", "Status", "Validation loss", "Trainable"),
    *("Best (expected rank)", "Seeds", "Tries"),
)
ENDS = re.compile(r"\((\d[\d.,]*×), [^)]*\)")  # of a ratio, which a narrow terminal has no room for
CUT = {"Setting": 14, "Remark": 14, "Study": 12, "Model": 12, "Data": 10}  # characters that a text may be cut to
BAR = "▌ "
COMMAND = re.compile(r"`((?:python -m )?harness [^`]+)`[.,]?")


def view(tables: Sequence[Table], width: int) -> list[RenderableType]:
    """`tables` for a terminal of `width` characters."""
    return [part for table in tables for part in _view(table, width)]


def answer(sentences: Sequence[str], width: int) -> Iterator[RenderableType]:
    """What a table says first, set apart by bars at its side and empty lines; nothing if there is no sentence."""
    if sentences:
        yield Text("")
    for sentence in sentences:
        yield from _sentence(one_line(sentence), width, BAR, BAR, "bold")
    if sentences:
        yield Text("")


def _view(table: Table, width: int) -> Iterator[RenderableType]:
    yield from answer(table.answer, width)
    yield Text(one_line(table.title), style="bold")
    rows = [[one_line(cell) for cell in row] for row in table.rows]
    columns = [
        FittedColumn(
            header,
            *_standing(header, table.columns[:i], [row[i] for row in rows]),
            right=header not in table.text_columns,
            wraps=header == "Setting",
        )
        for i, header in enumerate(table.columns)
    ]
    grid, left_out = terminal.fitted(columns, rows, width)
    if left_out:
        grid, left_out = terminal.fitted(columns, [[ENDS.sub(r"(\1)", cell) for cell in row] for row in rows], width)
    yield grid
    if left_out:
        hidden = f"Not shown at this width: {'; '.join(left_out)}. --wide shows all."
        yield Text("\n".join(textwrap.wrap(hidden, width)), style="dim")
    for sentence in table.caption:
        yield from _sentence(one_line(sentence), width)
    yield Text("")


def _standing(header: str, before: Sequence[str], cells: Sequence[str]) -> tuple[int, int | None]:
    """The rank of a column, and to how many characters its texts may be cut (null: not at all).

    before: the columns left of it. A further score of the same task is no more important than all other columns, and
    what is the same in all rows less than these.
    """
    if len(cells) > 1 and len(set(cells)) == 1 and header != "Method":
        return len(IMPORTANCE) + 1, CUT.get(header)
    scores = [other.split(",")[0] for other in before if _is_score(other)]
    further = header.split(",")[0] in scores
    first = not scores or "Data" in before  # of several data sets each has a score of its own
    name = header if not _is_score(header) else "" if further else "SCORE" if first else "OTHER SCORE"
    return IMPORTANCE.index(name) if name in IMPORTANCE else len(IMPORTANCE), CUT.get(name)


def _is_score(header: str) -> bool:
    return "(%)" in header or "↓" in header


def _sentence(text: str, width: int, first: str = "- ", then: str = "  ", style: str = "") -> Iterator[Text]:
    """A line of the caption. A command stands on a line of its own that only the terminal breaks, to be pasted.

    first, then: what its first line and the following ones begin with.
    """
    for i, part in enumerate(COMMAND.split(text)):
        if i % 2:
            yield Text(f"    {part}", no_wrap=True, overflow="ignore")
        elif part.strip():
            filled = textwrap.fill(part.strip(), width, initial_indent=first, subsequent_indent=then)
            yield Text(filled, style=style)
            first = then
