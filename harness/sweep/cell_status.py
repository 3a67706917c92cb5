"""The status of cells as people see it: where each is, at what loss, pace and memory, and why it failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness import terminal, units
from harness.record import Record, train_memory
from harness.terminal import FittedColumn

if TYPE_CHECKING:
    from rich.console import RenderableType

# The progress that a running cell reports, with types.
PROGRESS = {"phase": str} | dict.fromkeys(("step", "of", "answered", "memory_bytes"), int)
PROGRESS |= dict.fromkeys(("loss", "tokens_per_second", "seconds_left"), float)
COLUMNS = (
    FittedColumn("state", 1),
    FittedColumn("cell", 0, least=16),
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

    state: the status of its record, ``running`` or ``left``. phase, step, of, loss, tokens_per_second: the last
    progress of a running cell, or where it failed; answered: of items, in scoring. memory_bytes: of the CUDA device,
    else the process's resident set. seconds: so far, or in total. seconds_left: of a running cell. log: the last lines
    of a failed cell's log.
    """

    cell: str
    state: str
    id: str | None = None
    method: str | None = None
    host: str | None = None
    phase: str | None = None
    step: int | None = None
    of: int | None = None
    answered: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    reason: str | None = None
    log: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than asked for; a cell that --fit left out did not."""
        return self.state not in ("ok", "unfit", *AT_WORK)

    def follow(self, progress: dict[str, Any]) -> None:
        """Take over what a running cell reported last; values of other types are ignored."""
        for key, kind in PROGRESS.items():
            value = progress.get(key)
            setattr(self, key, value if isinstance(value, kind) else "start" if key == "phase" else None)

    @classmethod
    def of_record(cls, found: Record) -> CellStatus:
        """Of a cell that has a record."""
        state = cls(found.cell.name, found.status, found.cell.id, found.cell.method, seconds=found.seconds)
        if found.failure is not None:
            state.phase, state.step, state.reason = found.failure.phase, found.failure.step, found.failure.reason
        return state

    @classmethod
    def measured(cls, found: Record) -> CellStatus:
        """As `of_record`, with the loss, pace and memory that a finished cell ended with."""
        state = cls.of_record(found)
        state.loss = found.validation[-1].loss if found.validation else None
        state.tokens_per_second = found.train.tokens_per_second_steady if found.train is not None else None
        state.memory_bytes = train_memory(found)
        return state


def table(cells: Sequence[CellStatus], width: int, indent: int = 0) -> RenderableType:
    """A row for each cell, in the columns that have a value and fit into `width` characters."""
    rows = [_row(cell) for cell in cells]
    valued = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    shown, _ = terminal.fitted([COLUMNS[i] for i in valued], [[row[i] for i in valued] for row in rows], width, indent)
    return shown


def to_go(left: Sequence[float | None]) -> str:
    """The time left in words. left: seconds of each cell, unknown (null), or below 0 of one that takes longer than
    others did."""
    if None in left:
        return "time left unknown until a cell is done"
    known = sum(seconds for seconds in left if seconds > 0)
    if any(seconds < 0 for seconds in left):
        return f"more than {duration(known)} to go" if known >= 1 else "time left unknown: longer than cells before"
    return f"about {duration(known)} to go" if known >= 1 else "almost done"


def duration(seconds: float) -> str:
    """Rounded: 45 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _row(cell: CellStatus) -> list[str]:
    at, number = cell.phase or "", cell.answered if cell.answered is not None else cell.step
    if number is not None:
        at += f" {number}" + (f"/{cell.of}" if cell.of is not None else "")
    return [
        cell.state,
        cell.cell,
        at,
        "" if cell.seconds_left is None else duration(cell.seconds_left),
        "" if cell.loss is None else f"{cell.loss:.3f}",
        "" if cell.tokens_per_second is None else f"{cell.tokens_per_second:.0f}",
        "" if cell.memory_bytes is None else units.size(cell.memory_bytes),
        "" if cell.seconds is None else duration(cell.seconds),
        cell.host or "",
    ]
