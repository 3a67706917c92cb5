"""The instruments of CUDA devices."""

from __future__ import annotations

import pytest
import torch

from harness.job.measure import nvml, timing
from harness.job.measure.energy import Energy
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.timing import Stopwatch

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
MIB = 2**20


@pytest.mark.gpu
@cuda
def test_cudas_instruments_agree():
    device = torch.device("cuda")
    watch, energy = Stopwatch(device), Energy(device)
    before = energy.read()
    a = torch.randn(4096, 4096, device=device)
    with LiveBytes(device) as live:
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        watch.start()
        b = a @ a
        watch.lap("forward")
        c = b + a
        watch.lap("backward")
        seconds, parts = watch.stop()
        grown = torch.cuda.max_memory_allocated() - start
    assert parts["forward"] + parts["backward"] <= seconds
    assert live.peak == 3 * 4 * 4096**2
    assert 2 * 4 * 4096**2 <= grown < 2 * 4 * 4096**2 + 64 * MIB  # and cuBLAS's workspace
    assert Energy.between(before, energy.read()) is None or Energy.between(before, energy.read()) >= 0
    assert timing.matmul_peak(device, torch.bfloat16) > 1e12
    del b, c


@pytest.mark.gpu
@cuda
def test_nvml_knows_this_process_or_says_nothing():
    held = torch.zeros(256 * MIB, dtype=torch.uint8, device="cuda")
    found = nvml.process_bytes(held.device)
    assert found is None or found >= 256 * MIB
