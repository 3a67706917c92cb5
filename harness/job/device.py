"""Which number format the device computes in, and what a record says of the device."""

from __future__ import annotations

from typing import Any

import torch


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype that matrices are multiplied in for ``train.precision``.

    ``auto`` is bfloat16 where the device has instructions for it, else float32: emulated bf16 is several times slower.
    """
    if precision == "auto":
        precision = "bf16" if _has_bf16() else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def _has_bf16() -> bool:
    if torch.accelerator.is_available():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def describe(device: torch.device) -> dict[str, Any]:
    """type, name and memory in bytes (both null on CPU, which the record describes anyway), and threads."""
    name, memory = None, None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    return {"device": {"type": device.type, "name": name, "memory_bytes": memory}, "threads": torch.get_num_threads()}
