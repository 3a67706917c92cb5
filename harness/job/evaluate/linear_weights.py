"""Casts, dequantises or packs the weights of linear layers once, instead of at every call, while a model generates.

Each generated token reads every weight, so converting weights at every call takes most of the time.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.helpers import DoraCaching
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional

from harness.job.models.quantisation import packed_matrix
from harness.job.training.loss import LossHead


def cast_for_good(model: nn.Module, dtype: torch.dtype) -> None:
    """`cast`, without a way back: what would undo it holds the weights from before."""
    for module in _linear(model):
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, _copy(weight, dtype))


def cast(model: nn.Module, dtype: torch.dtype) -> Callable[[], None]:
    """Cast the weights of linear layers to `dtype`, as autocast does at every call. Returns a function that undoes it.

    An embedding tied to the head is not cast, as autocast leaves it too. Meanwhile the weights of a GPU wait in the
    host's memory, but for tied ones: beside their copies they would take more than training did, of which `plan` says
    that it takes most.
    """
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    before: list[tuple[nn.Module, str, nn.Parameter, torch.Tensor | None]] = []
    for module in _linear(model):
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, _copy(weight, dtype))
            waiting = None
            if _on_gpu(weight) and weight.dtype is not dtype and uses[id(weight)] == 1:
                with torch.inference_mode(False):
                    waiting, weight.data = weight.data.cpu(), weight.new_empty(0)
            before.append((module, name, weight, waiting))

    def undo() -> None:
        with torch.inference_mode(False):
            for module, name, weight, waiting in before:
                setattr(module, name, weight)
                if waiting is not None:
                    weight.data = waiting.to(weight.device)

    return undo


def _linear(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) in (nn.Linear, LossHead)]


def _copy(weight: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    """`weight` in `dtype`; no inference tensor, which could not be moved to another device and back."""
    with torch.inference_mode(False):
        return nn.Parameter(weight.detach().to(dtype), requires_grad=False)


def _on_gpu(weight: torch.Tensor) -> bool:
    return weight.is_cuda


def only_multiplied(model: nn.Module) -> bool:
    """Whether weights of linear layers are used in products only; of adapters only plain LoRA is known to do so."""
    if not isinstance(model, PeftModel):
        return True
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return bool(layers) and all(isinstance(layer, LoraLayer) and not layer.lora_variant for layer in layers)


@contextmanager
def expanded(model: nn.Module) -> Iterator[dict[str, str]]:
    """A context in which a 4-bit model on a CPU has its weights dequantised once instead of at every call.

    The results are the same to the bit. Adapters stay unmerged; DoRA, which reads the weights for its norms, computes
    them once (peft's DoraCaching).
    Yields for the record "expanded": "on", or "off: " and the reason; nothing for a model that is not in 4 bits.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}
    if not layers:
        yield {}
        return
    if any(layer.weight.device.type != "cpu" for layer in layers.values()):
        yield {"expanded": "off: the device's own kernels read 4 bits"}
        return
    size = sum(4 * layer.in_features * layer.out_features for layer in layers.values())  # in fp32
    if (reason := _too_large(size)) is not None:
        yield {"expanded": reason}
        return
    dora = any(isinstance(module, DoraLinearLayer) for module in model.modules())
    for name, layer in layers.items():  # norms need unrounded weights, products rounded ones
        model.set_submodule(
            name, _Expanded(layer, packed_matrix(layer).quant_state.dtype if dora else layer.compute_dtype)
        )
    try:
        with DoraCaching():
            yield {"expanded": "on"}
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


@contextmanager
def packed(model: nn.Module) -> Iterator[dict[str, str]]:
    """A context in which the bf16 weights of linear layers on a CPU lie as its kernels read them.

    oneDNN rearranges them at every call otherwise, which takes as long as the product of a few tokens. The results are
    the same to the bit. Yields for the record "packed": "on", or "off: " and the reason; nothing without such layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and _is_packable(layer)]
    if not layers:
        yield {}
        return
    size = sum(layer.weight.nbytes for layer in layers)
    if (reason := _too_large(size)) is not None:
        yield {"packed": reason}
        return
    for layer in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        layer.forward = partial(_from_packed, layer, weight)  # type: ignore[method-assign]
    try:
        yield {"packed": "on"}
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def _is_packable(layer: nn.Linear) -> bool:
    """Whether `layer` is a product in bf16 and nothing else, on a CPU that keeps its weight packed."""
    of_product = type(layer) in (nn.Linear, LossHead, _Expanded)
    weight = layer.weight
    return of_product and weight.dtype is torch.bfloat16 and weight.device.type == "cpu" and _packs()


def _packs() -> bool:
    """Whether oneDNN computes in bf16 here: on other processors than x86's another library does."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _from_packed(layer: nn.Linear, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What `layer` returns of `x`, by its packed `weight`."""
    if isinstance(layer, LossHead) and layer.is_replaced:
        return LossHead.forward(layer, x)
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), weight, layer.bias, "none", [], "")
    return product.to(x.dtype) if isinstance(layer, _Expanded) else product


def _too_large(size: int) -> str | None:
    """Why no second form of the weights, of `size` bytes, is kept beside them; None if there is room for it."""
    if 2 * size <= psutil.virtual_memory().available:
        return None
    return f"off: {size / 2**30:.1f} GiB of weights would be most of the memory that is free"


class _Expanded(nn.Linear):
    """A 4-bit layer with dequantised weights in `dtype`, hooks included."""

    def __init__(self, layer: Linear4bit, dtype: torch.dtype):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = dequantize_4bit(layer.weight.data, packed_matrix(layer).quant_state).to(dtype)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), layer.bias
        self._forward_hooks, self.compute_dtype = layer._forward_hooks, layer.compute_dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        operands = (None if tensor is None else tensor.to(self.compute_dtype) for tensor in (x, self.weight, self.bias))
        return functional.linear(*operands).to(x.dtype)
