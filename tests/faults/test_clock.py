"""A clock that is set back by two days while cells run, beside a sweep whose clock is right: nobody is taken for dead.

The clock is that of one sweep's processes alone: Debian's faketime gives them another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grid import ENVIRONMENT, finish, records, results, start, study_in, whole

pytestmark = pytest.mark.faults

CELLS = 6
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.mark.skipif(LIBRARY is None, reason="there is no faketime: apt-get install faketime")
def test_a_clock_that_goes_back_disturbs_nothing(tmp_path, calm, tell):
    clock = tmp_path / "clock"
    clock.write_text("+1d\n")
    other = {"LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    other |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    folder, study = tmp_path / "shared", study_in(tmp_path / "shared")

    def status() -> dict:
        command = [sys.executable, "-m", "harness", "status", "--format", "json"]
        (found,) = json.loads(subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True).stdout)
        return found

    begun = time.monotonic()
    odd = start(folder, "seed=0,1", **other)
    while not (running := study.running()):
        assert odd.poll() is None, odd.stderr.read()
        time.sleep(0.02)
    ((_, owner),) = running.items()
    assert owner["started"] > time.time() + 80000, "the clock is not set"
    assert all(cell["seconds"] is None or cell["seconds"] >= 0 for cell in status()["cells"])
    back = tmp_path / "back"
    back.write_text("-1d\n")
    back.replace(clock)  # at once: where faketime reads an empty file, it ends the process, which can then hang
    right = start(folder, "seed=0,1")
    words = [finish(sweep) for sweep in (odd, right)]
    ran = [line.split()[1] for said in words for line in said.splitlines() if " ok in " in line]
    assert len(ran) == len(set(ran)) == CELLS == len(whole(folder)), "a cell was run twice"
    assert {name: calm.results[name] for name in ran} == results(folder)
    taken = time.monotonic() - begun
    found = records(folder)
    assert {record.started[:10] for record in found} != {time.strftime("%Y-%m-%d", time.gmtime())}, "no clock was wrong"
    for record in found:
        assert 0 < record.seconds < taken
        assert all(0 < seconds < taken for seconds in record.train.step_seconds)
        assert all(0 <= phase.seconds < taken for phase in record.phases.values())
    assert status()["done"] == CELLS
    tell(f"{CELLS} cells of two sweeps, one of whose clocks went back by two days: {taken:.0f} s.")
    assert not os.listdir(study.folder / ".harness" / "running")
