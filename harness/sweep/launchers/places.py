"""The places of this machine in which cells run at the same time: its GPUs, or shares of its CPU's cores."""

from __future__ import annotations

import os
import sys

import pynvml

from harness.errors import UserError


def places(cells: int | None, devices: int = 1) -> list[dict[str, str]]:
    """The environment variables of each place; one cell at a time runs in each.

    Raises UserError if this machine has no room for `cells` places of `devices` GPUs each.
    """
    if cells is not None and (not isinstance(cells, int) or cells < 1):
        raise UserError(f"hydra.launcher.cells must be a positive number, got {cells}.")
    visible = gpus()
    if visible:
        require_gpus(devices)
        together = [",".join(visible[i : i + devices]) for i in range(0, len(visible) - devices + 1, devices)]
        if cells is not None and cells > len(together):
            each = "" if devices == 1 else f", {devices} of them for a cell (train.devices)"
            raise UserError(
                f"hydra.launcher.cells must be at most {len(together)}, got {cells}: a GPU runs one cell at a time, "
                f"and there are {len(visible)}{each}."
            )
        return [{"CUDA_VISIBLE_DEVICES": gpus} for gpus in together[:cells]]
    if cells in (None, 1):
        return [{}]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // cells))
    return [{"OMP_NUM_THREADS": threads} for _ in range(cells)]


def require_gpus(devices: int) -> None:
    """Raise UserError if this machine has GPUs, but fewer than `devices`."""
    visible = gpus()
    if visible and devices > len(visible):
        raise UserError(f"train.devices must be at most {len(visible)}, the GPUs of this machine, got {devices}.")


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(count)]
    return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")] if count else []


def cores() -> int:
    """The CPU's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
