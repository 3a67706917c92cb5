"""Progress of a sweep: two bars on a terminal, for the sweep (cell k of n) and the running cell (step, loss, tokens/s).

Elsewhere (a file, a cluster's log) each start and each end of a cell is a line.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from harness import protocol, record
from harness.record import Cell, Record, RecordError
from harness.sweep.store import Study


class SweepProgress:
    """Shows a sweep over `total` cells on standard error."""

    def __init__(self, total: int):
        self.total, self.started, self.done = total, 0, 0
        self._live = sys.stderr.isatty()
        self._cell: tqdm | None = None
        self._sweep = tqdm(
            total=total, unit="cell", desc="sweep", position=0, disable=not self._live or total < 2, file=sys.stderr
        )

    def start(self, cell: Cell) -> None:
        self.say_started(cell)
        self._cell = tqdm(desc="start", unit="step", position=1, leave=False, disable=not self._live, file=sys.stderr)

    def say_started(self, cell: Cell) -> None:
        """The same as `start`, without a bar: for several cells at a time."""
        self.started += 1
        self._say(f"[{self.started}/{self.total}] {cell.name}")

    def update(self, event: protocol.Progress) -> None:
        """Show one event of the job: its phase and, in training, step, of, loss, tokens_per_second."""
        bar = self._cell
        if bar is None or bar.disable:
            return
        bar.set_description(event.phase, refresh=False)
        bar.total, bar.n = event.of, event.step or 0
        speed = "" if event.loss is None else f"loss {event.loss:.3f}, {event.tokens_per_second:.0f} tok/s"
        bar.set_postfix_str(speed, refresh=False)
        bar.refresh()

    def end(self, record: Record) -> None:
        self.clear()
        self.done += 1
        why = f": {record.failure.reason}" if record.failure else ""
        self._say(f"[{self.done}/{self.total}] {record.cell.name} {record.status} in {record.seconds:.0f} s{why}")
        self._sweep.update()

    def skip(self) -> None:
        """Count a cell that another sweep has run in the meantime."""
        self.done += 1
        self._sweep.update()

    def clear(self) -> None:
        if self._cell is not None:
            self._cell.close()
            self._cell = None

    def close(self) -> None:
        self.clear()
        self._sweep.close()

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def following(study: Study, cells: list[Cell], progress: SweepProgress, seconds: float = 1.0) -> Iterator[None]:
    """Show the progress of `cells` that other processes run, read from the study's folder every `seconds`.

    A cell has started once a process holds its lease, and ended once it has a new record.
    """
    left = {cell.name: cell for cell in cells}
    times = Counter(cell.name for cell in cells)  # a repeated cell is run, and its record written, several times
    before = {name: _written(study.path(cell)) for name, cell in left.items()}
    started: set[str] = set()
    over = threading.Event()

    def look() -> None:
        for name in study.running():
            if name in left and name not in started:
                started.add(name)
                progress.say_started(left[name])
        for name, cell in list(left.items()):
            if (written := _written(study.path(cell))) != before[name]:
                progress.end(record.read(study.path(cell)))
                before[name] = written
                times[name] -= 1
                if not times[name]:
                    del left[name]

    def keep_looking() -> None:
        while not over.wait(seconds):
            with contextlib.suppress(OSError, RecordError):  # a shared disk may fail for a moment
                look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError, RecordError):
            look()


def _written(path: Path) -> int | None:
    """The time the file was written, in ns; None if there is no file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
