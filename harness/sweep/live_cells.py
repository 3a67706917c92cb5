"""The cells of a study as they stand: done, running, failed and left, and how long the rest takes.

One model, read from a study's folder (`status`, `status --watch`, `view`) or from the events of a sweep (its table).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.record import Cell, Record
from harness.sweep.cell_status import AT_WORK, CellStatus, to_go

Likeness = tuple[object, ...]  # what cells of a like time have in common


@dataclass
class MeanTimes:
    """Totals over finished cells that are alike, in seconds: of those that trained also of the phases after it."""

    cells: int = 0
    seconds: float = 0.0
    trained: int = 0
    after_training: float = 0.0

    def add(self, seconds: float, after_training: float | None) -> None:
        """Count a cell. after_training: null of one that did not train."""
        self.cells += 1
        self.seconds += seconds
        if after_training is not None:
            self.trained += 1
            self.after_training += after_training


class Durations:
    """How long recorded cells took: those of a like amount of work, those of a method, and all.

    cells: those whose time will be estimated, as far as they are known.
    """

    def __init__(self, records: Iterable[Record] = (), cells: Iterable[Cell] = ()):
        self._likeness = {cell.name: _amount_of_work(cell) for cell in cells}
        self._times: dict[Likeness, MeanTimes] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count a record, if its cell finished."""
        if record.status == "ok":
            phases = list(record.phases)
            later = phases[phases.index("train") + 1 :] if "train" in phases else None
            after_training = None if later is None else sum(record.phases[name].seconds for name in later)
            self.count(record.cell, record.seconds, after_training)

    def count(self, cell: Cell, seconds: float, after_training: float | None = None) -> None:
        """Count what a cell took, in seconds; of one that trained also what came after it."""
        for likeness in (_amount_of_work(cell), (cell.method,), ()):
            self._times.setdefault(likeness, MeanTimes()).add(seconds, after_training)

    def _like(self, cell: CellStatus) -> MeanTimes | None:
        """The times of the cells that are most like `cell`; null without one of its method."""
        return self._times.get(self._likeness.get(cell.cell, ("unknown",))) or self._times.get((cell.method,))

    def to_go(self, cell: CellStatus) -> float | None:
        """Seconds left of a cell: by its pace, else by cells like it, else by all cells; null if it is not known.

        Below 0 if it takes longer than those did.
        """
        times = self._like(cell) or self._times.get(())
        expected = times.seconds / times.cells if times else None
        if (left := cell.progress.seconds_left) is not None or expected is None or cell.method is None:
            return left
        return expected - (cell.seconds or 0.0)

    def expect(self, cell: CellStatus) -> CellStatus:
        """A running cell with the seconds left of all its phases, as far as its pace or cells like it tell."""
        left, times, seconds = cell.progress.seconds_left, self._like(cell), cell.seconds or 0.0
        if times is not None and left is not None:
            left += times.after_training / max(1, times.trained)
        elif times is not None and times.seconds / times.cells > seconds:
            left = times.seconds / times.cells - seconds
        return replace(cell, progress=replace(cell.progress, seconds_left=left))


def _amount_of_work(cell: Cell) -> Likeness:
    """What decides how long a cell takes, beside ranks and rates: equal for cells of a like time."""
    train, scoring = cell.settings.train, cell.settings.eval
    steps = (train.max_steps, train.epochs, train.batch_size, train.grad_accum, train.max_length)
    return (cell.method, cell.model, cell.data, *steps, train.validation_items, *scoring.tasks, scoring.limit)


@dataclass
class LiveCells:
    """Cells, running ones with phase, step, pace and time left.

    The time left assumes that a cell takes the mean time of the recorded cells of its method, model, data and steps
    (of its method, or of all, if there are none), that a training cell keeps its pace, and that as many cells run at a
    time as now, at least one.
    """

    cells: list[CellStatus]
    durations: Durations

    def having(self, *states: str) -> list[CellStatus]:
        return [cell for cell in self.cells if cell.state in states]

    @property
    def failed(self) -> list[CellStatus]:
        return [cell for cell in self.cells if cell.failed]

    @property
    def over(self) -> bool:
        """Whether no cell is running or left."""
        return not self.having(*AT_WORK)

    @property
    def counts(self) -> dict[str, int]:
        finished, running, left = (len(self.having(state)) for state in ("ok", "running", "left"))
        counts = {"done": finished, "running": running, "failed": len(self.failed), "left": left}
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
        left = [*map(self.durations.to_go, self.having(*AT_WORK))]
        at_a_time = max(1, len(self.having("running")))
        return [seconds and seconds / at_a_time for seconds in left]
