"""A small part of `make validity`: claims at their boundary, in few simulated studies."""

from __future__ import annotations

import sys

import pytest

from harness.config import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import validity

STUDIES = 60
QUICK = [
    "lora-memory, just above half, 3 rates × 3 seeds",
    "lora-memory, just below half, 8 rates × 2 seeds",
    "dora-memory, single runs, true 1.11",
    "lr-full, best at 5e-05, grid moved by 50% of a step",
    "low-rank-divergence, 8 rates × 5 seeds, 11 points more, runs of a setting alike",
    "low-rank-spread, 10 seeds, spread ratio 1.43, lognormal",
    "dora-convergence, 1.26 times the tokens, 3 seeds",
    "lora-memory over studies, just above half, 12 studies",
]


@pytest.mark.parametrize("name", QUICK)
def test_a_situation_holds(name):
    found = validity.simulate(name, STUDIES)
    assert validity.holds(found), found
