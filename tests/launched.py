"""What test_launchers.py has workers do in place of a cell: it costs no imports."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def told(config) -> tuple[int, int, str | None, str | None]:
    """The seed, and where it was looked at: process, threads, GPU."""
    return config.seed, os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")


def lost_at_1(config) -> int:
    """The seed; but the process is killed for seed 1."""
    if config.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return config.seed


def slow(config) -> None:
    """Leaves its process id in a file named by the seed while it waits, and takes it away however that ends."""
    note = Path(config.results_dir) / f"{config.seed}.pid"
    note.write_text(str(os.getpid()))
    try:
        time.sleep(600)
    finally:
        note.unlink()
