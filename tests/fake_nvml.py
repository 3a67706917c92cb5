"""A stand-in for NVIDIA's libnvidia-ml.so below the real pynvml: its signatures, structs, constants and error classes.

pynvml calls the C functions of a library object by name, with ctypes' values and pointers. This object answers them, so
everything above the C boundary is pynvml's own code.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

H100 = {
    "nvmlDeviceGetClockInfo": {pynvml.NVML_CLOCK_SM: [1980, 1755, 1980], pynvml.NVML_CLOCK_MEM: [2619]},
    "nvmlDeviceGetEnforcedPowerLimit": [700_000],
    "nvmlDeviceGetTemperature": [41, 63, 58],
    "nvmlDeviceGetCurrentClocksThrottleReasons": [0, 4, 0],
    "nvmlDeviceGetPowerUsage": [71_250],
    "nvmlDeviceGetTotalEnergyConsumption": [5_000, 7_500],
}


class FakeNvml:
    """Devices by their full UUID, and what each C function answers call by call, the last answer again and again.

    answers: by function a list, or lists by clock. What it lacks is not supported, as by consumer cards and under MIG.
    absent: functions that the library has not at all, as an old driver.
    """

    def __init__(self, uuid: str, answers: dict[str, Any], absent: tuple[str, ...] = ()):
        self._uuid, self._answers, self._absent = uuid, answers, absent
        self._calls: dict[Any, int] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in self._absent:
            raise AttributeError(name)
        return {
            "nvmlInitWithFlags": lambda flags: pynvml.NVML_SUCCESS,
            "nvmlDeviceGetHandleByUUID": self._handle,
            "nvmlDeviceGetClockInfo": lambda handle, kind, out: self._tell(name, out, kind.value),
            "nvmlDeviceGetTemperature": lambda handle, sensor, out: self._tell(name, out),
        }.get(name, lambda handle, out: self._tell(name, out))

    def _handle(self, uuid: Any, out: Any) -> int:
        return pynvml.NVML_SUCCESS if uuid.value.decode() == self._uuid else pynvml.NVML_ERROR_NOT_FOUND

    def _tell(self, name: str, out: Any, kind: int | None = None) -> int:
        answers = self._answers.get(name)
        if answers is not None and kind is not None:
            answers = answers.get(kind)
        if answers is None:
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        number = self._calls[name, kind] = self._calls.get((name, kind), -1) + 1
        out._obj.value = answers[min(number, len(answers) - 1)]
        return pynvml.NVML_SUCCESS


def install(patch: pytest.MonkeyPatch, library: FakeNvml, uuid: str = "1f2e") -> torch.device:
    """Have pynvml find `library`, and CUDA a device with this `uuid`; returns that device."""
    patch.setattr(pynvml, "nvmlLib", library)
    patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    patch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="X", uuid=uuid))
    return torch.device("cuda")
