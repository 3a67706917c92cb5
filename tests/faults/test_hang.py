"""A cell that hangs is ended after the stated timeout and recorded; the sweep goes on with the next."""

from __future__ import annotations

import os
import signal

import pytest
from real_sweeps import TINY, children, finish, start, training, wait_for

from harness.record import read_study

pytestmark = pytest.mark.faults

TIMEOUT = 120  # eight sweeps of another test may share the cores, and a cell then takes more than 60


def test_a_cell_that_hangs_is_ended_and_recorded(tmp_path):
    study = tmp_path / "results" / "hang"
    sweep = start(
        tmp_path, "sweep", *TINY, "study=hang", "method=full", "seed=0,1", "train.max_steps=200", f"timeout={TIMEOUT}"
    )
    name, _ = wait_for(lambda: training(study), sweep)
    (holder,) = children(sweep.pid)
    (job,) = children(holder)
    os.kill(job, signal.SIGSTOP)  # it does nothing any more, and does not react to SIGTERM
    status, words = finish(sweep)
    assert status == 1, words
    records, problems = read_study(study)
    assert problems == []
    by_status = {record.status: record for record in records}
    hung = by_status["failed"]
    assert hung.cell.name == name
    assert hung.failure.phase == "train"
    assert hung.failure.step >= 1
    assert hung.failure.reason == f"The cell was ended: it took longer than timeout={TIMEOUT} seconds."
    assert TIMEOUT <= hung.seconds < TIMEOUT + 20
    assert by_status["ok"].train.steps == 200
    assert not os.path.exists(f"/proc/{job}")
