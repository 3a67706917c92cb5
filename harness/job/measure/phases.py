"""Measures each phase of a cell in its own window: seconds and peak memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from harness.job.measure import heap, nvml
from harness.job.measure.device_memory import process_peak, reset_process_peak
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.timing import clock, synchronize
from harness.record import Memory, Phase


class Meter:
    """Opens one window for each phase. `phases` has the cost of each, by name.

    counter: counts the live tensors of the current or the last window; None if nothing does.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.phases: dict[str, Phase] = {}
        self.counter: LiveBytes | None = None
        self._apart = False  # whether a block that the window leaves out is open
        # Of the open window: its peaks, the seconds of an earlier process, and its begin.
        self._memory, self._earlier, self._start = Memory(), 0.0, 0.0

    @contextlib.contextmanager
    def window(self, name: str, counter: LiveBytes | None = None) -> Iterator[Memory]:
        """Measure the block as phase `name`, also if it raises; yields the phase's memory.

        On CPU `allocated_peak` stays null unless the block sets it (by `live`).
        counter: counts the live tensors of the block.
        """
        self.counter = counter
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # otherwise `reserved` includes the phase before
        heap.give_back()  # likewise of the process
        self._reset_peaks()
        self._memory, self._earlier = Memory(), 0.0
        synchronize()
        self._start = clock()
        try:
            yield self._memory
        finally:
            self.phases[name] = self.so_far()

    def so_far(self) -> Phase:
        """The cost of the open window up to now."""
        synchronize()
        seconds, memory = self._earlier + clock() - self._start, self._memory
        if self.device.type == "cuda":
            memory.allocated_peak = _larger(memory.allocated_peak, torch.cuda.max_memory_allocated(self.device))
            memory.reserved_peak = _larger(memory.reserved_peak, torch.cuda.max_memory_reserved(self.device))
            memory.device_process = _larger(memory.device_process, nvml.process_bytes(self.device))
        memory.process_peak = _larger(memory.process_peak, process_peak())
        return Phase(seconds, memory)

    def go_on_from(self, earlier: Phase) -> None:
        """Add what the open phase cost in an earlier process, `earlier`, to its window."""
        self._earlier += earlier.seconds
        for name, value in vars(earlier.memory).items():
            setattr(self._memory, name, _larger(getattr(self._memory, name), value))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A block whose seconds and memory the open window leaves out, also within another one."""
        if self._apart:
            yield
            return
        self._apart = True
        self.so_far()  # notes the peaks so far, which begin anew after the block
        begin = clock()
        try:
            yield
        finally:
            synchronize()
            self._apart = False
            self._start += clock() - begin
            self._reset_peaks()

    def _reset_peaks(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        reset_process_peak()

    @contextlib.contextmanager
    def live(self, memory: Memory) -> Iterator[Callable[[Any], None]]:
        """On CPU, count live tensors in the block into `memory.allocated_peak`.

        Yields a function to call with tensors that exist without being the result of an operation in the block.
        """
        if self.device.type == "cuda":
            yield lambda tree: None
            return
        self.counter = counter = LiveBytes(self.device)
        try:
            with counter:
                yield counter.see
        finally:
            memory.allocated_peak = max(memory.allocated_peak or 0, counter.peak)


def _larger(a: int | None, b: int | None) -> int | None:
    return max((value for value in (a, b) if value is not None), default=None)
