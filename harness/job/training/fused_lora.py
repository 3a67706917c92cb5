"""LoRA's two products, its scaling and the sum with the frozen layer's output as one operation of autograd.

peft takes the products, multiplies by the scale and adds, each into a tensor as large as the layer's output, and so
backward. Here the second product is scaled and added where the frozen layer's output lies, and backward where the
frozen layer's gradient of its input lies. In 16 bits the result is rounded once instead of three times. Saved are the
input, which the layer's neighbours save too, and its product with A, of as many columns as the rank. Both matrices are
cast for all layers at once (adapter_operands.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from peft.tuners import lora
from peft.tuners.lora import bnb
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.torchao import TorchaoLoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.job.training import adapter_operands
from harness.job.training.adapter_operands import Low, Once, added, only_adapter

Operands = Mapping[LoraLayer, tuple[Tensor, Tensor]]
NAME = "fused_lora"  # in the record


def concerns(model: nn.Module) -> bool:
    """Whether `model` has adapters of plain LoRA on linear layers."""
    return any(_plain(model))


def enable(model: nn.Module, once: bool = True) -> str:
    """Have plain LoRA's linear layers in `model` train by one operation. Returns "on", or "off: " and the reason.

    once: whether adapters are cast for all layers at once. Decoder layers that are to be compiled, or sharded, cast
    their own: sharded weights are whole only while their layer computes.
    """
    layers = list(_plain(model))
    if (reason := adapter_operands.hindrance(layers, "plain LoRA")) is not None:
        return f"off: {reason}"
    prepared = Once(model, layers, _prepare) if once else None
    for layer in layers:
        layer.__class__ = FUSED[type(layer)]
        if prepared is not None:
            layer.ready = prepared.ready
    return "on"


def _plain(model: nn.Module) -> Iterator[Any]:
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and type(layer) in FUSED and not layer.lora_variant:
            yield layer


class _Summed(torch.autograd.Function):
    """`base` (…, out) + `scale` · `low` (tokens, r) @ `b`^T, in place. b: (out, r). For gradients see Low."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, low: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(low, b)
        ctx.mark_dirty(base)
        return added(base, low, b.T, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        low, b = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1]).to(low.dtype)
        by_low = rows @ b if ctx.needs_input_grad[1] else None
        return gradient, by_low, rows.T @ low if ctx.needs_input_grad[2] else None, None


def _prepare(names: Mapping[Any, str], on_end: Callable[[], None]) -> list[tuple[Tensor, Tensor]]:
    """A and B of each layer's adapter, for its products."""
    pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for layer, name in names.items()]
    return adapter_operands.cast(pairs, [layer.scaling[name] for layer, name in names.items()], on_end)


def _forward(layer: Any, x: Tensor, plain: Callable[..., Tensor], *args: Any, **keywords: Any) -> Tensor:
    """The output of the adapted `layer` for `x`; by peft's method `plain` where more than one product is added."""
    # torch.compile fuses peft's layer by itself, and would split its graph here.
    if args or keywords or torch.compiler.is_compiling() or (name := only_adapter(layer)) is None:
        return plain(x, *args, **keywords)
    (a, b), scale = layer.ready.get(layer) or _prepare({layer: name}, adapter_operands.nothing)[0], layer.scaling[name]
    again, low = Low.apply(x, a, scale)
    base = layer.base_layer(again if x.requires_grad else x)
    if base._is_view():  # of the sum with a bias; autograd would copy its gradient
        base = base.clone()
    return _Summed.apply(base, low, b, scale)


def _fused(kind: Any) -> Any:
    """What a layer of peft's class `kind` becomes."""

    class FusedLora(kind):
        ready: ClassVar[Operands] = {}  # those of Once

        def forward(self, x: Tensor, *args: Any, **keywords: Any) -> Tensor:
            return _forward(self, x, super().forward, *args, **keywords)

    return FusedLora


# Layers over nn.Linear or Conv1D, and over a matrix in NF4, in LLM.int8() and of torchao
FUSED: dict[type[LoraLayer], type[LoraLayer]] = {
    kind: _fused(kind) for kind in (lora.Linear, bnb.Linear4bit, bnb.Linear8bitLt, TorchaoLoraLinear)
}
