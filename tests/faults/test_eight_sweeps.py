"""Eight sweeps at once on one folder: each cell is run once, by one of them, and all of them end well."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest
from grid import CELLS, finish, results, start, study_in, whole

pytestmark = pytest.mark.faults

SWEEPS = 8


def test_eight_sweeps_on_one_folder_run_each_cell_once(tmp_path, calm, tell):
    begun = time.monotonic()
    sweeps = [start(tmp_path / "shared") for _ in range(SWEEPS)]
    told = [finish(sweep) for sweep in sweeps]
    ran = [Counter(re.findall(r"\] (\S+) ok in ", words)) for words in told]
    total = sum(ran, Counter())
    assert len(total) == CELLS
    assert set(total.values()) == {1}, "a cell was run twice"
    assert len(whole(tmp_path / "shared")) == CELLS
    study = study_in(tmp_path / "shared")
    assert not list((study.folder / ".harness" / "running").iterdir()), "a claim was left behind"
    assert results(tmp_path / "shared") == calm.results
    shares = [sum(own.values()) for own in ran]
    tell(f"{SWEEPS} sweeps ran {shares} of {CELLS} cells: {time.monotonic() - begun:.0f} s.")
