"""DoRA's products, sum and scaling as one operation of autograd, and its norms for all layers at once.

peft multiplies A and B by way of an identity matrix, adds the product to the weights and takes the norms of the rows
of the sum, all in fp32 and for each layer, then combines four tensors as large as the layer's output. Here the norms
come of products as narrow as the rank (arXiv:2402.09353, eq. 5; the norms are constants, section 4.3):

    ‖W_i + s b_i A‖² = ‖W_i‖² + s b_i · (2 W A^T + s B A A^T)_i

where ‖W_i‖² never changes, and all but W A^T is computed for all layers of a shape together, in fp32. That takes no
memory as large as W. Where rows of W and s B A cancel, which training does not come near, the sum has fewer digits. The
output y = m (W x + s B A x) / ‖W + s B A‖ is computed in place, and the magnitude's gradient Σ g y / m from y.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from peft.tuners import lora
from peft.tuners.lora import bnb
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import transpose
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.job.methods.dora import TINY, FastDoraLinear, FastDoraLinear4bit, FastDoraVariant
from harness.job.training import adapter_operands, layer_kernels
from harness.job.training.adapter_operands import Low, Once, added, only_adapter

NAME = "fused_dora"  # in the record
Operands = tuple[Tensor, Tensor, Tensor]  # A (r, in), B (out, r), and m / ‖W + s B A‖ (out,)


def concerns(model: nn.Module) -> bool:
    """Whether `model` has adapters of DoRA on linear layers."""
    return any(_plain(model))


def enable(model: nn.Module, sharded: bool = False, compiled: bool = False, kernels: str | None = None) -> str:
    """Have DoRA's linear layers in `model` train by one operation. Returns "on", or "off: " and the reason.

    sharded: whether weights will be; then there are none to take norms of before a layer computes. compiled: whether
    decoder layers will be. kernels: for a prediction, the device whose kernels are predicted, ``cpu`` or ``cuda``
    (null: those of the model's device).
    """
    layers = list(_plain(model))
    if (reason := adapter_operands.hindrance(layers, "DoRA")) is not None:
        return f"off: {reason}"
    if sharded:
        return "off: the weights are sharded"
    if compiled:
        return "off: train.compile fuses these itself"
    device = layers[0].get_base_layer().weight.device
    by_kernel = kernels == "cuda" if kernels else device.type == "cuda" and layer_kernels.work(device)
    prepared = Once(model, layers, _prepare)
    for layer in layers:
        layer.__class__ = FUSED[type(layer)]
        layer.ready, layer.by_kernel = prepared.ready, by_kernel
        with torch.no_grad():
            _squares(layer, _weight(layer))  # apart from the first step's time
    return "on"


def _plain(model: nn.Module) -> Iterator[Any]:
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and type(layer) in FUSED and layer.lora_variant:
            kinds = {type(variant) for variant in layer.lora_variant.values()}
            if kinds <= {DoraLinearVariant, FastDoraVariant} and len(layer.lora_variant) == len(layer.lora_A):
                yield layer


# Before the products


def _prepare(names: Mapping[Any, str], on_end: Callable[[], None]) -> list[Operands]:
    """The operands of each layer's adapter; by `on_end` see Once."""
    pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for layer, name in names.items()]
    scales = [layer.scaling[name] for layer, name in names.items()]
    magnitudes = [layer.lora_magnitude_vector[name].weight for layer, name in names.items()]
    cast = adapter_operands.cast(pairs, scales, on_end)
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for i, ((a, b), scale) in enumerate(zip(cast, scales, strict=True)):
        places[a.shape, b.shape, a.device, scale].append(i)
    layers, kinds = list(names), {a.device.type for a, _ in cast}
    factors, divisors = list(magnitudes), list(magnitudes)
    with torch.no_grad(), torch.autocast(kinds.pop(), enabled=False):
        for alike in places.values():
            of = [layers[i] for i in alike]
            norms = _norms(of, [cast[i][0] for i in alike], [cast[i][1] for i in alike], scales[alike[0]])
            stacked = torch.stack([magnitudes[i] for i in alike])
            stacked = torch.where(stacked == 0, TINY, stacked)
            parts = zip(alike, (stacked / norms).unbind(), stacked.unbind(), strict=True)
            for i, factor, magnitude in parts:
                factors[i], divisors[i] = factor, magnitude
    turned = _Factors.apply(factors, divisors, *magnitudes)
    return [(a, b, factor) for (a, b), factor in zip(cast, turned, strict=True)]


def _norms(layers: Sequence[Any], a: Sequence[Tensor], b: Sequence[Tensor], scale: float) -> Tensor:
    """‖W + `scale` · `b` @ `a`‖ (layers, out) of each row, in fp32 (fp64, if the weights are)."""
    products, squares = [], []
    for layer, narrow in zip(layers, a, strict=True):
        weight = _weight(layer)
        dtype = torch.promote_types(weight.dtype, narrow.dtype)
        products.append(weight.to(dtype) @ narrow.to(dtype).T)
        squares.append(_squares(layer, weight))
    exact = torch.promote_types(products[0].dtype, torch.float32)
    wide, tall = torch.stack(list(a)).to(exact), torch.stack(list(b)).to(exact)
    doubled = torch.baddbmm(torch.stack(products).to(exact), tall, wide @ wide.mT, beta=2, alpha=scale)
    sums = torch.add(torch.stack(squares), (tall * doubled).sum(-1), alpha=scale)
    return sums.clamp_min_(0).sqrt_()


def _weight(layer: Any) -> Tensor:
    """W (out, in) of `layer`, dequantised where it must be."""
    return transpose(dequantize_module_weight(layer.get_base_layer()), layer.fan_in_fan_out)


def _squares(layer: Any, weight: Tensor) -> Tensor:
    """‖W_i‖² (out,), computed once."""
    state = (weight.dtype, weight.device, layer.get_base_layer().weight._version)
    if layer.squares is None or layer.squares[0] != state:
        exact = torch.promote_types(weight.dtype, torch.float32)
        layer.squares = state, torch.linalg.vector_norm(weight, dim=1, dtype=exact).square_()
    return layer.squares[1]


class _Factors(torch.autograd.Function):
    """`factors` m / ‖W + s B A‖ of each layer. Their gradients are Σ g y; those of the `magnitudes` m are that over m,
    for which `divisors` stand."""

    @staticmethod
    def forward(
        ctx: Any, factors: Sequence[Tensor], divisors: Sequence[Tensor], *magnitudes: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.divisors, ctx.dtypes = divisors, [magnitude.dtype for magnitude in magnitudes]
        frozen = (f for f, magnitude in zip(factors, magnitudes, strict=True) if not magnitude.requires_grad)
        ctx.mark_non_differentiable(*frozen)
        return tuple(factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *sums: Tensor | None) -> tuple[Tensor | None, ...]:
        by_magnitudes: list[Tensor | None] = [None] * len(sums)
        indices = [i for i, total in enumerate(sums) if total is not None]
        if indices:
            totals: list[Any] = [sums[i] for i in indices]
            divided = torch._foreach_div(totals, [ctx.divisors[i] for i in indices])
            for i, by_magnitude in zip(indices, divided, strict=True):
                by_magnitudes[i] = by_magnitude.to(ctx.dtypes[i])
        return None, None, *by_magnitudes


# The products


class _Turned(torch.autograd.Function):
    """(`base` (…, out) + `scale` · `low` (tokens, r) @ `b`^T) · `factor` (out,), in place. b: (out, r).

    For the gradients of `low` and `b` see Low; that of `factor` is left to _Factors. by_kernel: whether a kernel of
    layer_kernels computes it, in one pass with that of `base`.
    """

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, low: Tensor, b: Tensor, factor: Tensor, scale: float, by_kernel: bool
    ) -> Tensor:
        ctx.by_kernel = by_kernel
        result = added(base, low, b.T, scale).mul_(factor)
        ctx.mark_dirty(base)
        ctx.save_for_backward(result, low, b, factor)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        result, low, b, factor = ctx.saved_tensors
        by_factor = by_low = by_b = None
        if ctx.by_kernel:
            by_base, parts = layer_kernels.operations.scaled_backward(gradient, result, factor)
            by_factor = parts.sum(0)
        else:
            by_base = torch.mul(gradient, factor, out=torch.empty_like(gradient))  # rounded once, in one operation
            if ctx.needs_input_grad[3]:
                by_factor = (gradient * result).flatten(0, -2).sum(0, dtype=factor.dtype)
        rows = by_base.reshape(-1, by_base.shape[-1]).to(low.dtype)
        if ctx.needs_input_grad[1]:
            by_low = rows @ b
        if ctx.needs_input_grad[2]:
            by_b = rows.T @ low
        return by_base, by_low, by_b, by_factor, None, None


def _forward(layer: Any, x: Tensor, plain: Callable[..., Tensor], *args: Any, **keywords: Any) -> Tensor:
    """The output of the adapted `layer` for `x`; by peft's method `plain` where it is not one adapter's."""
    if args or keywords or torch.compiler.is_compiling() or (name := only_adapter(layer)) is None:
        return plain(x, *args, **keywords)
    a, b, factor = layer.ready.get(layer) or _prepare({layer: name}, adapter_operands.nothing)[0]
    again, low = Low.apply(x, a, layer.scaling[name])
    base, bias = layer.base_layer(again if x.requires_grad else x), layer.get_base_layer().bias
    if bias is not None:
        base, bias = base - bias.to(base.dtype), bias.to(base.dtype)
    elif base._is_view():
        base = base.clone()
    turned = _Turned.apply(base, low, b, factor, layer.scaling[name], layer.by_kernel)
    return turned if bias is None else turned + bias


def _fused(kind: Any) -> Any:
    """What a layer of the class `kind` becomes."""

    class FusedDora(kind):
        ready: ClassVar[Mapping[LoraLayer, Operands]] = {}  # those of Once
        squares: tuple[Any, Tensor] | None = None
        by_kernel = False

        def forward(self, x: Tensor, *args: Any, **keywords: Any) -> Tensor:
            return _forward(self, x, super().forward, *args, **keywords)

    return FusedDora


# peft's layers over nn.Linear or Conv1D and over a matrix in NF4, and those of `dora_fast`
FUSED: dict[type[LoraLayer], type[LoraLayer]] = {
    kind: _fused(kind) for kind in (lora.Linear, bnb.Linear4bit, FastDoraLinear, FastDoraLinear4bit)
}
