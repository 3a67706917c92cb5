"""Records in, one comparison table out: methods and settings down, costs and scores across.

    print(render(comparison(records), "md"))

A row is one method in one setting, averaged over seeds. Cells that failed are rows too. The caption says what is not
shown, and what makes rows hard to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from harness.record import Record
from harness.report.tables.captions import caption
from harness.report.tables.columns import choose, texts
from harness.report.tables.entries import ABSENT
from harness.report.tables.rows import Rows, group

TEXT_COLUMNS = (
    *("Study", "Model", "Data", "Method", "Setting", "Status", "Claim", "What it says", "Verdict", "Plan", "Studies"),
    *("Score", "Subject", "Target", "Base", "Tuned", "Asked by"),
    *("Remark", "Remark or next run", "What", "Value", "File", "SHA-256"),
)


@dataclass
class Table:
    """A table as text cells, its caption line by line, and the numbers behind it.

    answer: sentences that decide, which stand before the table.
    data: `frame`'s columns, `chosen` (whether `select` took the record's setting) and with a price `cost` (dollars for
    the job), one row a record; None if the table has no numbers of its own. text_columns: names of columns that are
    aligned left.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: list[str]
    data: pd.DataFrame | None = field(repr=False)
    text_columns: Sequence[str] = field(default=TEXT_COLUMNS, repr=False)
    answer: Sequence[str] = ()


def comparison(records: Sequence[Record], columns: Sequence[str] | None = None) -> Table:
    """The comparison of `records`, usually of one study; never raises for cells that failed or are missing.

    columns: ids in `COLUMNS`, in the order to show them; ["all"] shows every column with a value, None the default
    ones. UserError for an unknown id.

    The error of a score is its standard error over items for one seed, and sqrt(mean(stderr²) + var(values, ddof=1)/k)
    for k seeds: all seeds answer the same items, so the items' part does not shrink with k.
    """
    return comparison_of(group(records), columns)


def comparison_of(rows: Rows, columns: Sequence[str] | None = None) -> Table:
    """`comparison` for the records of `rows`."""
    positions = {i for choice in rows.choices for i in choice.index}
    names = choose(columns, rows)
    visible = [(name, header, column) for name in names for header, column in texts(name, rows).items()]
    if columns is None or "all" in columns:
        visible = [(name, header, column) for name, header, column in visible if not rows or set(column) != {ABSENT}]
    return Table(
        title=title(rows),
        columns=[header for _, header, _ in visible],
        rows=[[column[i] for _, _, column in visible] for i in range(len(rows))],
        caption=caption(rows, list(dict.fromkeys(name for name, _, _ in visible)), "scores" in names),
        data=rows.data.assign(
            chosen=[i in positions for i in range(len(rows.records))],
            **({} if rows.price is None else {"cost": [rows.cost(record) for record in rows.records]}),
        ),
    )


def title(rows: Rows) -> str:
    return ", ".join(sorted({record.study for record in rows.records})) or "No records"
