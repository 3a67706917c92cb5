"""Eight sweeps at once on one folder: each cell is run once, by one of them, and all of them end well."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from test_kills import CELLS, results, start, whole

pytestmark = pytest.mark.faults

SWEEPS = 8


def test_eight_sweeps_on_one_folder_run_each_cell_once(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    sweeps = [start(folder) for _ in range(SWEEPS)]
    told = []
    for sweep in sweeps:
        _, words = sweep.communicate(timeout=600)
        assert sweep.returncode == 0, words
        told.append(words)
    ran = [Counter(re.findall(r"\] (\S+) ok in ", words)) for words in told]
    total = sum(ran, Counter())
    assert len(total) == CELLS
    assert set(total.values()) == {1}, "a cell was run twice"
    study = folder / "results" / "kills"
    assert len(whole(study)) == CELLS
    assert not list((study / ".harness" / "running").iterdir()), "a claim was left behind"
    alone = tmp_path / "alone"
    alone.mkdir()
    sweep = start(alone)
    _, words = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, words
    assert results(study) == results(alone / "results" / "kills")
    print(f"{SWEEPS} sweeps ran {[sum(own.values()) for own in ran]} of {CELLS} cells.")
