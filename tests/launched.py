"""What test_launchers.py has workers do in place of a cell: it costs no imports."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def told(point) -> tuple[int, int, str | None, str | None]:
    """The point's number in the sweep, from 0, and where it was looked at: process, threads, GPU."""
    return (
        point.request.position - 1,
        os.getpid(),
        os.environ.get("OMP_NUM_THREADS"),
        os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def lost_at_1(point) -> int:
    """The seed; but the process is killed for seed 1."""
    if point.cell.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return point.cell.seed


def slow(point) -> None:
    """Leaves its process id in a file named by the seed while it waits, and takes it away however that ends."""
    note = Path(point.results) / f"{point.cell.seed}.pid"
    note.write_text(str(os.getpid()))
    try:
        time.sleep(600)
    finally:
        note.unlink()
