"""Queries NVIDIA's management library about a CUDA device; None if it is absent or has no answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


def process_bytes(device: torch.device) -> int | None:
    """Bytes of the device's memory that this process holds, including its context."""

    def ask(pynvml, handle) -> int | None:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        # In a container NVML's process ids may be the host's, and not match ours.
        return next((p.usedGpuMemory for p in found if p.pid == os.getpid()), None)

    return _ask(device, ask)


def joules(device: torch.device) -> float | None:
    """Energy of the device in joules since its driver was loaded."""
    return _ask(device, lambda pynvml, handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)


def driver(device: torch.device) -> str | None:
    """Version of the driver."""
    return _ask(device, lambda pynvml, handle: pynvml.nvmlSystemGetDriverVersion())


def load(device: torch.device) -> tuple[dict[int, int | None], int, int] | None:
    """Bytes by process id (None if unknown), used bytes of the device, and its present utilisation in percent.

    The driver's own memory counts as free.
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
        # By UUID: CUDA_VISIBLE_DEVICES renumbers devices for CUDA, but not for NVML.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return question(pynvml, handle)
    except pynvml.NVMLError:
        return None
