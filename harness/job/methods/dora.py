"""DoRA with peft's results in less time and memory: row norms block by block, and one saved tensor for each output."""

from __future__ import annotations

import copy
from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners import lora
from peft.tuners.lora import bnb
from peft.tuners.lora.dora import DoraLinearLayer, cache_decorator
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import transpose
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

BLOCK = 2**22  # elements, 16 MiB of fp32: fits in the last-level cache of a server CPU or a GPU
TINY = 1e-20  # replaces a magnitude of zero, which would divide by zero


@torch.no_grad()
def row_norms(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The L2 norms (out,) of the rows of `weight` + `scaling` · `b` @ `a`, in fp32 (fp64, if `weight` is).

    weight: (out, in), a: (r, in), b: (out, r).

    The sum is computed for a block of rows at a time. Its squares also factor without a sum, ‖W_i‖² + s b_i · (2 W A^T
    + s b A A^T)_i, but that takes as many products, more time on a CPU, and loses all digits where W and B A cancel.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    a, b = a.to(exact), b.to(exact)
    rows = max(1, BLOCK // weight.shape[1])
    with torch.autocast(weight.device.type, enabled=False):
        pairs = zip(weight.split(rows), b.split(rows), strict=True)
        sums = (torch.addmm(w.to(exact), part, a, alpha=scaling) for w, part in pairs)
        return torch.cat([torch.linalg.vector_norm(block, dim=1) for block in sums])


@torch.no_grad()
def exact_magnitudes(net: nn.Module) -> None:
    """Set the magnitudes of DoRA's adapters in `net`, not trained yet, to the norms of the weights' rows in fp32.

    peft rounds those of a base in 16 bits to 16 bits, but divides by norms in fp32. Each row of the untuned model would
    be up to 0.4% longer or shorter than the base's.
    """
    layers: list[Any] = [layer for layer in net.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        for name, part in layer.lora_magnitude_vector.items():
            base = layer.get_base_layer()
            dtype = getattr(base.weight, "quant_state", base.weight).dtype
            narrow = dtype in (torch.float16, torch.bfloat16) and not part.weight.is_meta
            if narrow and type(part) is DoraLinearLayer:
                # Of a copy, as peft does it: dequantising gives a layer another parameter.
                weight = transpose(dequantize_module_weight(copy.deepcopy(base)), part.fan_in_fan_out)
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                part.weight.copy_(row_norms(weight, a, b, layer.scaling[name]))


class Rescaled(torch.autograd.Function):
    """`direction` (tokens, out) times `magnitude` / `norms` (out,), in place.

    The norms are constants, as in the article's section 4.3. The magnitude's gradient is computed from the result,
    Σ g y / m, which the next operation saves anyway in an MLP's inner layers.
    """

    @staticmethod
    def forward(ctx: Any, direction: Tensor, magnitude: Tensor, norms: Tensor) -> Tensor:
        magnitude = torch.where(magnitude == 0, TINY, magnitude)
        result = direction.mul_(magnitude / norms)
        ctx.mark_dirty(result)
        ctx.save_for_backward(result, magnitude, norms)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        result, magnitude, norms = ctx.saved_tensors
        summed = (gradient.to(norms.dtype) * result).sum(0)
        scaled = (gradient * (magnitude / norms)).to(gradient.dtype)
        return scaled, (summed / magnitude).to(magnitude.dtype), None


class FastDoraVariant(DoraLinearVariant):
    """peft's DoRA with another forward pass: y = m (W x + s B A x) / ‖W + s B A‖ + bias (arXiv:2402.09353, eq. 5).

    It reads the weights of A and B, while peft calls their modules, so it does not work with sharded parameters (FSDP).
    """

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **keywords: Any) -> Tensor:
        base, scaling = module.get_base_layer(), module.scaling[active_adapter]
        lora_a, lora_b = module.lora_A[active_adapter], module.lora_B[active_adapter].weight
        dropout, dora = module.lora_dropout[active_adapter], module.lora_magnitude_vector[active_adapter]
        weight = transpose(dequantize_module_weight(base), module.fan_in_fan_out)
        norms = _norms(dora, weight, lora_a.weight, lora_b, scaling, adapter_name=active_adapter)
        if module.training and not isinstance(dropout, nn.Identity):
            x = dropout(x)
            plain = functional.linear(x, weight.to(x.dtype))
            rest = result - plain
        else:
            rest = base.bias
            plain = result if rest is None else result - rest
        low = lora_a(x)
        direction = _added(plain.reshape(-1, plain.shape[-1]), low.reshape(-1, low.shape[-1]), lora_b, scaling)
        turned = Rescaled.apply(direction, dora.weight, norms).view(plain.shape)
        return (turned if rest is None else turned + rest).to(result.dtype)


def _added(plain: Tensor, low: Tensor, b: Tensor, scaling: float) -> Tensor:
    """`plain` (tokens, out) + `scaling` · `low` (tokens, r) @ `b`^T, in the finer dtype of both.

    Autocast would round to bf16, and a new adapter adds less than half of bf16's last place.
    """
    dtype = torch.promote_types(plain.dtype, low.dtype)
    with torch.autocast(plain.device.type, enabled=False):
        return torch.addmm(plain.to(dtype), low.to(dtype), b.T.to(dtype), alpha=scaling)


@cache_decorator("weight-norm")  # where peft's DoraCaching is on
def _norms(dora: DoraLinearLayer, *matrices: Any, adapter_name: str) -> Tensor:
    return row_norms(*matrices)


class FastDora(LoraLayer):
    """Mixin for peft's adapted layers that uses FastDoraVariant in place of DoRA."""

    def resolve_lora_variant(self, *, config: peft.LoraConfig, **keywords: Any) -> LoraVariant | None:
        variant = super().resolve_lora_variant(config=config, **keywords)
        return FastDoraVariant() if type(variant) is DoraLinearVariant else variant


class FastDoraLinear(FastDora, lora.Linear):
    """peft's layer over nn.Linear or Conv1D."""


class FastDoraLinear4bit(FastDora, bnb.Linear4bit):
    """peft's layer over a matrix in NF4."""


def _layer(target: nn.Module, adapter_name: str, config: peft.LoraConfig, **keywords: Any) -> nn.Module | None:
    """The fast layer for `target`; None if there is none, and peft uses its own."""
    if type(target) is Linear4bit:
        return FastDoraLinear4bit(target, adapter_name, config, **keywords)
    if type(target) in (nn.Linear, Conv1D):
        transposed = config.fan_in_fan_out = type(target) is Conv1D
        return FastDoraLinear(target, adapter_name, config, is_target_conv_1d_layer=transposed, **keywords)
    return None


class FastDoraConfig(peft.LoraConfig):
    """peft's LoraConfig with fast linear layers for `use_dora`. It is saved as a LoraConfig."""

    def __post_init__(self) -> None:
        super().__post_init__()
        layers: Any = {nn.Module: _layer}  # called as a class would be, which is how peft types it
        self._register_custom_module(layers)
