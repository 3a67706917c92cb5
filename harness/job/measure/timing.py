"""Times steps and matrix products. Every reading is synchronised with the device."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

clock = time.perf_counter
RISE = 0.3  # seconds of work after which the clocks of an idle GPU have risen


def synchronize() -> None:
    """Wait until the accelerator, if there is one, has finished its queued work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


class Stopwatch:
    """Times a step and its parts, in seconds.

    The step is timed by the host's clock, synchronised on both sides. Its parts are timed by events in the stream on
    CUDA, so that the host need not wait between them, and by the host's clock elsewhere.
    """

    def __init__(self, device: torch.device):
        self._on_cuda = device.type == "cuda"
        self._start = 0.0
        self._marks: list[tuple[str, Any]] = []  # the ends of parts, by name: moments or events

    def start(self) -> None:
        synchronize()
        self._marks = [("", self._now())]
        self._start = clock()

    def lap(self, name: str) -> None:
        """End the part `name`; parts of one name add up."""
        self._marks.append((name, self._now()))

    def stop(self) -> tuple[float, dict[str, float]]:
        """Seconds since the start, and of each part."""
        synchronize()
        seconds = clock() - self._start
        parts: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            elapsed = before.elapsed_time(after) / 1000 if self._on_cuda else after - before
            parts[name] = parts.get(name, 0.0) + elapsed
        return seconds, parts

    def _now(self) -> Any:
        if not self._on_cuda:
            return clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several products of square matrices: the peak that this device reaches now.

    They are large enough to keep the device busy.
    """
    on_cpu = 1024 if torch.get_num_threads() <= 4 else 2048
    size, times = (8192, 10) if device.type == "cuda" else (on_cpu, 8)
    matrices = _random_matrices(size, device, dtype)
    warm = _product_seconds(*matrices)
    while device.type == "cuda" and warm < RISE:
        warm += _product_seconds(*matrices)
    return 2 * size**3 / min(_product_seconds(*matrices) for _ in range(times))


def product_speedup(dtype: torch.dtype, over: torch.dtype, size: int = 1024, pairs: int = 9) -> float:
    """How many times as fast as in `over` this CPU multiplies square matrices in `dtype`.

    The median over pairs of products that take turns, so that what else runs on the machine slows both alike.
    """
    first, second = (_random_matrices(size, torch.device("cpu"), each) for each in (dtype, over))
    ratios = [_product_seconds(*second) / _product_seconds(*first) for _ in range(1 + pairs)]
    return statistics.median(ratios[1:])


def _random_matrices(size: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    own = torch.Generator(device).manual_seed(0)  # leaves the random numbers of training as they are
    a, b = (torch.randn(size, size, device=device, generator=own).to(dtype) for _ in range(2))
    return a, b


def _product_seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    synchronize()
    start = clock()
    a @ b
    synchronize()
    return clock() - start
