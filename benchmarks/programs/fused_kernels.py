"""What the fused kernels of fms-acceleration (foak) allocate: norms, rotary embedding, losses, LoRA over NF4.

A kernel is its allocations: the values are of no use to tensors without storage. Read from
plugins/fused-ops-and-kernels of foundation-model-stack/fms-acceleration.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as packed
import torch
from torch import Tensor
from torch.nn import functional

from programs.decoder import Attention, Decoder, Norm
from programs.gptq import GptqLinear

# A layer of peft's LoRA. What is in its dictionaries of modules, nn.Module can't tell from a tensor.
LoraLayer = Any


class _Normed(torch.autograd.Function):
    """Keeps its input and one number a row; the gradient replaces the incoming one."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, hidden.new_empty(hidden.shape[:-1], dtype=torch.float32))
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class FusedNorm(Norm):
    """The kernel gives weights no gradient."""

    def forward(self, hidden: Tensor) -> Tensor:
        return _Normed.apply(hidden, self.weight)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor) -> Tensor:
        return heads.view_as(heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def rotated_in_place(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _Rotated.apply(query), _Rotated.apply(key)


class FusedCrossEntropy(torch.autograd.Function):
    """Of logits (rows, vocabulary), which the backward pass overwrites with their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, logits.new_empty(len(logits), dtype=torch.float32), targets)
        return logits.new_empty(len(logits), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


class LigerCrossEntropy(torch.autograd.Function):
    """Of hidden states and the head's weight, in chunks of rows, with the gradients in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        rows, chunks = len(hidden), -(-len(weight) // hidden.shape[1])
        size = 1 << (-(-rows // chunks) - 1).bit_length()  # the next power of two
        by_weight = torch.zeros_like(weight) if weight.requires_grad else None
        by_hidden, losses = torch.zeros_like(hidden), hidden.new_zeros(rows, dtype=torch.float32)
        for start in range(0, rows, size):
            part = hidden[start : start + size]
            logits = part @ weight.t()
            logits = logits.float()
            logits = logits.to(hidden.dtype)
            gradient = logits * 0.5
            by_hidden[start : start + size] = gradient @ weight
            if by_weight is not None:
                by_weight.addmm_(logits.t(), part)
        ctx.save_for_backward(by_hidden, by_weight)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor | None]:
        return ctx.saved_tensors


def _matrix(layer: LoraLayer, dtype: torch.dtype) -> Tensor:
    """The packed matrix below an adapter, dequantised and transposed: (inputs, outputs)."""
    weight = layer.base_layer.weight
    if isinstance(layer.base_layer, GptqLinear):
        return layer.base_layer.whole()
    return packed.dequantize_4bit(weight, weight.quant_state).to(dtype).t()


def _product(layer: LoraLayer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output, and its input after dropout."""
    out = hidden @ _matrix(layer, hidden.dtype)
    dropped = layer.lora_dropout["default"](hidden)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    out += (dropped @ a.t().to(hidden.dtype)) @ (b.t().to(hidden.dtype) * 1.0)
    return out, dropped


def _added(total: Tensor, layer: LoraLayer, dropped: Tensor, gradient: Tensor) -> None:
    """Add the gradient by the input that comes through the adapter."""
    a, b = (x["default"].weight.to(gradient.dtype) for x in (layer.lora_A, layer.lora_B))
    total += (dropped != 0) * (gradient @ b @ a)


def _of_adapter(layer: LoraLayer, dropped: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    a, b = (x["default"].weight.to(gradient.dtype) for x in (layer.lora_A, layer.lora_B))
    by_a = dropped.t() @ (gradient @ b)
    by_b = (a @ dropped.t()) @ gradient
    return by_a.t(), by_b.t()


class _Projected(torch.autograd.Function):
    """Projections of one input by LoRA layers over packed matrices; each keeps the input after its dropout.

    in_place: whether the gradient by the input overwrites the input, as for queries, keys and values.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layers: list[LoraLayer], in_place: bool, *_adapters: Any) -> Any:
        outs, dropped = zip(*(_product(layer, hidden) for layer in layers), strict=True)
        ctx.layers, ctx.in_place = layers, in_place
        ctx.save_for_backward(hidden, *dropped)
        return outs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        hidden, *dropped = ctx.saved_tensors
        shape, width = hidden.shape, hidden.shape[-1]
        hidden, dropped = hidden.view(-1, width), [x.view(-1, width) for x in dropped]
        rows = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        parts = list(zip(ctx.layers, dropped, rows, strict=True))
        by_adapters = [gradient.float() for part in parts for gradient in _of_adapter(*part)]
        total: Any = None  # until the first layer's
        for layer, kept, gradient in parts:
            matrix = _matrix(layer, gradient.dtype)
            if total is None:
                total = torch.matmul(gradient, matrix.t(), out=hidden) if ctx.in_place else gradient @ matrix.t()
            else:
                total += gradient @ matrix.t()
            del matrix
            _added(total, layer, kept, gradient)
        return total.view(shape), None, None, *by_adapters


def _adapters(layers: list[LoraLayer]) -> list[Tensor]:
    return [part["default"].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]


def fused_qkv(attention: Attention, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    return _Projected.apply(hidden.view_as(hidden), layers, True, *_adapters(layers))


def fused_out(layer: LoraLayer, hidden: Tensor) -> Tensor:
    return _Projected.apply(hidden, [layer], False, *_adapters([layer]))[0]


def plain_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits, targets)


def fused_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return FusedCrossEntropy.apply(logits, targets).sum() / torch.count_nonzero(targets != -100)


def liger_loss(net: Decoder, ids: Tensor, labels: Tensor) -> tuple[Tensor, None]:
    hidden = net(ids)
    shifted = hidden[..., :-1, :].contiguous()
    return LigerCrossEntropy.apply(shifted.view(-1, shifted.shape[-1]), net.lm_head.weight), None
