"""Instruments: windows of memory and time, and the bytes of live tensors on a device without allocator statistics.

On CUDA the allocator itself says how much was allocated and reserved at most. On CPU torch keeps no such account,
so `LiveBytes` keeps one: it sees every operation and follows each storage from its first sight to its end.
"""

from __future__ import annotations

import contextlib
import re
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from harness.record import Memory, Phase


def synchronize() -> None:
    """Wait until the accelerator, if any, has done all that was asked of it."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


class LiveBytes(TorchDispatchMode):
    """Counts bytes of live tensor storages on `device`; `peak` is the most there were.

    A storage counts once however many views it has, at its allocated size, from the first operation that takes or
    gives it until it is freed. What kernels allocate and free inside one operation is not seen.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device.type
        self._live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.see((args, kwargs))
        out = func(*args, **(kwargs or {}))
        self.see(out)
        return out

    def see(self, tree) -> None:
        """Take notice of all tensors in `tree`, if they are new."""
        for tensor in tree_iter(tree):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._device:
                storage = tensor.untyped_storage()
                key = storage._cdata  # the C++ storage: python wrappers of it come and go
                if key not in self._live:
                    self._live[key] = storage.nbytes()
                    self.now += self._live[key]
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._live.pop(key, 0)


class Meter:
    """Opens one window a phase, one after another; what each cost is in `phases`, by name."""

    def __init__(self, device: torch.device):
        self.device = device
        self.phases: dict[str, Phase] = {}

    @contextlib.contextmanager
    def window(self, name: str) -> Iterator[Memory]:
        """Measure the block as phase `name`, also if it raises; yields the phase's memory.

        On CPU `allocated_peak` stays null unless the block sets it (by `live`).
        """
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.empty_cache()  # else `reserved` would still hold the phase before
            torch.cuda.reset_peak_memory_stats(self.device)
        _reset_process_peak()
        memory = Memory()
        synchronize()
        start = time.perf_counter()
        try:
            yield memory
        finally:
            synchronize()
            seconds = time.perf_counter() - start
            if on_cuda:
                memory.allocated_peak = torch.cuda.max_memory_allocated(self.device)
                memory.reserved_peak = torch.cuda.max_memory_reserved(self.device)
            memory.process_peak = _process_peak()
            self.phases[name] = Phase(seconds, memory)

    @contextlib.contextmanager
    def live(self, memory: Memory) -> Iterator[Callable[[Any], None]]:
        """On CPU, count live tensors in the block into `memory.allocated_peak`.

        Yields a function that is shown tensors which exist without being the result of an operation in the block.
        """
        if self.device.type == "cuda":
            yield lambda tree: None
            return
        counter = LiveBytes(self.device)
        try:
            with counter:
                yield counter.see
        finally:
            memory.allocated_peak = max(memory.allocated_peak or 0, counter.peak)


def _reset_process_peak() -> None:
    with contextlib.suppress(OSError):  # not Linux, or not allowed: then no peak is reported
        Path("/proc/self/clear_refs").write_text("5")


def _process_peak() -> int | None:
    """Peak resident set in bytes since the last reset; null where the kernel can't reset it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None
