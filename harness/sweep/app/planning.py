"""Says how far the planning of a large grid has come."""

from __future__ import annotations

import sys
import time
from types import TracebackType

FIRST = 1.0  # seconds before anything is said: most grids are planned by then
EVERY = 10.0  # seconds from one line to the next where lines can't be rewritten


class Planning:
    """Counts the points of a grid that are planned: on a terminal in one line that disappears, elsewhere in a few."""

    def __init__(self, total: int):
        self._total, self._planned = total, 0
        self._rewrites = sys.stderr.isatty()
        self._next = time.monotonic() + FIRST
        self._shown = False

    def __enter__(self) -> Planning:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._shown and self._rewrites:
            self._write("\r\x1b[K")

    def advance(self) -> None:
        """Count one more point."""
        self._planned += 1
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (FIRST / 4 if self._rewrites else EVERY)
        self._shown = True
        line = f"Planning: {self._planned:,} of {self._total:,} points"
        self._write(f"\r{line}\x1b[K" if self._rewrites else f"{line}\n")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
