"""The share of a step in which the GPU runs a kernel, and the kernels of a step, by torch's profiler.

On a fast GPU a small model's step is as long as Python takes to start its kernels. Its speed is then that of the host,
and says little about the method.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from harness.job.measure import timing

STEPS = 2  # that are profiled
NO_KERNEL = ("Memcpy", "Memset")  # beginnings of the names of copies, which no multiprocessor runs


class Busy(NamedTuple):
    """share: of a step's time, from 0 to 1. kernels: of one step."""

    share: float
    kernels: float


def measure(step: Callable[[], Any], device: torch.device) -> Busy | None:
    """Profile STEPS calls of `step`; None on other devices than CUDA, or if the profiler sees no kernel.

    The profiler slows the host, so a step's time is taken from as many calls before it. One more call comes first.
    """
    if device.type != "cuda":
        return None
    step()
    timing.synchronize()
    start = timing.clock()
    for _ in range(STEPS):
        step()
    timing.synchronize()
    seconds = timing.clock() - start
    os.environ.setdefault("TEARDOWN_CUPTI", "1")  # otherwise CUPTI stays in the process, and slows timed steps
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(STEPS):
            step()
        timing.synchronize()
    return of_events(trace.events(), torch.autograd.DeviceType.CUDA, seconds, STEPS)


def of_events(events: Iterable[Any], kind: torch.autograd.DeviceType, seconds: float, steps: int) -> Busy | None:
    """The share of `seconds` that kernels on devices of `kind` cover, and their number a step; None without kernels.

    events: FunctionEvents of torch's profiler, times in microseconds, over `steps` steps. Ranges that the user named
    are drawn on the GPU too, and are no kernels.
    """
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == kind and not event.is_user_annotation and not event.name.startswith(NO_KERNEL)
    )
    if not spans:
        return None
    return Busy(min(1.0, covered(spans) / 1e6 / seconds), len(spans) / steps)


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of `spans`, which are sorted: kernels in two streams at once count once."""
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
