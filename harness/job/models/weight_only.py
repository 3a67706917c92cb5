"""A frozen base in 8 bits by torchao, an extra: weights alone are quantised, and expanded while their layer computes.

torchao's own layer keeps the expanded matrix for the backward pass, so training would take more memory than with
weights in 16 bits. Here the backward pass expands it again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, TorchAoConfig
from transformers.quantizers import HfQuantizer

from harness.errors import UserError


def int8wo() -> TorchAoConfig:
    """Each row of a matrix as whole numbers from -128 to 127, times a scale in fp32."""
    return _config("Int8WeightOnlyConfig")


def fp8wo() -> TorchAoConfig:
    """Each row of a matrix as floating-point numbers of 8 bits (e4m3), times a scale in fp32.

    Products are computed as those of weights that are not quantised, so every device has them.
    """
    return _config("Float8WeightOnlyConfig")


def _config(kind: str) -> TorchAoConfig:
    """torchao's config `kind`. Raises UserError if torchao is not installed."""
    try:
        from torchao import quantization
    except ImportError:
        raise UserError(
            "A base in int8wo or fp8wo requires the extra `torchao`: pip install -e '.[torchao]' in the project's "
            "folder."
        ) from None
    # Its settings for torch's compiler would let products in fp32 round to TF32, in this cell alone.
    return TorchAoConfig(getattr(quantization, kind)(set_inductor_config=False))


class WeightOnlyLinear(nn.Linear):
    """A linear layer with a frozen matrix of torchao."""

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight  # torchao's class of tensors
        out = _ExpandedProduct.apply(x, weight.qdata, weight.scale)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _ExpandedProduct(torch.autograd.Function):
    """`x` (…, in) times the transpose of the quantised matrix `values` (out, in) with `scales` (out, 1).

    Under autocast it is in autocast's dtype, as that of a plain linear layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
        kind = x.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.input_dtype = x.dtype
        ctx.save_for_backward(values, scales)
        return functional.linear(x.to(ctx.dtype), _expanded(values, scales, ctx.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, scales = ctx.saved_tensors
        matrix = _expanded(values, scales, ctx.dtype)
        return (gradient.to(ctx.dtype) @ matrix).to(ctx.input_dtype), None, None


def _expanded(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix in `dtype`, which has all numbers of 8 bits: it is rounded once, after the product with its scale."""
    return values.to(dtype).mul_(scales)


def is_torchao(weight: Tensor) -> bool:
    """Whether `weight` is of a class of torchao, told without importing it."""
    return type(weight).__module__.startswith("torchao.")


def enable(net: nn.Module) -> None:
    """Have the quantised layers of `net` compute as WeightOnlyLinear; a model's own kinds of layers stay."""
    for layer in net.modules():
        if type(layer) is nn.Linear and is_torchao(layer.weight):
            layer.__class__ = WeightOnlyLinear


def pack(net: PreTrainedModel, quantizer: HfQuantizer, config: TorchAoConfig) -> None:
    """Quantise the matrices of `net` on "meta" by `config`, as loading it does."""
    from torchao import quantize_

    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear) and quantizer.param_needs_quantization(net, f"{name}.weight"):
            quantize_(layer, config.quant_type)
    vars(net)["hf_quantizer"] = quantizer  # as from_pretrained leaves it; peft asks it
    enable(net)


def keep_from_broadcast(model: nn.Module) -> None:
    """Have DDP leave the matrices of torchao as each process has loaded them: it can broadcast plain tensors alone."""
    if names := [name for name, weight in model.named_parameters() if is_torchao(weight)]:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


def dequantise(net: PreTrainedModel) -> None:
    """Expand the matrices of `net`, one after another, to the dtype that they were quantised from."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear) and is_torchao(layer.weight):
            weight: Any = layer.weight
            layer.weight = nn.Parameter(_expanded(weight.qdata, weight.scale, weight.dtype), requires_grad=False)
            vars(layer).pop("extra_repr", None)  # torchao's, which tells of its class
            if type(layer) is WeightOnlyLinear:
                layer.__class__ = nn.Linear  # type: ignore[assignment]  # a class that adds no attribute
    quantizer: HfQuantizer = vars(net)["hf_quantizer"]
    quantizer.remove_quantization_config(net)
