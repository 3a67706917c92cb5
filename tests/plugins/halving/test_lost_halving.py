"""A sweep that ends hopeless cells early loses a worker, and the same command finishes it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from real_sweeps import TINY, finish, wait_for

from harness.record import read_study
from harness.sweep.store import Study

sys.path.append(str(Path(__file__).parents[2] / "faults"))

from losing import start

pytestmark = [pytest.mark.faults, pytest.mark.slow]

HALVED = ["sweep", *TINY, "method=lora", "lr_scale=0.03,1,4,16", "train.max_steps=300", "eval.tasks=[]"]
HALVED += ["infer.repeats=0", "stop=asha", "study=lossy"]


def test_a_lost_cell_keeps_what_it_noted_at_its_rungs(tmp_path):
    study = Study(tmp_path / "results", "lossy")
    launcher = ("hydra/launcher=local_parallel", "hydra.launcher.cells=2")

    def noted():
        found = (study.folder / ".harness" / "rungs").glob("*.json")
        return {path.stem: json.loads(path.read_text())["results"] for path in found}

    def beyond_a_rung():
        running = study.running()
        went_on = (name for name, results in noted().items() if name in running and not results[-1]["ended"])
        return next((running[name] for name in went_on), None)

    sweep = start(tmp_path, *launcher, sweep=HALVED)
    marker = wait_for(beyond_a_rung, sweep, seconds=240)
    before = noted()
    os.kill(marker["pid"], signal.SIGKILL)
    status, err = finish(sweep)
    assert (status, "1 lost" in err) == (1, True), err

    status, err = finish(start(tmp_path, *launcher, sweep=HALVED))
    assert status == 0, err
    records, problems = read_study(study.folder)
    assert problems == []
    assert len(records) == 4
    assert {record.status for record in records} == {"ok", "pruned"}
    after = noted()
    assert after.keys() == {record.cell.name for record in records}
    assert all(after[cell][: len(results)] == results for cell, results in before.items())
