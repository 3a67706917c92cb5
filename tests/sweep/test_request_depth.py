"""How many calls of our own lie between a command and the request to its job; tests/job/test_call_depth.py goes on."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from command_line import called

import harness
from harness.sweep import runner

PACKAGE = Path(harness.__file__).parent
CALLS = 6  # of the sweep; with the four of the job they are ten
TINY = ("model=tiny", "method=lora", "rank=4", "data=facts", "train.max_steps=1", "train.batch_size=2", "eval.tasks=[]")
NO_INFERENCE = ("infer.repeats=0", "train.validation_items=2")


@pytest.mark.slow
def test_a_request_is_few_calls_from_its_command(tmp_path, monkeypatch):
    stacks: list[list[str]] = []
    start = runner._server.start

    def noted(stderr):
        frames = traceback.extract_stack()
        paths = [(Path(frame.filename), frame.name) for frame in frames]
        own = [(p.relative_to(PACKAGE), name) for p, name in paths if p.is_relative_to(PACKAGE)]
        stacks.append([f"{p} {name}" for p, name in own if name != "<listcomp>"])  # which 3.12 does not call
        return start(stderr)

    monkeypatch.setattr(runner._server, "start", noted)
    done = called(tmp_path, "sweep", "study=depth", "seed=0", *TINY, *NO_INFERENCE)
    assert done.returncode == 0, done.stderr
    last = stacks[-1]  # the first is the check's
    assert any(call.startswith("sweep/runner.py") for call in last)
    assert len(last) <= CALLS, last
