"""How many calls of our own lie between a job's entry and a training step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import run_leased, tiny

from harness.sweep.store import Study

STEP = ("job/training/loop.py", "take_step")
CALLS = 4  # of the job; with the six of the sweep they are ten


def calls_to_a_step(folder: Path) -> list[tuple[str, str]]:
    """The harness's calls, by file and name, from the entry of a real job down to its last training step.

    Modules that are run as programs are no calls of ours.
    """
    slot = ("method.optim._target_=stacks.build", f"+method.optim.file={folder / 'calls.json'}")
    cell = tiny("method=lora", "train.max_steps=1", "eval.tasks=[]", "infer.repeats=0", *slot)
    record = run_leased(cell, Study(folder, "study"), None, lambda event: None)
    assert record.status == "ok", record.failure
    calls = [(path, name) for path, name in json.loads((folder / "calls.json").read_text())]
    return [call for call in calls[: calls.index(STEP) + 1] if call[1] != "<module>"]


@pytest.mark.slow
def test_a_step_is_few_calls_from_the_entry_of_its_job(tmp_path):
    calls = calls_to_a_step(tmp_path)
    assert ("job/run_cell.py", "run_cell") in calls
    assert len(calls) <= CALLS, calls
