"""Enables what makes a cell faster without changing its results, and says for the record what is on."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from harness.job.data.batching import Layout
from harness.job.measure import heap
from harness.job.training import attention, loss, uncast_inputs


def enable(
    model: nn.Module, switch: str | None, pad: int, accelerator: Accelerator, by_token: bool = False
) -> tuple[Layout, dict[str, str]]:
    """Enable the speed-ups of training and validation that `switch`, the setting `speedups`, allows.

    Returns the layout of batches, and by speed-up "on", or "off: " and the reason.
    pad: token id that pads. by_token: as in harness.job.training.loss.enable.
    """
    layout, states = attention.layout(model, switch, pad)
    if layout.flat:
        attention.enable(model)
    with accelerator.autocast():
        casting = torch.is_autocast_enabled(accelerator.device.type) and uncast_inputs.concerns(model)
        if switch == "off":
            names = ("fused_loss", "kept_memory", *((uncast_inputs.NAME,) if casting else ()))
            return layout, states | dict.fromkeys(names, attention.OFF)
        states["fused_loss"] = loss.enable(model, by_token=by_token)
    if casting:
        states[uncast_inputs.NAME] = uncast_inputs.enable(model)
    states["kept_memory"] = heap.keep(accelerator.device.type)
    return layout, states
