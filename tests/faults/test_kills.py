"""Fifty kills at random times of a sweep, each followed by a resume: nothing is lost, torn, run twice or changed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grid import CELLS, finish, results, start, study_in, whole
from processes import family

pytestmark = pytest.mark.faults

KILLS = 50
AT_ONCE = 2  # folders in which sweeps are killed, so that two cores have something to do
SEED = 20260
FAMILY = ("sweep", "holder", "job")


def lives(pid: int) -> bool:
    """Whether `pid` is still one of ours, and not a corpse."""
    try:
        return b"harness" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait(sweep: subprocess.Popen, place: Path, drawn: random.Random, calm) -> None:
    """Until any time between the start and the first cell of the sweep in `place`, or as likely one while cells run.

    Or until it has ended.
    """
    span = calm.before
    if drawn.random() < 0.5:
        span = 3 * calm.a_cell
        while not study_in(place).running() and sweep.poll() is None:
            time.sleep(0.01)
    until = time.monotonic() + drawn.uniform(0, span)
    while time.monotonic() < until and sweep.poll() is None:
        time.sleep(0.01)


def kill_again_and_again(folder: Path, kills: int, drawn: random.Random, calm) -> Counter:
    """Kill sweeps in folders below `folder`, a new one when all cells are done; what was killed how often."""
    told: Counter = Counter()
    while sum(told[member] for member in FAMILY) < kills:
        place = folder / str(told["rounds"])
        told["rounds"] += 1
        folder.mkdir(exist_ok=True)
        finished, started = {}, set()
        while sum(told[member] for member in FAMILY) < kills:
            sweep = start(place)
            wait(sweep, place, drawn, calm)
            if not (done := sweep.poll() is not None):
                members = family(sweep.pid)
                started.update(members)
                at = drawn.randrange(len(members[: len(FAMILY)]))
                try:
                    os.kill(members[at], signal.SIGKILL)
                    told[FAMILY[at]] += 1
                    told["in a cell"] += len(members) == len(FAMILY)
                except ProcessLookupError:
                    pass  # it ended in this moment
                if at:
                    # The sweep records what it lost and goes on; it is stopped in turn; the next start continues it.
                    time.sleep(drawn.uniform(0, calm.a_cell))
                    started.update(family(sweep.pid))
                    sweep.kill()
            sweep.communicate()
            now = whole(place)
            assert {name: now.get(name) for name in finished} == finished, "a finished record is lost or changed"
            finished = now
            if done:
                break
        words = finish(start(place))
        now = whole(place)
        assert {name: now[name] for name in finished} == finished
        assert f"{CELLS} cells, {len(finished)} recorded, {CELLS - len(finished)} to run." in words
        assert len(now) == CELLS
        assert not [pid for pid in started if lives(pid)], "a process outlived its sweep"
        assert study_in(place).left_behind() == [], "something half written was left"
        assert results(place) == calm.results
        told["cells"] += CELLS
    return told


def test_fifty_kills_leave_the_results_of_an_undisturbed_run(tmp_path, calm, tell):
    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        each = [
            threads.submit(kill_again_and_again, tmp_path / str(i), KILLS // AT_ONCE, random.Random(SEED + i), calm)
            for i in range(AT_ONCE)
        ]
        told = sum((one.result() for one in each), Counter())
    of = ", ".join(f"{told[member]} of the {member}" for member in FAMILY)
    assert sum(told[member] for member in FAMILY) == KILLS
    tell(
        f"{KILLS} kills ({of}; {told['in a cell']} while a cell ran), each followed by a resume, in {told['rounds']} "
        f"sweeps with {told['cells']} cells in all: {time.monotonic() - begun:.0f} s."
    )
