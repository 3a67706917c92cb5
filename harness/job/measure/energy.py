"""Energy in joules, read from counters of the device."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.job.measure import nvml


class Energy:
    """Joules used by the whole device, from its own counters: NVML's on CUDA, else RAPL's of the CPU packages."""

    def __init__(self, device: torch.device, powercap: Path = Path("/sys/class/powercap")):
        self._device = device
        # intel-rapl:0 is a package (also on AMD); intel-rapl:0:1 is a part of it, and counted there
        self._packages = sorted(p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1)

    def read(self) -> list[tuple[float, float]] | None:
        """Each counter's joules and the value at which it wraps; None where no counter can be read."""
        if self._device.type == "cuda":
            total = nvml.joules(self._device)
            return None if total is None else [(total, 0.0)]
        try:
            micro = [[int((p / f).read_text()) for f in ("energy_uj", "max_energy_range_uj")] for p in self._packages]
        except (OSError, ValueError):
            return None  # on most systems only root may read it
        return [(used / 1e6, span / 1e6) for used, span in micro] or None

    @staticmethod
    def between(before: list[tuple[float, float]] | None, after: list[tuple[float, float]] | None) -> float | None:
        """Joules used between two readings that are less than one wrap apart; None if either is None."""
        if before is None or after is None:
            return None
        return sum(b - a + (span if b < a else 0) for (a, span), (b, _) in zip(before, after, strict=True))
