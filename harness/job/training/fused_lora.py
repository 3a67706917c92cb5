"""LoRA's two products, its scaling and the sum with the frozen layer's output as one operation of autograd.

peft takes the products, multiplies by the scale and adds, each into a tensor as large as the layer's output, and so
backward. Here the scale goes into B, and the second product is added where the frozen layer's output lies. In 16 bits
the result is rounded once instead of three times. Saved are the input, which the layer's neighbours save too, and its
product with A, of as many columns as the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.lora import bnb
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NAME = "fused_lora"  # in the record


def concerns(model: nn.Module) -> bool:
    """Whether `model` has adapters of plain LoRA on linear layers."""
    return any(_plain(model))


def enable(model: nn.Module, sharded: bool = False) -> str:
    """Have plain LoRA's linear layers in `model` train by one operation. Returns "on", or "off: " and the reason.

    sharded: whether the weights will be; then they are whole in peft's modules only.
    """
    if sharded:
        return "off: the weights are sharded"
    layers = list(_plain(model))
    if not layers:
        return "off: no linear layer has plain LoRA"
    if any(isinstance(part, nn.Dropout) for layer in layers for part in layer.lora_dropout.values()):
        return "off: dropout comes before the products"
    for layer in layers:
        layer.__class__ = FUSED[type(layer)]
    return "on"


def _plain(model: nn.Module) -> Iterator[LoraLayer]:
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and type(layer) in FUSED and not layer.lora_variant:
            yield layer


class _Summed(torch.autograd.Function):
    """`base` (…, out) + `scale` · `x` (…, in) @ `a`^T @ `b`^T, in place. a: (r, in), b: (out, r).

    dtype: of the products; the sum is in that of `base`.
    """

    @staticmethod
    def forward(
        ctx: Any,  # torch's FunctionCtx, which takes attributes
        x: Tensor,
        base: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        inputs = x.to(dtype)
        scaled = (b * scale).to(dtype)
        low = inputs.flatten(0, -2) @ a.to(dtype).T
        rows = base.view(-1, base.shape[-1])
        if base.dtype is dtype:
            torch.addmm(rows, low, scaled.T, out=rows)  # in place, and its FLOPs are counted
        else:
            rows += low @ scaled.T
        ctx.mark_dirty(base)
        ctx.save_for_backward(inputs, low, a, b)
        ctx.scale, ctx.input_dtype = scale, x.dtype
        return base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, low, a, b = ctx.saved_tensors
        dtype = low.dtype
        rows = gradient.reshape(-1, gradient.shape[-1]).to(dtype)
        by_low = rows @ (b * ctx.scale).to(dtype)
        by_x = by_a = by_b = None
        if ctx.needs_input_grad[0]:
            by_x = (by_low @ a.to(dtype)).view(inputs.shape).to(ctx.input_dtype)
        if ctx.needs_input_grad[2]:
            by_a = (by_low.T @ inputs.flatten(0, -2)).to(a.dtype)
        if ctx.needs_input_grad[3]:
            by_b = (rows.T @ low).to(b.dtype) * ctx.scale
        return by_x, gradient, by_a, by_b, None, None


def _forward(layer: Any, x: Tensor, plain: Callable[..., Tensor], *args: Any, **keywords: Any) -> Tensor:
    """The output of the adapted `layer` for `x`; by peft's method `plain` where more than one product is added."""
    # torch.compile fuses peft's layer by itself, and would split its graph here.
    if args or keywords or torch.compiler.is_compiling() or (name := _only_adapter(layer)) is None:
        return plain(x, *args, **keywords)
    base = layer.base_layer(x)
    if base._is_view():  # of the sum with a bias; autograd would copy its gradient
        base = base.clone()
    a, b, kind = layer.lora_A[name].weight, layer.lora_B[name].weight, x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else a.dtype
    return _Summed.apply(x, base, a, b, layer.scaling[name], dtype)


def _only_adapter(layer: LoraLayer) -> str | None:
    """The adapter whose products are to be added, if there is one, and gradients are wanted."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or not torch.is_grad_enabled() or layer.disable_adapters or layer.merged:
        return None
    return None if layer.lora_bias[names[0]] else names[0]


class FusedLoraLinear(lora.Linear):
    """peft's layer over nn.Linear or Conv1D."""

    def forward(self, x: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return _forward(self, x, super().forward, *args, **keywords)


class FusedLoraLinear4bit(bnb.Linear4bit):
    """peft's layer over a matrix in NF4."""

    def forward(self, x: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return _forward(self, x, super().forward, *args, **keywords)


class FusedLoraLinear8bit(bnb.Linear8bitLt):
    """peft's layer over a matrix in LLM.int8()."""

    def forward(self, x: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return _forward(self, x, super().forward, *args, **keywords)


FUSED: dict[type[LoraLayer], type[LoraLayer]] = {
    lora.Linear: FusedLoraLinear,
    bnb.Linear4bit: FusedLoraLinear4bit,
    bnb.Linear8bitLt: FusedLoraLinear8bit,
}
