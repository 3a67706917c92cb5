"""Sweeps of the `tiny` model in processes of their own: started, watched, ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from harness.config import ROOT
from harness.sweep.store import Study

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


TINY = [
    "model=tiny",
    "data=facts",
    "train.batch_size=2",
    "train.max_length=128",
    "train.validation_items=2",
    "eval.limit=1",
]
NINE_STEPS = (
    *(
        "model=tiny",
        "rank=8",
        "train.precision=fp32",
        "train.max_steps=9",
        "train.batch_size=2",
        "train.warmup_ratio=0",
    ),
    *("train.validation_items=4", "+data.load.train=64", "+data.load.validation=8", "eval.tasks=[]"),
    *("infer.repeats=0", "study=mine"),
)
"""A cell that may be ended early, of the study `mine`."""


def start(folder, *arguments, python=(), **keywords):
    command = [sys.executable, *python, "-m", "harness", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords
    )


def finish(process):
    """(exit status, standard error) of `process`."""
    try:
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, err


def wait_for(condition, process, seconds=120):
    """What `condition` returns once that is true; fails when `process` ends before."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
    return found


def training(study):
    """The owner of the one cell that is in its training steps, with its name."""
    running = Study(study.parent, study.name).running()
    return next(((name, owner) for name, owner in running.items() if "step" in owner["progress"]), None)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def jobs_of(process):
    """Process ids of the jobs of the sweep `process`, which another holds for it."""
    return [job for holder in children(process.pid) for job in children(holder)]
