"""Enables what makes a cell faster without changing its results, and says for the record what is on."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn

from harness.job.data.batching import Layout
from harness.job.measure import heap
from harness.job.training import attention, layer_kernels, loss


def enable(
    model: nn.Module,
    switch: str | None,
    pad: int,
    accelerator: Accelerator,
    by_token: bool = False,
    compiled: bool = False,
) -> tuple[Layout, dict[str, str]]:
    """Enable the speed-ups of training and validation that `switch`, the setting `speedups`, allows.

    Returns the layout of batches, and by speed-up "on", or "off: " and the reason.
    pad: token id that pads. by_token: as in harness.job.training.loss.enable. compiled: whether layers are to be
    compiled.
    """
    layout, states = attention.layout(model, switch, pad)
    if layout.flat:
        attention.enable(model)
    if switch == "off":
        return layout, states | dict.fromkeys(("fused_loss", "layer_kernels", "kept_memory"), attention.OFF)
    with accelerator.autocast():
        states["fused_loss"] = loss.enable(model, by_token=by_token)
    states["layer_kernels"] = layer_kernels.COMPILED if compiled else layer_kernels.enable(model)
    states["kept_memory"] = heap.keep(accelerator.device.type)
    return layout, states
