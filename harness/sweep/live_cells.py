"""The cells of a study as they stand: done, running, failed and left, and how long the rest takes.

One model, read from a study's folder (`status`, `status --watch`, `view`) or from the events of a sweep (its table).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.record import Record
from harness.sweep.cell_status import AT_WORK, CellStatus, to_go


@dataclass
class MethodTimes:
    """Totals over the finished cells of a method, in seconds: of those that trained also of the phases after it."""

    cells: int = 0
    seconds: float = 0.0
    trained: int = 0
    after_training: float = 0.0


class Durations:
    """How long recorded cells took, by method."""

    def __init__(self, records: Iterable[Record] = ()):
        self._methods: dict[str, MethodTimes] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count a record, if its cell finished."""
        if record.status != "ok":
            return
        times, phases = self._methods.setdefault(record.cell.method, MethodTimes()), list(record.phases)
        times.cells += 1
        times.seconds += record.seconds
        if "train" in phases:
            times.trained += 1
            times.after_training += sum(record.phases[name].seconds for name in phases[phases.index("train") + 1 :])

    def of_method(self, method: str | None) -> float | None:
        """The mean of its cells; null without one."""
        times = self._methods.get(method or "")
        return times.seconds / times.cells if times and times.cells else None

    @property
    def usual(self) -> float | None:
        """The mean of all cells; null without one."""
        cells = sum(times.cells for times in list(self._methods.values()))
        return sum(times.seconds for times in list(self._methods.values())) / cells if cells else None

    def to_go(self, cell: CellStatus) -> float | None:
        """Seconds left of a cell: by its pace, else by its method's cells, else by all cells; null if it is not known.

        Below 0 if it takes longer than those did.
        """
        expected = self.of_method(cell.method) or self.usual
        if (left := cell.progress.seconds_left) is not None or expected is None or cell.method is None:
            return left
        return expected - (cell.seconds or 0.0)

    def expect(self, cell: CellStatus) -> CellStatus:
        """A running cell with the seconds left of all its phases, as far as its pace or its method's cells tell."""
        left, expected, seconds = cell.progress.seconds_left, self.of_method(cell.method), cell.seconds or 0.0
        times = self._methods.get(cell.method or "", MethodTimes())
        if left is not None:
            left += times.after_training / max(1, times.trained)
        elif expected is not None and expected > seconds:
            left = expected - seconds
        return replace(cell, progress=replace(cell.progress, seconds_left=left))


@dataclass
class LiveCells:
    """Cells, running ones with phase, step, pace and time left.

    unnamed: how many more are left, of which no more is known.

    The time left assumes that a cell takes the mean time of the recorded cells of its method (of all cells, if there
    are none), that a training cell keeps its pace, and that as many cells run at a time as now, at least one.
    """

    cells: list[CellStatus]
    durations: Durations
    unnamed: int = 0

    def having(self, *states: str) -> list[CellStatus]:
        return [cell for cell in self.cells if cell.state in states]

    @property
    def failed(self) -> list[CellStatus]:
        return [cell for cell in self.cells if cell.failed]

    @property
    def over(self) -> bool:
        """Whether no cell is running or left."""
        return not self.having(*AT_WORK) and not self.unnamed

    @property
    def counts(self) -> dict[str, int]:
        finished, running, left = (len(self.having(state)) for state in ("ok", "running", "left"))
        counts = {"done": finished, "running": running, "failed": len(self.failed), "left": left + self.unnamed}
        return counts | {state: n for state in ("unfit", "pruned") if (n := len(self.having(state)))}

    @property
    def seconds_left(self) -> float | None:
        """Null if it is unknown."""
        estimates = [seconds for seconds in self._remaining if seconds is not None]
        return sum(seconds for seconds in estimates if seconds > 0) if len(estimates) == len(self._remaining) else None

    @property
    def time_left(self) -> str:
        """In words; empty if nothing is left."""
        return to_go(self._remaining) if self._remaining else ""

    @property
    def _remaining(self) -> Sequence[float | None]:
        """Seconds left of each cell, shared among those that run at a time."""
        left = [*map(self.durations.to_go, self.having(*AT_WORK)), *[self.durations.usual] * self.unnamed]
        at_a_time = max(1, len(self.having("running")))
        return [seconds and seconds / at_a_time for seconds in left]
