"""What NVIDIA's management library says of a CUDA device; None wherever it is absent or does not tell."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


def process_bytes(device: torch.device) -> int | None:
    """Bytes of the device's memory that this process holds, its context included."""

    def ask(pynvml, handle) -> int | None:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        # In a container the ids that NVML gives may be the host's, which are none of ours.
        return next((p.usedGpuMemory for p in found if p.pid == os.getpid()), None)

    return _ask(device, ask)


def joules(device: torch.device) -> float | None:
    """Energy that the device has used since its driver was loaded."""
    return _ask(device, lambda pynvml, handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)


def driver(device: torch.device) -> str | None:
    """Version of the driver."""
    return _ask(device, lambda pynvml, handle: pynvml.nvmlSystemGetDriverVersion())


def load(device: torch.device) -> tuple[dict[int, int | None], int, int] | None:
    """Bytes (None: not told) by process id, bytes used of the whole device, utilisation of the last moment in percent.

    What the driver keeps for itself counts as free.
    """

    def ask(pynvml, handle) -> tuple[dict[int, int | None], int, int]:
        processes = {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        used = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used
        return processes, used, pynvml.nvmlDeviceGetUtilizationRates(handle).gpu

    return _ask(device, ask)


def _ask(device: torch.device, question: Callable[[Any, Any], Any]) -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By its id: CUDA_VISIBLE_DEVICES renumbers what CUDA sees, and not what NVML does.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return question(pynvml, handle)
    except pynvml.NVMLError:
        return None
