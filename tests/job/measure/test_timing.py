"""The stopwatch and the matmul peak, on clocks that tell what the test says."""

from __future__ import annotations

import pytest
import torch

from harness.job.measure import timing
from harness.job.measure.timing import Stopwatch

CPU = torch.device("cpu")


def test_a_stopwatchs_parts_add_up(monkeypatch):
    ticks = iter([0.0, 0.0, 2.0, 5.0, 6.0, 10.0, 10.5])
    monkeypatch.setattr(timing, "clock", lambda: next(ticks))
    watch = Stopwatch(CPU)
    watch.start()
    for part in ("forward", "backward", "forward", "backward"):
        watch.lap(part)
    assert watch.stop() == (10.5, {"forward": 3.0, "backward": 7.0})


@pytest.mark.parametrize(("threads", "size"), [(4, 1024), (5, 2048)])
def test_the_matmul_peak_is_the_best_of_several(monkeypatch, threads, size):
    durations = iter([0.5, 4.0, 2.0, 1.0, 3.0, 4.0, 4.0, 4.0, 4.0])  # the first is warm-up
    now = [0.0]

    def tick() -> float:  # called before and after each product
        tick.calls += 1
        if tick.calls % 2 == 0:
            now[0] += next(durations)
        return now[0]

    tick.calls = 0
    monkeypatch.setattr(timing, "clock", tick)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert timing.matmul_peak(CPU, torch.float32) == 2 * size**3 / 1.0


def test_a_format_is_as_fast_as_the_median_of_pairs_says(monkeypatch):
    """A burst of other work falls on the products of few pairs, or on both of a pair."""
    other, one = [6.0, 2.0, 20.0, 2.0, 2.0, 2.0], [6.0, 1.0, 10.0, 9.0, 1.0, 1.0]  # the first pair is warm-up
    durations = iter([seconds for pair in zip(other, one, strict=True) for seconds in pair])
    monkeypatch.setattr(timing, "_product_seconds", lambda a, b: next(durations))
    assert timing.product_speedup(torch.bfloat16, torch.float32, size=2, pairs=5) == 2.0
