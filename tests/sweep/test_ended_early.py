"""A sweep that is killed or interrupted while its job server still imports libraries: nothing of it lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config import ROOT

CELL = ("model=tiny", "method=lora", "train.max_steps=100000", "train.batch_size=2", "+data.load.train=64")
MARK = "HARNESS_TEST_MARK"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal, and /proc"),
]


@pytest.fixture
def mark() -> Iterator[str]:
    """A value of MARK in the environment of a sweep, by which its processes are known; none of them is left."""
    made = uuid.uuid4().hex
    yield made
    for pid in marked(made):
        os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """The processes that run with `mark`; a zombie does not, and has no environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def start(folder: Path, mark: str, *arguments: str, compiling: bool = True) -> subprocess.Popen:
    """A sweep; compiling: its job server has to compile the libraries before it imports them, which takes a minute."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: mark}
    if compiling:
        environment |= {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-X", "pycache_prefix=", "-m", "harness", *arguments, *CELL],  # not the sweep itself
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_processes(count: int, sweep: subprocess.Popen, mark: str) -> None:
    """Until `sweep` has so many, itself counted."""
    until = time.monotonic() + 240
    while len(marked(mark)) < count:
        assert sweep.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)


def assert_gone(mark: str, seconds: float) -> None:
    """That all processes with `mark` end within `seconds`."""
    until = time.monotonic() + seconds
    while left := marked(mark):
        assert time.monotonic() < until, left
        time.sleep(0.05)


@pytest.mark.parametrize("seconds", [0.5, *(pytest.param(late, marks=pytest.mark.long) for late in (0, 2, 5))])
@pytest.mark.parametrize(
    ("sent", "limit"),
    [
        pytest.param(signal.SIGKILL, 5, id="killed"),
        pytest.param(signal.SIGINT, 3, id="interrupted", marks=pytest.mark.long),
    ],
)
def test_a_server_that_still_imports_ends_with_its_sweep(tmp_path, mark, sent, limit, seconds):
    sweep = start(tmp_path, mark, "run")
    wait_for_processes(2, sweep, mark)
    time.sleep(seconds)
    os.killpg(sweep.pid, sent)
    until = time.monotonic() + limit
    sweep.wait(limit)
    assert_gone(mark, until - time.monotonic())
    assert sweep.returncode == (130 if sent == signal.SIGINT else -sent)


@pytest.mark.long
def test_workers_of_local_parallel_end_as_well(tmp_path, mark):
    places = ("hydra/launcher=local_parallel", "hydra.launcher.cells=2")
    sweep = start(tmp_path, mark, "sweep", "seed=0,1", *places, compiling=False)
    wait_for_processes(4, sweep, mark)  # the sweep, its own server, which checked the cells, and two workers
    sweep.kill()
    sweep.wait()
    assert_gone(mark, 5)
