"""Memory as the allocator, the device and the kernel report it."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import torch


def in_use(device: torch.device) -> int | None:
    """Bytes in use now: allocated on a CUDA device, else the process's resident set; null off Linux."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def free(device: torch.device) -> int:
    """Bytes that tensors on a CUDA device can still take: free there, or held unused by torch's allocator."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def largest_free(device: torch.device) -> int | None:
    """Bytes of the largest block that CUDA's allocator can hand out, cached or free on the device; null on CPU."""
    if device.type != "cuda":
        return None
    segments = torch.cuda.memory_snapshot()
    cached = [block["size"] for segment in segments for block in segment["blocks"] if block["state"] == "inactive"]
    return max([torch.cuda.mem_get_info(device)[0], *cached])


def free_share(device: torch.device) -> float:
    """Share of the memory that is free now: of a CUDA device, else of the machine; 1 off Linux, which does not say."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free / total
    try:
        kilobytes = dict(re.findall(r"^(\w+): +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
    except OSError:
        return 1.0
    return int(kilobytes["MemAvailable"]) / int(kilobytes["MemTotal"])


def reset_process_peak() -> None:
    """Measure `process_peak` from now on."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed: then no peak is reported
        Path("/proc/self/clear_refs").write_text("5")


def process_peak() -> int | None:
    """Peak resident set in bytes since the last reset; null off Linux."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else None
