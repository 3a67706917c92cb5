"""A run that asks a real model behind an API is killed again and again: what was answered is not asked twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from processes import ENVIRONMENT, family
from serving import Wire, chatty, serve

from harness.record import read_study

pytestmark = pytest.mark.faults

MODEL = "smollm2-135m-instruct"
ITEMS = 6
KILLS = 2  # each after as many more answers


def test_a_killed_run_asks_only_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chatty(Path(MODEL), MODEL)
    with serve(MODEL) as url, Wire(url) as wire:
        command = [sys.executable, "-m", "harness", "run", "method=api", f"model.base_url={wire.base_url}"]
        command += [f"model.name={MODEL}", "data=wordmath_short", f"eval.limit={ITEMS}", "api.concurrency=1"]
        for kill in range(KILLS):
            run = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while len(wire.given) < 2 * (kill + 1):
                assert run.poll() is None
                time.sleep(0.05)
            time.sleep(0.2)  # until it is written down
            for pid in reversed(family(run.pid)):
                os.kill(pid, signal.SIGKILL)
            run.wait()
        assert read_study(tmp_path / "results" / "adhoc")[0] == []
        command += ["model.price.read=1", "model.price.written=2", "--budget", "1USD"]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        assert f"{ITEMS - 2 * KILLS} requests, about" in done.stderr, "the estimate is of the rest"
        assert done.returncode == 0, done.stderr
        assert len(wire.given) == ITEMS
        assert set(Counter(wire.given).values()) == {1}
        assert len(wire.asked) <= ITEMS + KILLS, "but for those under way when it was killed"
    (record,) = read_study(tmp_path / "results" / "adhoc")[0]
    assert (record.status, record.api.requests, record.api.cached) == ("ok", ITEMS, 0)
    assert {score.n for score in record.scores} == {ITEMS}
    assert record.api.dollars == pytest.approx((record.api.read + 2 * record.api.written) / 1e6)
    table = [sys.executable, "-m", "harness", "table"]
    shown = subprocess.run(table, env=ENVIRONMENT, capture_output=True, text=True, timeout=60).stdout
    row = next(line for line in shown.splitlines() if line.startswith(f"| {MODEL} "))
    assert [text.strip() for text in row.split("|")][1:4] == [MODEL, "api", "chat"]
    assert "$1.00 / $2.00" in row
