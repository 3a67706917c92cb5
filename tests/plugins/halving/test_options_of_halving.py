"""The settings of early ends, run by the command line."""

from __future__ import annotations

import pytest
from tested_settings import CELL, lines

from harness.record import read_study


@lines(
    f"sweep {CELL} study=halved stop=asha stop.name=asha stop.first=0.3 stop.factor=2 train.max_steps=4 eval.tasks=[] "
    "lr=1e-3,1e-1,1e-7 method=lora hydra/launcher=local_parallel",
)
@pytest.mark.long
def test_cells_of_a_study_are_ended(run, tmp_path):
    run()
    halved, _ = read_study(tmp_path / "results" / "halved")
    assert len(halved) == 3
    assert {record.stop.factor for record in halved} == {2}
    assert "pruned" in {record.status for record in halved}


@pytest.mark.long
def test_a_cell_is_planned_without_the_group(inside):
    planned = inside("plan", "model=tiny", "data=facts", "train.max_steps=1", "--device", "cpu", "~stop")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "can't" not in planned.stdout
