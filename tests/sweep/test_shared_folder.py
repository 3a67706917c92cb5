"""Sweeps that share a folder: each cell is run once, and what one leaves behind another takes over.

Real sweeps of the `tiny` model in processes of their own.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
from real_sweeps import ENVIRONMENT, TINY, finish, jobs_of, start, training, wait_for

from harness.record import read_study
from harness.sweep import lease
from harness.sweep.store import Study

pytestmark = pytest.mark.slow

CHEAP = [*TINY, "eval.tasks=[]", "infer.repeats=0", "method=full"]


@pytest.mark.long
def test_two_sweeps_at_once_run_each_cell_once(tmp_path):
    """Those that break, too: a failure of the other sweep is no old one, which would be tried again."""
    optimizers = "method.optim.optimizer._target_=torch.optim.AdamW,torch.optim.NoSuch"
    command = ["sweep", *CHEAP, "study=shared", "seed=0,1", optimizers, "train.max_steps=2"]
    sweeps = [start(tmp_path, *command) for _ in range(2)]
    ended = [finish(sweep) for sweep in sweeps]
    study = tmp_path / "results" / "shared"
    records, problems = read_study(study)
    assert problems == []
    assert sorted(record.status for record in records) == ["failed", "failed", "ok", "ok"]
    run = [name for _, err in ended for name in re.findall(r"^\[\d/\d\] (\S+) (?:ok|failed) in ", err, re.MULTILINE)]
    assert sorted(run) == sorted(record.cell.name for record in records)
    for status, err in ended:
        assert status == 1
        assert "Done: 2 failed, 2 ok." in err
        assert "Traceback" not in err
    assert list((study / ".harness" / "running").iterdir()) == []


@pytest.mark.faults
def test_a_cell_of_another_sweep_is_left_for_later_and_taken_over(tmp_path):
    study = tmp_path / "results" / "shared"
    run = ["run", *CHEAP, "study=shared", "train.max_steps=40000"]
    first = start(tmp_path, *run)
    second = None
    try:
        long, _ = wait_for(lambda: training(study), first)
        second = start(tmp_path, "sweep", *CHEAP, "study=shared", "train.max_steps=40000,1")
        for line in second.stderr:
            if line.startswith("Waiting"):
                break
        assert line == f"Waiting for other sweeps to finish {long}.\n"
        (short,), _ = read_study(study)
        assert (short.status, short.train.steps) == ("ok", 1)

        status, err = finish(start(tmp_path, *run))
        assert status == 2
        assert err.splitlines()[-1].startswith(f"error: {long} is being run by process {first.pid} on ")

        first.kill()  # it can tell nobody
        again, owner = wait_for(lambda: (found := training(study)) and found[1]["pid"] == second.pid and found, second)
        assert (again, owner["pid"]) == (long, second.pid)
        second.terminate()
        assert finish(second)[0] == 130
        assert list((study / ".harness" / "running").iterdir()) == []
    finally:
        for sweep in filter(None, (first, second)):
            sweep.kill()


ELSEWHERE = """
import sys
from harness.__main__ import main
from harness.sweep import lease
lease._machine = lambda: "elsewhere"
lease.HEARTBEAT = 0.2
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.faults
def test_a_sweep_that_slept_too_long_stops_its_job_and_waits_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "SILENCE", 3.0)
    arguments = ["sweep", *CHEAP, "study=shared", "train.max_steps=40000"]
    command = [sys.executable, "-c", ELSEWHERE, *arguments]
    sweep = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        study = Study(tmp_path / "results", "shared")
        name, _ = wait_for(lambda: training(study.folder), sweep)
        (cell,) = study.planned()
        sweep.send_signal(signal.SIGSTOP)
        assert study.wait([cell]) == [cell]
        with study.lease(cell) as ours:
            sweep.send_signal(signal.SIGCONT)
            for line in sweep.stderr:
                if line.startswith("Waiting"):
                    break
            assert line == f"Waiting for other sweeps to finish {name}.\n"
            assert jobs_of(sweep) == []
            assert not ours.lost
            assert study.recorded(cell) is None
        wait_for(lambda: training(study.folder), sweep)  # and goes on when it may
        sweep.terminate()
        assert finish(sweep)[0] == 130
    finally:
        sweep.kill()
