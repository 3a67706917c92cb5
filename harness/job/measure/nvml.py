"""Queries NVIDIA's management library about a CUDA device; None if it is absent or has no answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

IDLE = "gpu_idle"
# NVML's reasons for clocks below the highest possible, by the ends of its constants' names
REASONS = {
    "GpuIdle": IDLE,
    "ApplicationsClocksSetting": "application_clocks",
    "SwPowerCap": "sw_power_cap",
    "HwSlowdown": "hw_slowdown",
    "SyncBoost": "sync_boost",
    "SwThermalSlowdown": "sw_thermal_slowdown",
    "HwThermalSlowdown": "hw_thermal_slowdown",
    "HwPowerBrakeSlowdown": "hw_power_brake",
    "DisplayClockSetting": "display_clock",
}


@dataclass(frozen=True)
class Reading:
    """The state of a GPU at one moment; null where NVML does not tell. throttle_reasons: of REASONS."""

    sm_mhz: int | None
    memory_mhz: int | None
    power_limit_watts: float | None
    celsius: int | None
    throttle_reasons: tuple[str, ...] | None


def reading(device: torch.device) -> Reading | None:
    """The present state; None without NVML. What one card does not tell leaves the rest known."""

    def ask(pynvml: Any, handle: Any) -> Reading:
        def value(question: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return question(handle, *arguments)
            except pynvml.NVMLError:
                return None

        milliwatts = value(pynvml.nvmlDeviceGetEnforcedPowerLimit)
        # Known to every driver; the name that says "event" in place of "throttle" is not.
        bits = value(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        bit_of = {name: getattr(pynvml, f"nvmlClocksThrottleReason{end}") for end, name in REASONS.items()}
        return Reading(
            sm_mhz=value(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
            memory_mhz=value(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
            power_limit_watts=None if milliwatts is None else milliwatts / 1000,
            celsius=value(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
            throttle_reasons=None if bits is None else tuple(name for name, bit in bit_of.items() if bits & bit),
        )

    return _ask(device, ask)


def watts(device: torch.device) -> float | None:
    """The present power of the whole device; recent cards average it over a second."""
    return _ask(device, lambda pynvml, handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)


def process_bytes(device: torch.device) -> int | None:
    """Bytes of the device's memory that this process holds, including its context."""

    def ask(pynvml: Any, handle: Any) -> int | None:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        # In a container NVML's process ids may be the host's, and not match ours.
        return next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), None)

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

    def ask(pynvml: Any, handle: Any) -> tuple[dict[int, int | None], int, int]:
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
        return question(pynvml, _handle(pynvml, torch.cuda.get_device_properties(device).uuid))
    except pynvml.NVMLError:
        return None


def _handle(pynvml: Any, uuid: Any) -> Any:
    """NVML's handle of a GPU, or of a part of one (MIG), which CUDA names alike.

    By UUID: CUDA_VISIBLE_DEVICES renumbers devices for CUDA, but not for NVML.
    """
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError_NotFound:
        return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
