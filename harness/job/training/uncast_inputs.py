"""Inputs of adapters stay as they are under autocast, which rounds them for each product anyway.

peft's layers cast their input to the dtype of the adapter's weights, most often bf16 to fp32. Autocast casts that back
for the first product, and the backward pass keeps this copy of each layer's input: for LoRA on all linear layers of an
8B model with 4 × 2048 tokens, 9 of 71 GiB. Where only products read the input, the results are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from harness.job.methods.dora import FastDoraVariant

NAME = "uncast_inputs"  # in the record
CAST = "_cast_input_dtype"  # peft's method, in whose place a layer gets a function of its own
# The kinds of adapters that cast their input, and read it by products alone. RoAd multiplies it number by number.
BY_PRODUCTS = {
    *(PeftType.ADALORA, PeftType.DEFT, PeftType.HIRA, PeftType.HRA, PeftType.LILY, PeftType.LOHA, PeftType.LOKR),
    *(PeftType.LORA, PeftType.MISS, PeftType.OFT, PeftType.OSF, PeftType.PEANUT, PeftType.PSOFT, PeftType.VERA),
    PeftType.WAVEFT,
}


def concerns(model: nn.Module) -> bool:
    """Whether `model` has adapters that cast their inputs without need under autocast."""
    return any(_casting(model))


def enable(model: nn.Module) -> str:
    """Have adapters of `model` leave their inputs uncast under autocast; outside of it they cast as before.

    Returns "on", or "off: " and the reason.
    """
    layers = list(_casting(model))
    if not layers:
        return "off: no adapter casts its input without need"
    if any(_dropped_out(layer) for layer in layers):  # drawn in another dtype, other numbers would be dropped
        return "off: dropout comes before the products"
    for layer in layers:
        if isinstance(layer, LoraLayer) and _computes_norms(layer):
            for lora_a in layer.lora_A.values():
                lora_a.register_forward_pre_hook(_before_its_cast)
            layer.__dict__[CAST] = _remembering
        else:
            layer.__dict__[CAST] = _uncast
    return "on"


def _casting(model: nn.Module) -> Iterator[BaseTunerLayer]:
    """The layers of adapters that cast their input without need."""
    if not isinstance(model, PeftModel) or model.peft_type not in BY_PRODUCTS:
        return
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and not (isinstance(layer, LoraLayer) and _unknown(layer)):
            yield layer


def _unknown(layer: LoraLayer) -> bool:
    """Whether `layer` is of a variant of LoRA that may read its input by more than products."""
    return not {type(variant) for variant in layer.lora_variant.values()} <= {DoraLinearVariant, FastDoraVariant}


def _computes_norms(layer: LoraLayer) -> bool:
    """Whether `layer` takes the dtype of its norms from that of its input, as peft's DoRA does."""
    return any(type(variant) is DoraLinearVariant for variant in layer.lora_variant.values())


def _dropped_out(layer: Any) -> bool:
    base = set(layer.get_base_layer().modules())
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in layer.modules() if part not in base)


def _uncast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`x` under autocast; else `x` in `dtype`, as peft has it. None: a bias that is not there."""
    if x is None or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(dtype)


def _remembering(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in `dtype`; under autocast with the attribute ``uncast``, which is `x`."""
    cast = x.to(dtype)
    if cast is not x and torch.is_autocast_enabled(x.device.type):
        cast.uncast = x  # type: ignore[attr-defined]  # ours, on torch's class
    return cast


def _before_its_cast(_product: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(getattr(x, "uncast", x) for x in inputs)
