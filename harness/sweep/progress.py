"""Two bars on a terminal: the sweep's (cell k of n, time left) and the running cell's (step, loss, tokens/s).

Elsewhere (a file, a cluster's log) there are no bars: one line as a cell starts and one as it ends.
"""

from __future__ import annotations

import sys

from tqdm import tqdm

from harness.record import Cell, Record


class Progress:
    """Shows a sweep over `total` cells on standard error."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self._live = sys.stderr.isatty()
        self._cell: tqdm | None = None
        self._sweep = tqdm(
            total=total, unit="cell", desc="sweep", position=0, disable=not self._live or total < 2, file=sys.stderr
        )

    def start(self, cell: Cell) -> None:
        self._say(f"[{self.done + 1}/{self.total}] {cell.name}")
        self._cell = tqdm(desc="start", unit="step", position=1, leave=False, disable=not self._live, file=sys.stderr)

    def update(self, event: dict) -> None:
        """Show one event of the job: its phase and, while it trains, step, of, loss, tokens_per_second."""
        bar = self._cell
        if bar is None or bar.disable:
            return
        bar.set_description(event["phase"], refresh=False)
        bar.total, bar.n = event.get("of"), event.get("step", 0)
        speed = f"loss {event['loss']:.3f}, {event['tokens_per_second']:.0f} tok/s" if "loss" in event else ""
        bar.set_postfix_str(speed, refresh=False)
        bar.refresh()

    def end(self, record: Record) -> None:
        self.clear()
        self.done += 1
        why = f": {record.failure.reason}" if record.failure else ""
        self._say(f"[{self.done}/{self.total}] {record.cell.name} {record.status} in {record.seconds:.0f} s{why}")
        self._sweep.update()

    def skip(self) -> None:
        """Count a cell that another sweep has run meanwhile."""
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
