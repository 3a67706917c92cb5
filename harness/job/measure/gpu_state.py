"""Samples a GPU's clocks, power limit, temperature and throttle reasons while a phase runs."""

from __future__ import annotations

import threading
from statistics import median
from types import TracebackType

import torch

from harness.job.measure import nvml
from harness.job.measure.nvml import Reading
from harness.record import Gpu

PERIOD = 1.0  # seconds between readings: each takes about a millisecond of another thread


class GpuSampler:
    """A context in which the state of a CUDA device is read once a period, and once at its end.

    It may be entered again, and adds to its readings. Elsewhere than on CUDA it reads nothing. idle_watts: measured
    before the model was loaded; it is passed on.
    """

    def __init__(self, device: torch.device, idle_watts: float | None, period: float = PERIOD):
        self._device, self._idle_watts, self._period = device, idle_watts, period
        self._readings: list[Reading] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuSampler:
        if self._device.type == "cuda":
            self._over.clear()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(self._period):
            self._read()
        self._read()

    def _read(self) -> None:
        if (reading := nvml.reading(self._device)) is not None:
            self._readings.append(reading)

    def state(self) -> Gpu | None:
        """The state over all readings; None if the device is no GPU, or the context was not entered."""
        return None if self._thread is None else summary(self._readings, self._idle_watts)

    def states(self) -> list[Gpu]:
        """That state as a list, empty if there is none."""
        return [] if (state := self.state()) is None else [state]


def summary(readings: list[Reading], idle_watts: float | None) -> Gpu:
    """One state of several readings. Those between two kernels, when clocks fall, are left out if there are others."""
    busy = [reading for reading in readings if nvml.IDLE not in (reading.throttle_reasons or ())] or readings
    sm, memory, limits, degrees = (
        [value for reading in busy if (value := getattr(reading, name)) is not None]
        for name in ("sm_mhz", "memory_mhz", "power_limit_watts", "celsius")
    )
    reasons = [reading.throttle_reasons for reading in busy if reading.throttle_reasons is not None]
    return Gpu(
        samples=len(busy),
        sm_mhz=median(sm) if sm else None,
        sm_mhz_max=max(sm, default=None),
        memory_mhz=median(memory) if memory else None,
        memory_mhz_max=max(memory, default=None),
        power_limit_watts=min(limits, default=None),
        celsius=max(degrees, default=None),
        throttle_reasons=sorted({*(name for names in reasons for name in names)} - {nvml.IDLE}) if reasons else None,
        idle_watts=idle_watts,
    )
