"""How busy a GPU is, from profiler events: real ones of the CPU, and such as kineto makes of a CUDA trace."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from harness.job.measure import busy, timing

CPU, CUDA = DeviceType.CPU, DeviceType.CUDA


def event(name: str, start: float, end: float, device: DeviceType = CUDA, annotation: bool = False) -> FunctionEvent:
    """An event as kineto's are parsed, times in microseconds."""
    return FunctionEvent(1, name, 7, start, end, device_type=device, is_user_annotation=annotation)


# Two steps of 1 ms: kernels in two streams, of which two overlap; copies; launches on the host; a range of the user's.
TRACE = [
    event("ProfilerStep#0", 0, 900, annotation=True),
    event("cudaLaunchKernel", 1, 30, CPU),
    event("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn", 100, 300),
    event("void at::native::vectorized_elementwise_kernel<4>", 200, 350),  # in another stream
    event("Memcpy HtoD (Pageable -> Device)", 400, 600),
    event("Memset (Device)", 600, 601),
    event("void at::native::reduce_kernel<512, 1>", 1100, 1250),
    event("void at::native::reduce_kernel<512, 1>", 1250, 1300),
]


def test_kernels_count_and_their_union_covers():
    assert busy.of_events(TRACE, CUDA, 2e-3, 2) == pytest.approx((0.45 / 2, 2))  # 250 + 200 µs of 2 ms; 4 kernels


def test_order_does_not_matter_and_a_share_is_at_most_one():
    assert busy.of_events(TRACE[::-1], CUDA, 2e-3, 2) == busy.of_events(TRACE, CUDA, 2e-3, 2)
    assert busy.of_events(TRACE, CUDA, 4e-4, 2).share == 1.0  # the profiled steps were slower than those timed


def test_without_kernels_nothing_is_known():
    assert busy.of_events([event("cudaLaunchKernel", 1, 2, CPU)], CUDA, 1.0, 2) is None
    assert busy.of_events([], CUDA, 1.0, 2) is None


def test_a_real_trace_of_the_cpu(tmp_path):
    """Held against the trace that the profiler writes, counted by what is open at each moment."""
    a = torch.randn(64, 64)
    start = timing.clock()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for _ in range(2):
            with record_function("my range"):
                (a @ a).relu_().sum()
    seconds = timing.clock() - start
    found = busy.of_events(trace.events(), CPU, seconds, 2)
    products = [event for event in trace.events() if event.name == "aten::mm"]
    trace.export_chrome_trace(str(tmp_path / "trace.json"))
    written = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    operations = [e for e in written if e.get("cat") == "cpu_op"]
    assert busy.of_events(products, CPU, seconds, 2).kernels == 1
    assert sum(e["name"] == "aten::mm" for e in operations) == 2
    assert 3 < found.kernels <= len(operations) / 2  # torch leaves out a call within one of the same name
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in operations]
    depth, open_since, total = 0, 0.0, 0.0
    for moment, change in sorted([(s, 1) for s, _ in spans] + [(e, -1) for _, e in spans], key=lambda m: (m[0], -m[1])):
        if depth == 0:
            open_since = moment
        depth += change
        if depth == 0:
            total += moment - open_since
    assert found.share == pytest.approx(total / 1e6 / seconds, rel=0.01)
    assert 0 < found.share < 1


def test_on_a_cpu_no_step_is_taken():
    assert busy.measure(lambda: pytest.fail("a step was taken"), torch.device("cpu")) is None


def test_steps_are_timed_without_the_profiler_and_then_profiled(monkeypatch):
    """On a device that seems to be CUDA, whose kernels are those of TRACE."""
    seen = []

    @contextlib.contextmanager
    def profiling(activities):
        assert activities == [ProfilerActivity.CUDA]
        seen.append("profile")
        yield SimpleNamespace(events=lambda: TRACE)
        seen.append("end")

    now = iter([10.0, 10.002])
    monkeypatch.setattr(busy, "profile", profiling)
    monkeypatch.setattr(busy.timing, "clock", lambda: next(now))
    found = busy.measure(lambda: seen.append("step"), torch.device("cuda"))
    assert found == pytest.approx((0.225, 2))
    assert seen == ["step", "step", "step", "profile", "step", "step", "end"]
