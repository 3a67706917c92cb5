"""Freed memory that is kept for the next tensors, by what the system says of the process."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys

import pytest

from harness.config import ROOT
from harness.job.measure import heap

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")

SCRIPT = """
import resource, sys, torch
from harness.config import ROOT
from harness.job.measure import heap

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(16 * 2**20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults(1)
print(faults(10))
print(heap.keep())
faults(1)
print(faults(10))
held = resident()
heap.give_back()
print(held - resident())
"""


@pytest.mark.long
@glibc
def test_kept_memory_is_not_asked_for_again():
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.splitlines()
    pages = 64 * 2**20 // resource.getpagesize()
    assert int(out[0]) > 9 * pages  # the test would see memory that is mapped anew
    assert out[1] == "on"
    assert int(out[2]) < pages / 10
    assert int(out[3]) > 50 * 2**20


def test_a_heap_that_is_not_kept_has_a_reason(monkeypatch):
    assert heap.keep("cuda") == "off: the device has an allocator of its own"
    monkeypatch.setattr(heap, "_libc", object())
    assert heap.keep() == "off: the C library is not glibc"
    heap.give_back()


def test_memory_is_kept_only_where_that_is_recorded():
    files = (ROOT / "harness").rglob("*.py")
    calls = [line for file in files for line in file.read_text().splitlines() if "heap.keep(" in line]
    assert calls
    assert all('["kept_memory"] = heap.keep(' in line for line in calls), calls
