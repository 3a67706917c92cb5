"""Commands in processes of their own, and the processes that these start."""

from __future__ import annotations

import os
from pathlib import Path

from harness.config import ROOT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def family(pid: int) -> list[int]:
    """The process, those it started, and theirs: the sweep, the holder of jobs, the job."""
    found = [pid]
    for member in found:
        try:
            children = Path(f"/proc/{member}/task/{member}/children").read_text().split()
        except OSError:
            continue  # it ended meanwhile
        found += map(int, children)
    return found
