"""The sweep that fault tests break: 24 cells of the tiny model, and what it comes to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
from processes import ENVIRONMENT

from harness import record
from harness.record import Record
from harness.sweep.store import Study

GRID = (
    *("sweep", "study=grid", "model=tiny", "rank=8", "train.precision=fp32", "train.max_steps=4"),
    *("train.batch_size=2", "train.validation_items=4", "+data.load.train=64", "+data.load.validation=8"),
    *("eval=facts", "eval.limit=4", "infer.repeats=0", "method=full,lora,galore", "seed=0,1,2,3,4,5,6,7"),
)
CELLS = 24
PATIENCE = 900  # seconds that a sweep may take on a busy machine before it is said to hang


def start(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    """Start the sweep in `folder`, which is made."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *GRID, *overrides],
        cwd=folder,
        env=ENVIRONMENT | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(sweep: subprocess.Popen) -> str:
    """What the sweep said; it must end well."""
    status, words = finish_anyhow(sweep)
    assert status == 0, words
    return words


def finish_anyhow(sweep: subprocess.Popen) -> tuple[int, str]:
    """The sweep's exit status, and what it said."""
    _, words = sweep.communicate(timeout=PATIENCE)
    return sweep.returncode, words


def study_in(folder: Path) -> Study:
    return Study(folder / "results", "grid")


def whole(folder: Path) -> dict[str, bytes]:
    """The bytes of each finished record; every file of that name must be a whole one, with its items beside it."""
    found = {}
    for path in study_in(folder).folder.glob("*.json"):
        read = record.read(path)
        if read.status == "ok":
            items = pd.read_parquet(path.with_suffix(".items.parquet"))
            assert len(items) == 2 * read.scores[0].n  # two metrics
            found[path.name] = path.read_bytes()
        else:
            assert read.status == "failed", read.failure
            assert "killed by SIGKILL" in read.failure.reason
    return found


def records(folder: Path) -> list[Record]:
    found, problems = record.read_study(study_in(folder).folder)
    assert problems == []
    return found


def results(folder: Path) -> dict[str, tuple]:
    """What each cell found, without what a clock or a meter said."""
    return {
        r.cell.name: (
            r.status,
            [(point.step, point.loss, point.grad_norm) for point in r.train.loss],
            r.train.batches,
            r.validation,
            r.scores,
            pd.read_parquet(study_in(folder).folder / f"{r.cell.name}.items.parquet").to_csv(),
        )
        for r in records(folder)
    }
