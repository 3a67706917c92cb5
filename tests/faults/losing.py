"""A sweep over three cells that loses a worker in the middle, whatever runs its workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from real_sweeps import TINY, finish, training, wait_for

from harness.config import ROOT
from harness.record import Record, read_study

SWEEP = ["sweep", *TINY, "method=lora", "seed=0,1,2", "train.max_steps=150", "eval.tasks=[]", "infer.repeats=0"]
SWEEP += ["study=lossy"]


def start(folder: Path, *launcher: str, sweep: Sequence[str] = SWEEP) -> subprocess.Popen:
    """Start the sweep in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *sweep, *launcher],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lose_a_worker(folder: Path, *launcher: str) -> tuple[int, str, str]:
    """Start the sweep, kill the worker of a cell in its training; exit status, standard error, and the cell's name."""
    sweep = start(folder, *launcher)
    name, marker = wait_for(lambda: training(folder / "results" / "lossy"), sweep, seconds=240)
    assert marker["pid"] != sweep.pid, "the cell runs in the sweep itself"
    os.kill(marker["pid"], signal.SIGKILL)
    return *finish(sweep), name


def finished(folder: Path) -> list[Record]:
    """The records there are; all must be whole."""
    records, problems = read_study(folder / "results" / "lossy")
    assert problems == []
    assert {record.status for record in records} <= {"ok"}
    return records


def holds(folder: Path, *launcher: str) -> None:
    """That the other cells go on, that the sweep says what it lost, and that the same command finishes it."""
    status, err, name = lose_a_worker(folder, *launcher)
    assert status == 1, err
    assert "Done: 1 lost, 2 ok." in err
    assert re.search(rf"^{name} is lost: its worker .*\. The same command runs it again\.$", err, re.MULTILINE)
    before = {record.cell.name: record for record in finished(folder)}
    assert len(before) == 2
    assert name not in before

    status, err = finish(start(folder, *launcher))
    assert status == 0, err
    assert "2 recorded, 1 to run." in err
    assert "Done: 1 ok." in err
    after = {record.cell.name: record for record in finished(folder)}
    assert len(after) == 3
    assert before.items() <= after.items(), "a finished cell was run again"
