"""Enables what makes a cell faster without changing its results, and says for the record what is on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from harness.job.data.batching import Layout
from harness.job.measure import heap
from harness.job.training import attention, fused_dora, fused_lora, layer_kernels, loss, uncast_inputs


def enable(
    model: nn.Module,
    switch: str | None,
    pad: int,
    accelerator: Accelerator,
    by_token: bool = False,
    sharded: bool = False,
    compiled: bool = False,
) -> tuple[Layout, dict[str, str]]:
    """Enable the speed-ups of training and validation that `switch`, the setting `speedups`, allows.

    Returns the layout of batches, and by speed-up "on", or "off: " and the reason.
    pad: token id that pads. by_token: as in harness.job.training.loss.enable. sharded: whether weights will be.
    compiled: whether layers will be.
    """
    layout, states = attention.layout(model, switch, pad)
    if layout.flat:  # one that is to be sharded is not yet on the device
        attention.enable(model, accelerator.device.type)
    with accelerator.autocast():
        adapters = dict(_of_adapters(model, accelerator, sharded, compiled))
        if switch == "off":
            names = ("fused_loss", "layer_kernels", "kept_memory", *adapters)
            return layout, states | dict.fromkeys(names, attention.OFF)
        states["fused_loss"] = loss.enable(model, by_token=by_token)
    states |= {name: enabled() for name, enabled in adapters.items()}
    device = accelerator.device
    states["layer_kernels"] = layer_kernels.COMPILED if compiled else layer_kernels.enable(model, device)
    states["kept_memory"] = heap.keep(device.type)
    return layout, states


def _of_adapters(
    model: nn.Module, accelerator: Accelerator, sharded: bool, compiled: bool
) -> Iterator[tuple[str, Callable[[], str]]]:
    """The speed-ups of the adapters that `model` has, each with what enables it and returns its state."""
    if torch.is_autocast_enabled(accelerator.device.type) and uncast_inputs.concerns(model):
        yield uncast_inputs.NAME, partial(uncast_inputs.enable, model)
    if fused_lora.concerns(model):
        yield fused_lora.NAME, partial(fused_lora.enable, model, once=not (sharded or compiled))
    if fused_dora.concerns(model):
        yield fused_dora.NAME, partial(fused_dora.enable, model, sharded, compiled)
