"""Energy in joules, read from the counters of the device."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.attention.varlen  # defines its operations

from harness.job.measure import nvml


class Energy:
    """Joules that the whole device has used, by a counter of its own: NVML's on CUDA, else the packages' RAPL."""

    def __init__(self, device: torch.device, powercap: Path = Path("/sys/class/powercap")):
        self._device = device
        # intel-rapl:0 is a package (AMD's too); intel-rapl:0:1 is a part of it, counted there already
        self._packages = sorted(p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1)

    def read(self) -> list[tuple[float, float]] | None:
        """Each counter's joules and where it wraps; None where there is none to be read."""
        if self._device.type == "cuda":
            total = nvml.joules(self._device)
            return None if total is None else [(total, 0.0)]
        try:
            micro = [[int((p / f).read_text()) for f in ("energy_uj", "max_energy_range_uj")] for p in self._packages]
        except (OSError, ValueError):
            return None  # most systems let only root read it
        return [(used / 1e6, span / 1e6) for used, span in micro] or None

    @staticmethod
    def between(before: list[tuple[float, float]] | None, after: list[tuple[float, float]] | None) -> float | None:
        """Joules used from one reading to a later one, less than one wrap apart; None if either is."""
        if before is None or after is None:
            return None
        return sum(b - a + (span if b < a else 0) for (a, span), (b, _) in zip(before, after, strict=True))
