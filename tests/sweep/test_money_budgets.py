"""A budget in money counts for cells that run here in `plan`; `run` and `sweep` refuse it for them."""

from __future__ import annotations

import pytest

TINY = ("model=tiny", "method=lora,full", "data=wordmath_short", "eval.tasks=[]", "--budget")
RATED = ("--price", "3.6", "--throughput", "10")
pytestmark = pytest.mark.slow


@pytest.mark.long
def test_plan_says_if_training_stays_within_the_budget(harness):
    within = harness("plan", *TINY, "500USD", *RATED)
    assert within.returncode == 0, within.stderr
    assert "Training 2 cells costs about $" in within.stderr
    assert "within the budget of 500USD." in within.stderr
    above = harness("plan", *TINY, "0.01USD", *RATED)
    assert above.returncode == 2
    assert ", above the budget of 0.01USD." in above.stderr
    assert "lora-r16" in above.stdout  # the plan is shown all the same


@pytest.mark.long
def test_plan_names_what_it_lacks(harness):
    priceless = harness("plan", *TINY, "5USD", "--throughput", "10")
    assert priceless.returncode == 2
    assert "error: A budget of 5USD requires the option price, dollars for an hour of one device." in priceless.stderr
    assert not priceless.stdout  # nothing is planned before
    timeless = harness("plan", *TINY, "5USD", "--price", "2")
    assert timeless.returncode == 2
    assert "A budget of 5USD requires known times, which 2 cells of 2 lack: " in timeless.stderr


@pytest.mark.long
def test_a_sweep_of_cells_that_run_here_refuses_it(harness, tmp_path):
    swept = harness("sweep", "study=b", *TINY, "5USD")
    assert swept.returncode == 2
    assert (
        "error: A budget of 5USD limits models behind an API alone; `plan` with this budget and a price says"
        in swept.stderr
    )
    assert not (tmp_path / "results" / "b").is_dir() or not [*(tmp_path / "results" / "b").glob("*.json")]
