"""The weights of adapters as operands of products: cast for all layers at once, before each forward pass of a model.

Autocast casts the two matrices of each layer one by one, and so their gradients: for an 8B model 900 operations a step
that take no time but a host's. Here a model's forward pass begins with one copy of all adapters' weights in the dtype
of the products, and its backward pass ends with one copy of their gradients, which takes in the factor of each. The
copies live for one pass: a layer that recomputes its forward pass in the backward pass has the same ones, and the next
pass casts what the optimizer has changed. A layer that is called by itself casts its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

T = TypeVar("T")


class _Cast(torch.autograd.Function):
    """`weights` in `dtype`. Their gradients are multiplied by `scales`, which later operations leave out.

    on_end: called when all gradients are there.
    """

    @staticmethod
    def forward(
        ctx: Any,  # torch's FunctionCtx, which takes attributes
        dtype: torch.dtype,
        scales: Sequence[float],
        on_end: Callable[[], None],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.scales, ctx.on_end, ctx.dtypes = scales, on_end, [weight.dtype for weight in weights]
        ctx.needed = [weight.requires_grad for weight in weights]
        cast = weights if all(weight.dtype is dtype for weight in weights) else _copies(weights, dtype)
        ctx.mark_non_differentiable(*(c for c, needed in zip(cast, ctx.needed, strict=True) if not needed))
        return tuple(cast)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.on_end()
        indices = [i for i, gradient in enumerate(gradients) if gradient is not None and ctx.needed[i]]
        whole = _in_dtypes([gradients[i] for i in indices], [ctx.dtypes[i] for i in indices])
        if whole:
            torch._foreach_mul_(whole, [ctx.scales[i] for i in indices])
        by_weights: list[Tensor | None] = [None] * len(gradients)
        for i, gradient in zip(indices, whole, strict=True):
            by_weights[i] = gradient
        return None, None, None, *by_weights


def _copies(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Those of one shape lie one after the other."""
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, weight in enumerate(weights):
        places[weight.shape, weight.device].append(i)
    copies: list[Tensor] = [weights[0]] * len(weights)
    for alike in places.values():
        first = weights[alike[0]]
        buffer = torch.empty(len(alike), *first.shape, dtype=dtype, device=first.device)
        for i, copy in zip(alike, buffer.unbind(), strict=True):
            copies[i] = copy
    torch._foreach_copy_(copies, list(weights))
    return copies


def _in_dtypes(gradients: list[Any], dtypes: list[torch.dtype]) -> list[Tensor]:
    """As they are, where the dtypes are theirs: no other operation has these gradients."""
    if all(gradient.dtype is dtype for gradient, dtype in zip(gradients, dtypes, strict=True)):
        return gradients
    whole = [torch.empty_like(each, dtype=dtype) for each, dtype in zip(gradients, dtypes, strict=True)]
    torch._foreach_copy_(whole, gradients)
    return whole


def nothing() -> None:
    """Follows a pass for which one layer alone was prepared."""


def cast(
    pairs: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float], on_end: Callable[[], None]
) -> list[tuple[Tensor, Tensor]]:
    """The matrices A (r, in) and B (out, r) of layers in the dtype of their products; for the rest see _Cast."""
    kind = pairs[0][0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else pairs[0][0].dtype
    twice = [scale for scale in scales for _ in range(2)]
    flat = _Cast.apply(dtype, twice, on_end, *(weight for pair in pairs for weight in pair))
    return list(zip(flat[::2], flat[1::2], strict=True))


class Once(Generic[T]):
    """Prepares the operands of `layers` of a model before each of its forward passes that wants gradients.

    prepare: returns the operands of layers with one adapter each, by their names; it has `on_end` called after the
        backward pass. ready: the operands, for the time of a pass.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[LoraLayer],
        prepare: Callable[[Mapping[LoraLayer, str], Callable[[], None]], Sequence[T]],
    ):
        self.ready: dict[LoraLayer, T] = {}
        self._layers, self._prepare = layers, prepare
        model.register_forward_pre_hook(self._begin)

    def _begin(self, _model: nn.Module, _inputs: Any) -> None:
        self.ready.clear()
        names = {layer: name for layer in self._layers if (name := only_adapter(layer)) is not None}
        if names:
            self.ready.update(zip(names, self._prepare(names, self.ready.clear), strict=True))


def hindrance(layers: Sequence[LoraLayer], adapter: str) -> str | None:
    """Why no operation can stand for the products of `layers`, which have `adapter`; None if one can."""
    if not layers:
        return f"no linear layer has {adapter}"
    dropouts = (part for layer in layers for part in layer.lora_dropout.values())
    return "dropout comes before the products" if any(isinstance(part, nn.Dropout) for part in dropouts) else None


def only_adapter(layer: LoraLayer) -> str | None:
    """The adapter whose products are to be added, if there is one, and gradients are wanted."""
    if not torch.is_grad_enabled():
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or layer.disable_adapters or layer.merged:
        return None
    return None if layer.lora_bias[names[0]] else names[0]


class Low(torch.autograd.Function):
    """`x` (…, in) as it is, for the frozen layer, and its product (tokens, r) with `a`^T (in, r).

    In the backward pass the frozen layer's gradient of x comes back here, and A's is added to it in place.
    scale: of this adapter; the gradient of the product lacks it, and so does that of `a`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        inputs = x.to(a.dtype)
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, a)  # LoRA-FA's A is frozen
        ctx.scale = scale
        return x, inputs.flatten(0, -2) @ a.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_x: Tensor | None, by_low: Tensor | None) -> tuple[Tensor | None, ...]:
        if by_low is None:
            return by_x, None, None
        inputs, a = ctx.saved_tensors
        by_a = by_low.T @ inputs.flatten(0, -2) if ctx.needs_input_grad[1] else None
        if by_x is not None and ctx.needs_input_grad[0]:
            by_x = added(by_x, by_low, a, ctx.scale)
        return by_x, by_a, None


def added(rows: Tensor, low: Tensor, matrix: Tensor, scale: float) -> Tensor:
    """`rows` (…, columns) + `scale` · `low` (tokens, r) @ `matrix` (r, columns), in place where memory allows it.

    The sum is in the dtype of `rows`.
    """
    if not rows.is_contiguous():
        return rows + (scale * (low @ matrix)).view(rows.shape).to(rows.dtype)
    flat = rows.view(-1, rows.shape[-1])
    if rows.dtype is low.dtype:
        torch.addmm(flat, low, matrix, alpha=scale, out=flat)  # its FLOPs are counted, those of addmm_ are not
    else:
        flat.add_(low @ matrix, alpha=scale)
    return rows


def prepared(model: nn.Module) -> Iterator[Tensor]:
    """The operands that layers of `model` have for the present pass."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            yield from getattr(layer, "ready", {}).get(layer, ())
