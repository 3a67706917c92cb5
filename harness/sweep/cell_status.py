"""The status of cells as people see it: where each is, at what loss, pace and memory, and why it failed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from harness import terminal, units
from harness.protocol import CellProgress
from harness.record import Record, train_memory
from harness.terminal import FittedColumn

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = (
    FittedColumn("state", 1),
    FittedColumn("cell", 0),
    FittedColumn("at", 1),
    FittedColumn("to go", 2, right=True),
    FittedColumn("loss", 3, right=True),
    FittedColumn("tokens/s", 5, right=True),
    FittedColumn("memory", 4, right=True),
    FittedColumn("time", 6, right=True),
    FittedColumn("host", 7, least=6),
)
AT_WORK = ("running", "left")


@dataclass
class CellStatus:
    """The status of one cell; null where a value is unknown or does not apply.

    state: the status of its record, ``running`` or ``left``. progress: the last of a running cell, where it failed, or
    what it ended with: memory is what a running cell has now, or the peak in training. seconds: so far, or in total.
    log: the last lines of a failed cell's log.
    """

    cell: str
    state: str
    id: str | None = None
    method: str | None = None
    host: str | None = None
    progress: CellProgress = field(default_factory=CellProgress)
    seconds: float | None = None
    reason: str | None = None
    log: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than asked for; a cell that --fit left out or stop=asha ended early did not."""
        return self.state not in ("ok", "unfit", "pruned", *AT_WORK)

    def follow(self, progress: Any) -> None:
        """Take over what a running cell reported last; what is no dict, and values of other types, are ignored."""
        kinds = get_type_hints(CellProgress)
        reported = progress.items() if isinstance(progress, dict) else ()
        values = {name: value for name, value in reported if name in kinds and isinstance(value, kinds[name])}
        self.progress = CellProgress(**values)
        if self.progress.phase is None:
            self.progress = replace(self.progress, phase="start")

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        progress = values.pop("progress")
        return values | progress

    @classmethod
    def of_record(cls, record: Record) -> CellStatus:
        """Of a cell that has a record."""
        state = cls(record.cell.name, record.status, record.cell.id, record.cell.method, seconds=record.seconds)
        if record.failure is not None:
            state.progress = CellProgress(record.failure.phase, record.failure.step)
            state.reason = record.failure.reason
        return state

    @classmethod
    def measured(cls, record: Record) -> CellStatus:
        """As `of_record`, with the loss, pace and memory that a finished cell ended with."""
        state = cls.of_record(record)
        state.progress = replace(
            state.progress,
            loss=record.validation_loss,
            tokens_per_second=record.tokens_per_second,
            memory_bytes=train_memory(record),
        )
        return state


def table(cells: Sequence[CellStatus], width: int, indent: int = 0) -> RenderableType:
    """A row for each cell, in the columns that have a value and fit into `width` characters."""
    rows = [_row(cell) for cell in cells]
    least = max(16, min(_telling_length([cell.cell for cell in cells]), width // 2))
    columns = [replace(column, least=least) if column.header == "cell" else column for column in COLUMNS]
    valued = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    grid, _ = terminal.fitted([columns[i] for i in valued], [[row[i] for i in valued] for row in rows], width, indent)
    return grid


def _telling_length(names: Sequence[str]) -> int:
    """The characters that must be shown of names that end in an ellipsis so that no two look alike."""
    shared = [
        [*itertools.takewhile(lambda both: both[0] == both[1], zip(*pair, strict=False))]
        for pair in itertools.pairwise(sorted(names))
    ]
    return 2 + max(map(len, shared), default=0)


def to_go(left: Sequence[float | None]) -> str:
    """The time left in words. left: seconds of each cell, unknown (null), or below 0 of one that takes longer than
    others did."""
    known_left = [seconds for seconds in left if seconds is not None]
    if len(known_left) < len(left):
        return "time left unknown until a cell is done"
    total = sum(seconds for seconds in known_left if seconds > 0)
    if any(seconds < 0 for seconds in known_left):
        return f"more than {duration(total)} to go" if total >= 1 else "time left unknown: longer than cells before"
    return f"about {duration(total)} to go" if total >= 1 else "almost done"


def duration(seconds: float) -> str:
    """Rounded: 45 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _row(cell: CellStatus) -> list[str]:
    progress = cell.progress
    at, number = progress.phase or "", progress.answered if progress.answered is not None else progress.step
    if number is not None:
        at += f" {number}" + (f"/{progress.of}" if progress.of is not None else "")
    return [
        cell.state,
        cell.cell,
        at,
        "" if progress.seconds_left is None else duration(progress.seconds_left),
        "" if progress.loss is None else f"{progress.loss:.3f}",
        "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:.0f}",
        "" if progress.memory_bytes is None else units.size(progress.memory_bytes) + " now" * (cell.state == "running"),
        "" if cell.seconds is None else duration(cell.seconds),
        cell.host or "",
    ]
