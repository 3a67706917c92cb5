"""Fifty kills at random times of a sweep, each followed by a resume: nothing is lost, torn, run twice or changed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from harness import record
from harness.config import ROOT

pytestmark = pytest.mark.faults

KILLS = 50
SEED = 20260
GRID = (
    *("sweep", "study=kills", "model=tiny", "rank=8", "train.precision=fp32", "train.max_steps=4"),
    *("train.batch_size=2", "train.validation_items=4", "+data.load.train=64", "+data.load.validation=8"),
    *("eval=facts", "eval.limit=4", "infer.repeats=0", "method=full,lora,galore", "seed=0,1,2,3,4,5,6,7"),
)
CELLS = 24
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "harness", *GRID]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def family(pid: int) -> list[int]:
    """The process, those it started, and theirs: the sweep, the holder of jobs, the job."""
    found = [pid]
    for member in found:
        try:
            children = Path(f"/proc/{member}/task/{member}/children").read_text().split()
        except OSError:
            continue  # it ended meanwhile
        found += map(int, children)
    return found


def whole(study: Path) -> dict[str, bytes]:
    """The bytes of each finished record; every file of that name must be a whole one, with its items beside it."""
    found = {}
    for path in study.glob("*.json"):
        read = record.read(path)
        if read.status == "ok":
            items = pd.read_parquet(path.with_suffix(".items.parquet"))
            assert len(items) == 2 * read.scores[0].n  # two metrics
            found[path.name] = path.read_bytes()
        else:
            assert read.status == "failed", read.failure
            assert "killed by SIGKILL" in read.failure.reason
    return found


def results(study: Path) -> dict[str, tuple]:
    """What each cell found, without what a clock or a meter said."""
    records, problems = record.read_study(study)
    assert problems == []
    return {
        r.cell.name: (
            r.status,
            [(point.step, point.loss, point.grad_norm) for point in r.train.loss],
            r.train.batches,
            r.validation,
            r.scores,
            pd.read_parquet(study / f"{r.cell.name}.items.parquet").to_csv(),
        )
        for r in records
    }


def test_fifty_kills_leave_the_results_of_an_undisturbed_run(tmp_path):
    drawn = random.Random(SEED)
    kills = rounds = lost = 0
    victims = [0, 0, 0]  # the sweep, the holder, the job
    while kills < KILLS:
        folder = tmp_path / str(rounds)
        folder.mkdir()
        study, finished = folder / "results" / "kills", {}
        rounds += 1
        while kills < KILLS:
            sweep = start(folder)
            # Most of a start is imports: from where they end, up to what a few cells take.
            until = time.monotonic() + drawn.uniform(0.5, 14)
            while time.monotonic() < until and sweep.poll() is None:
                time.sleep(0.02)
            if sweep.poll() is not None:
                break  # all cells are done
            members = family(sweep.pid)
            at = drawn.randrange(len(members[:3]))
            try:
                os.kill(members[at], signal.SIGKILL)
            except ProcessLookupError:
                lost += 1  # it ended in this moment
                members = [sweep.pid]
            else:
                kills += 1
                victims[at] += 1
            if at == 0:
                sweep.wait()
            else:
                # The sweep records what it lost and goes on; it is stopped in turn, and continued by the next start.
                time.sleep(drawn.uniform(0, 1))
                sweep.kill()
                sweep.wait()
            now = whole(study)
            assert {name: now.get(name) for name in finished} == finished, "a finished record is lost or changed"
            finished = now
        last = start(folder)
        _, words = last.communicate(timeout=300)
        assert last.returncode == 0, words
        now = whole(study)
        assert {name: now[name] for name in finished} == finished
        assert len(now) == CELLS
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    calm = start(undisturbed)
    _, words = calm.communicate(timeout=300)
    assert calm.returncode == 0, words
    expected = results(undisturbed / "results" / "kills")
    for number in range(rounds):
        assert results(tmp_path / str(number) / "results" / "kills") == expected
    print(f"{kills} kills (sweep, holder, job: {victims}) in {rounds} rounds of {CELLS} cells; {lost} came too late.")
