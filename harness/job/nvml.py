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
