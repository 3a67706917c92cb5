"""Windows of phases: each has its own seconds and peaks."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from job_helpers import run_tiny

from harness.job.evaluate import scoring
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.phases import Meter

CPU = torch.device("cpu")
MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="the process's peak can be reset on Linux alone")


def test_a_phase_is_measured_also_when_it_breaks():
    meter = Meter(CPU)

    def breaks() -> None:
        with meter.window("train") as memory, meter.live(memory):
            torch.zeros(1000)
            time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    phase = meter.phases["train"]
    assert phase.seconds >= 0.01
    assert phase.memory.allocated_peak == 4000
    assert phase.memory.reserved_peak is None  # the CPU has no such allocator


@linux
def test_the_process_peak_is_each_phases_own():
    meter = Meter(CPU)
    with meter.window("load"):
        held = torch.ones(300 * MIB // 4)
        del held
    with meter.window("train"):
        pass
    first, second = (meter.phases[name].memory.process_peak for name in ("load", "train"))
    assert first - second > 250 * MIB
    assert second > 50 * MIB  # torch itself


@pytest.mark.long
def test_phases_follow_one_another_within_the_whole(tmp_path):
    record = run_tiny(tmp_path)
    assert sum(record.train.step_seconds) <= record.phases["train"].seconds
    assert sum(phase.seconds for phase in record.phases.values()) <= record.seconds


@pytest.mark.long
def test_scoring_does_not_touch_the_memory_of_training(tmp_path, monkeypatch):
    stock = ("speedups=off", "eval.limit=64")  # our own scoring fills its rows whatever the batch size
    score, peaks = scoring.score, []

    def counted(*args, **keywords):
        with LiveBytes(CPU) as live:
            found = score(*args, **keywords)
        peaks.append(live.peak)
        return found

    monkeypatch.setattr(scoring, "score", counted)
    small, large = (run_tiny(tmp_path, f"eval.batch_size={n}", *stock) for n in (1, 64))
    assert small.probe == large.probe
    assert small.phases["probe"].memory.allocated_peak == large.phases["probe"].memory.allocated_peak
    assert peaks[1] > 1.2 * peaks[0]
