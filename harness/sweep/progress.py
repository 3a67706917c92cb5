"""Progress of a sweep: on a terminal one live table of its cells, running ones with step, loss, pace, memory and time.

Elsewhere (a file, a cluster's log) each start and each end of a cell is a line.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import protocol, record, terminal, units
from harness.record import COMPLETE, Cell, Record, RecordError
from harness.sweep.cell_status import CellStatus, table
from harness.sweep.live_cells import Durations, LiveCells
from harness.sweep.store import Study
from harness.terminal.streams import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

AROUND = 5  # lines of the screen beside the rows of cells and the reasons of failures
PER_SECOND = 2.0  # refreshes


class SweepProgress:
    """Shows a sweep over `cells` on standard error; one that is repeated is among them as often as it runs."""

    def __init__(self, cells: Sequence[Cell]):
        self.total, self.started = len(cells), 0
        self._planned = {cell.name: cell for cell in cells}
        self._times = Counter(cell.name for cell in cells)  # that each is run
        self._over: Counter[str] = Counter()  # how often each has ended, or was skipped
        self._cells: dict[str, CellStatus] = {}  # that are running or have ended, in the order of their last change
        self._began: dict[str, float] = {}  # by name of a running cell
        self._durations = Durations(cells=cells)
        self._current: str | None = None
        self._live = self._screen() if sys.stderr.isatty() else None

    @property
    def done(self) -> int:
        """How many runs of cells are over."""
        return self._over.total()

    def start(self, cell: Cell) -> None:
        """Begin the one cell that `update` and `clear` are about."""
        self.say_started(cell)
        self._current = cell.name

    def say_started(self, cell: Cell) -> None:
        """Begin one of several cells that run at a time; `follow` tells of it."""
        self.started += 1
        self._cells.pop(cell.name, None)
        self._cells[cell.name] = CellStatus(
            cell.name, "running", cell.id, cell.method, progress=protocol.CellProgress("start")
        )
        self._began[cell.name] = time.monotonic()
        self._say(f"[{self.started}/{self.total}] {cell.name}")

    def update(self, event: protocol.Progress) -> None:
        """Show one event of the job: its phase and, in training, step, of, loss, tokens_per_second."""
        if self._current is not None:
            self.follow(self._current, protocol.facts(event))

    def follow(self, name: str, progress: Any) -> None:
        """Show the last progress of a running cell."""
        if (cell := self._cells.get(name)) is not None and cell.state == "running":
            cell.follow(progress)

    def end(self, record: Record) -> None:
        self.clear()
        name = record.cell.name
        self._over[name] += 1
        self._began.pop(name, None)
        self._cells.pop(name, None)
        self._cells[name] = CellStatus.measured(record)
        self._durations.add(record)
        why = f": {record.failure.reason}" if record.failure else ""
        self._say(f"[{self.done}/{self.total}] {name} {record.status} in {record.seconds:.0f} s{why}")

    def skip(self, cell: Cell) -> None:
        """Count a cell that is not run: another sweep has run it in the meantime, or it was refused."""
        self.clear()
        self._over[cell.name] += 1

    def scored(self, cell: Cell) -> None:
        """End the cell that was started, whose job scored it and trained nothing."""
        self._durations.count(cell, time.monotonic() - self._began[cell.name])
        self.skip(cell)

    def clear(self) -> None:
        """The cell that was started runs no more."""
        if self._current is not None:
            self._cells.pop(self._current, None)
            self._began.pop(self._current, None)
            self._current = None

    def close(self) -> None:
        self.clear()
        for name in self._began:  # of a worker that was lost, or a sweep that was stopped
            self._cells[name].state = "stopped"
        self._began.clear()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, line: str) -> None:
        if self._live is None:
            print(printable(line), file=sys.stderr, flush=True)

    def _screen(self) -> Live:
        console = terminal.console(to_stderr=True)

        def view() -> RenderableType:
            return self.view(console.width - terminal.ECHO, console.height)

        live = terminal.live(console, get_renderable=view, refresh_per_second=PER_SECOND)
        live.start()
        return live

    def view(self, width: int, height: int) -> RenderableType:
        """What the terminal shows: the head, a row for each cell as far as there is room, and why cells failed."""
        from rich.console import Group
        from rich.text import Text

        live = self.live
        running, failed = live.having("running"), live.failed
        cells = [cell for cell in live.cells if cell.state != "left"]
        reasons = [f"{cell.cell} {cell.state}: {cell.reason or 'no reason recorded'}" for cell in failed]
        reasons = reasons[-max(1, height // 8) :]
        room = max(2, height - AROUND - sum(-(-len(reason) // width) for reason in reasons))
        first = [*running, *failed[::-1], *(cell for cell in cells[::-1] if cell.state in COMPLETE)][:room]
        visible = [cell for cell in cells if any(cell is other for other in first)]
        parts: list[RenderableType] = [Text(self._head(live), style="bold")]
        parts += [table(visible, width, indent=2)] if visible else []
        parts += (
            [Text(f"  … and {len(cells) - len(visible)} more that have ended")] if len(visible) < len(cells) else []
        )
        return Group(*parts, *(Text(printable(reason), style="red") for reason in reasons))

    @property
    def live(self) -> LiveCells:
        """The cells as they stand now."""
        now = time.monotonic()
        for name, began in list(self._began.items()):
            self._cells[name].seconds = now - began
        cells = [self._durations.expect(c) if c.state == "running" else c for c in list(self._cells.values())]
        return LiveCells([*cells, *self._left()], self._durations)

    def _left(self) -> list[CellStatus]:
        """The cells that neither run nor are over, each as often as it is still to be run."""
        times = self._times - self._over - Counter(list(self._began))
        return [CellStatus(name, "left", method=self._planned[name].method) for name in times.elements()]

    def _head(self, live: LiveCells) -> str:
        counts = f"{self.done} of {units.plural(self.total, 'cell')} ended"
        counts += f", {len(live.failed)} failed" if live.failed else ""
        if self.done >= self.total:
            return f"{counts}."
        if self.total == 1 and live.seconds_left is None:
            return "One cell is running."
        return f"{counts}, {live.time_left}."


@contextlib.contextmanager
def following(study: Study, cells: list[Cell], progress: SweepProgress, seconds: float = 1.0) -> Iterator[None]:
    """Show the progress of `cells` that other processes run, read from the study's folder every `seconds`.

    A cell has started once a process holds its lease, and ended once it has a new record.
    """
    followed, over = _Followed(study, cells, progress), threading.Event()

    def keep_looking() -> None:
        while not over.wait(seconds):
            with contextlib.suppress(OSError, RecordError):  # a shared disk may fail for a moment
                followed.look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError, RecordError):
            followed.look()


class _Followed:
    """Cells that other processes run, and what of them was shown."""

    def __init__(self, study: Study, cells: list[Cell], progress: SweepProgress):
        self._study, self._progress = study, progress
        self._left = {cell.name: cell for cell in cells}
        self._times = Counter(cell.name for cell in cells)  # a repeated cell's record is written several times
        self._before = {name: _written(study.path(cell)) for name, cell in self._left.items()}
        self._started: set[str] = set()

    def look(self) -> None:
        """Show what is new since the last look. Raises OSError and RecordError."""
        for name, owner in self._study.running().items():
            if name in self._left:
                self._show_running(name, owner)
        for name, cell in list(self._left.items()):
            if (stamp := _written(self._study.path(cell))) != self._before[name]:
                self._progress.end(record.read(self._study.path(cell)))
                self._before[name] = stamp
                self._times[name] -= 1
                if not self._times[name]:
                    del self._left[name]

    def _show_running(self, name: str, owner: dict[str, Any]) -> None:
        if name not in self._started:
            self._started.add(name)
            self._progress.say_started(self._left[name])
        self._progress.follow(name, owner["progress"])


def _written(path: Path) -> int | None:
    """The time the file was written, in ns; None if there is no file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
